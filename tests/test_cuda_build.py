"""The CUDA kernels compile and link for every architecture without a warning, and none spills. Needs nvcc, no GPU."""

import sys

import pytest

from .compilers import TOOLS, Build

sys.path.insert(0, str(TOOLS))

import cuda_resources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_resources.find_nvcc() is None, reason="nvcc is neither on PATH nor in CUDA_HOME"),
]


BUILD = Build("cuda_resources.py", "--folder")


@pytest.fixture(scope="module")
def resources():
    return [cuda_resources.Resources(*row) for row in BUILD.result()]


def test_every_kernel_is_there_for_every_architecture(resources):
    rows, maps = {"fp32", "fp64"}, {"fp32", "fp64", "bf16", "fp16"}
    rows_only = ("scan", "scan_bwd", "refresh", "refresh_bwd", "attend", "attend_bwd", "weight_gradients", "moments")
    expected = dict.fromkeys(rows_only, rows)
    expected |= dict.fromkeys(("gap", "rescale", "rescale_bwd", "layer_update", "layer_update_bwd"), maps)
    expected |= dict.fromkeys(("light_step", "light_step_bwd", "depthwise", "depthwise_bwd", "mix", "mix_bwd"), maps)
    expected |= dict.fromkeys(("norm_add", "norm_add_sums", "norm_add_bwd"), maps)
    for arch in cuda_resources.ARCHS:
        found = {}
        for r in resources:
            if r.arch == arch:
                found.setdefault(r.kernel, set()).add(r.dtype)
        assert found == expected, f"sm_{arch}"


def test_no_kernel_spills_or_has_a_stack_frame(resources):
    assert [r for r in resources if r.stack or r.spills] == []


def test_two_blocks_fit_on_a_processor(resources):
    assert [r for r in resources if r.dtype != "fp64" and r.registers > 128] == []


def test_the_table_in_the_docs_is_this_one(resources):
    version = cuda_resources.nvcc_version()
    written = cuda_resources.PAGE.read_text()
    if f"nvcc {version} " not in written:
        pytest.skip(f"the table was made by another nvcc than {version}")
    assert cuda_resources.section(resources, version) in written, "run: python tools/cuda_resources.py --write"


def test_a_spill_would_be_seen():
    said = """
ptxas info    : Compiling entry function '_ZN3dla4cuda11scan_kernelIfEEvNS0_8ScanArgsIT_EE' for 'sm_90'
ptxas info    : Function properties for _ZN3dla4cuda11scan_kernelIfEEvNS0_8ScanArgsIT_EE
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 16 bytes cumulative stack size
"""
    assert cuda_resources.parse(said) == [cuda_resources.Resources("scan", "fp32", 90, 128, 16, 20)]
