"""The CUDA kernels compile and link for every architecture without a warning, and fit on a chip. No GPU is needed, and
nvcc only where the sources are not those on record."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import cuda_resources
import pytest
import records

from .compilers import Build

pytestmark = pytest.mark.slow
BUILD = Build(cuda_resources, "--archs", cuda_resources.ARCHS, 90, "--folder")


@pytest.fixture(scope="module")
def resources(pytestconfig):
    return BUILD.rows(pytestconfig.option.tier)


def test_every_kernel_is_compiled_for_every_architecture_and_dtype(resources, pytestconfig):
    dtypes = {"ROWS": {"fp32", "fp64"}, "MAPS": {"fp32", "fp64", "bf16", "fp16"}}
    sources = "".join(path.read_text() for path in (records.ROOT / "csrc/cuda").glob("*.cu"))
    expected = {kernel: dtypes[of] for of, kernel in re.findall(r"DLA_LAUNCH_(\w+)\((\w+)_kernel", sources)}
    assert len(expected) > 20
    for arch in BUILD.chips(pytestconfig.option.tier):
        found = {}
        for r in resources:
            if r.arch == arch:
                found.setdefault(r.kernel, set()).add(r.dtype)
        assert found == expected, f"sm_{arch}"


def test_no_kernel_outgrows_its_frame_and_two_blocks_fit_on_a_processor(resources):
    assert cuda_resources.faults(resources) == []


def test_the_record_is_of_these_sources(pytestconfig):
    BUILD.check_record(pytestconfig.option.tier)


def test_the_table_in_the_docs_is_the_record():
    page = records.PAGE.read_text()
    assert cuda_resources.section(BUILD.record) in page, "run: python tools/cuda_resources.py --write"


def test_a_frame_is_read_from_what_cuobjdump_prints():
    said = """
Fatbin elf code:
================
arch = sm_90
Resource usage:
 Common:
  GLOBAL:0
 Function _ZN3dla4cuda11scan_kernelIfEEvNS0_8ScanArgsIT_EE:
  REG:128 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:1064 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    assert cuda_resources.parse(said) == [cuda_resources.Resources("scan", "fp32", 90, 128, 16)]


def test_frames_and_registers_beyond_their_limits_are_faults():
    fine = cuda_resources.Resources("scan", "fp32", 90, 128, 0)
    frames = [fine._replace(stack=cuda_resources.FRAME), fine._replace(kernel="light_step", stack=256)]
    faults = [*(r._replace(stack=r.stack + 8) for r in frames), fine._replace(registers=129)]
    assert cuda_resources.faults([fine, *frames, *faults, fine._replace(dtype="fp64", registers=255)]) == faults


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is absent")
def test_the_stand_in_for_torchs_cuda_library_exports_its_functions(tmp_path):
    """It is compiled as all of the project is, with hidden names. If it exported nothing, the linker would leave out
    that the library is needed, and what was built beside a torch without CUDA would not load beside one with."""
    source = Path(__file__).parent.parent / "csrc" / "cuda" / "torch_cuda_stub.cpp"
    library = tmp_path / "libtorch_cuda.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-fvisibility=hidden", source, "-o", library], check=True)
    names = re.findall(r"(\w+)\(int32_t|(\w+)\(char", source.read_text())
    assert len(names) == 3
    for name in map("".join, names):
        assert getattr(ctypes.CDLL(str(library)), name)
