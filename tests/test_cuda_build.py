"""The CUDA kernels compile and link for every architecture without a warning, and none spills. No GPU is needed, and
nvcc only where the sources are not those on record."""

import cuda_resources
import pytest
import records

from .compilers import Build

pytestmark = pytest.mark.slow
BUILD = Build(cuda_resources, "--archs", cuda_resources.ARCHS, 90, "--folder")


@pytest.fixture(scope="module")
def resources(pytestconfig):
    return BUILD.rows(pytestconfig.option.tier)


def test_every_kernel_is_there_for_every_architecture(resources, pytestconfig):
    rows, maps = {"fp32", "fp64"}, {"fp32", "fp64", "bf16", "fp16"}
    rows_only = ("scan", "scan_bwd", "refresh", "refresh_bwd", "attend", "attend_bwd", "weight_gradients", "moments")
    expected = dict.fromkeys(rows_only, rows)
    expected |= dict.fromkeys(("gap", "rescale", "rescale_bwd", "layer_update", "layer_update_bwd"), maps)
    expected |= dict.fromkeys(("light_step", "light_step_bwd", "depthwise", "depthwise_bwd", "mix", "mix_bwd"), maps)
    expected |= dict.fromkeys(("norm_add", "norm_add_sums", "norm_add_bwd"), maps)
    for arch in BUILD.chips(pytestconfig.option.tier):
        found = {}
        for r in resources:
            if r.arch == arch:
                found.setdefault(r.kernel, set()).add(r.dtype)
        assert found == expected, f"sm_{arch}"


def test_no_kernel_spills_and_two_blocks_fit_on_a_processor(resources):
    assert cuda_resources.faults(resources) == []


def test_the_record_is_of_these_sources(pytestconfig):
    BUILD.check_record(pytestconfig.option.tier)


def test_the_table_in_the_docs_is_the_record():
    page = records.PAGE.read_text()
    assert cuda_resources.section(BUILD.record) in page, "run: python tools/cuda_resources.py --write"


def test_a_spill_would_be_seen():
    said = """
ptxas info    : Compiling entry function '_ZN3dla4cuda11scan_kernelIfEEvNS0_8ScanArgsIT_EE' for 'sm_90'
ptxas info    : Function properties for _ZN3dla4cuda11scan_kernelIfEEvNS0_8ScanArgsIT_EE
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 16 bytes cumulative stack size
"""
    assert cuda_resources.parse(said) == [cuda_resources.Resources("scan", "fp32", 90, 128, 16, 20)]


def test_what_is_a_fault():
    fine = cuda_resources.Resources("scan", "fp32", 90, 128, 0, 0)
    faults = [fine._replace(stack=16), fine._replace(spills=8), fine._replace(registers=129)]
    assert cuda_resources.faults([fine, *faults, fine._replace(dtype="fp64", registers=255)]) == faults
