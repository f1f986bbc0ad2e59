"""Every instruction set the library is compiled for gives right results, on the machines that have it."""

import json
import os
import subprocess
import sys

import pytest
import torch

import dla_kernels as dla

ISAS = ("baseline", "x86-64-v3", "x86-64-v4")


# Instruction sets are the CPU backend's alone: neither the SIMT shim, nor Triton's interpreter, nor a GPU has any.
CPU_ALONE = {"DLA_KERNELS_SIMT": "0", "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}


def run(code_or_module, **environment):
    command = [sys.executable, *code_or_module]
    environment = os.environ | CPU_ALONE | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


IN_USE = "import torch, dla_kernels.backends as b; b.BACKENDS['cpu'].available; print(torch.ops.dla.cpu_isa())"


@pytest.fixture(scope="module", params=ISAS)
def isa(request):
    in_use = run(["-c", IN_USE], DLA_KERNELS_ISA=request.param)
    assert in_use.returncode == 0, in_use.stderr
    if in_use.stdout.strip() != request.param:
        pytest.skip(f"this machine has {in_use.stdout.strip()} at most")
    return request.param


@pytest.mark.slow
def test_verify_passes_on_every_instruction_set(isa):
    # There is NaN in all scratch memory too: nothing is read before it is written.
    verified = run(["-m", "dla_kernels", "verify", "--json"], DLA_KERNELS_ISA=isa, DLA_KERNELS_POISON="1")
    results = json.loads(verified.stdout)
    assert {result["backend"] for result in results} == {"cpu"}
    assert [result for result in results if not result["passed"]] == []
    assert verified.returncode == 0


def test_an_unknown_instruction_set_is_refused_with_the_choices():
    refused = run(["-c", IN_USE], DLA_KERNELS_ISA="avx1024")
    assert refused.returncode != 0
    assert "expected baseline, x86-64-v3 or x86-64-v4, got 'avx1024'" in refused.stderr


def every_half(dtype):
    """Return all 65536 bit patterns, as one map."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    return bits.view(dtype).view(1, 1, 256, 256)


CONVERSIONS = """
import sys, torch
sys.path.insert(0, {root!r})
import dla_kernels as dla
from tests.test_isa import check_conversions
for dtype in (torch.bfloat16, torch.float16): check_conversions(dtype)
"""


def check_conversions(dtype):
    """Check that widening is exact and narrowing rounds as torch does, for every value there is."""
    x = every_half(dtype)
    (same,) = dla.rescale([x], torch.ones(1, 1, 1), backend="cpu")
    torch.testing.assert_close(same, x, rtol=0, atol=0, equal_nan=True)
    for d in (0.3, 1 + 2**-9, 1 + 2**-12, 2.0**-9, 3.0**9):
        (ours,) = dla.rescale([x], torch.full((1, 1, 1), d), backend="cpu")
        torch.testing.assert_close(ours, (x.float() * torch.tensor(d)).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_conversions_of_halves_are_exact_on_every_instruction_set(isa):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    checked = run(["-c", CONVERSIONS.format(root=root)], DLA_KERNELS_ISA=isa)
    assert checked.returncode == 0, checked.stderr
