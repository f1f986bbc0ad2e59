"""docs/ladder: each rung is right, needs every barrier that it has, compiles for a GPU, and is on the page."""

import ctypes
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from toolkit import find_nvcc

import dla_kernels as dla

from .cases import Shape, maps, weights
from .tolerances import allowed_error, error, largest

ROOT = Path(__file__).parent.parent
LADDER = ROOT / "docs" / "ladder"
RUNGS = sorted(LADDER.glob("*.cu"))
SEEDS = 2  # schedules under which a rung is to be right
MORE_SEEDS = 10  # under one of which a rung is to be wrong without a barrier

INCLUDES = "".join(f'#include "{rung.name}"\n' for rung in RUNGS)
FUNCTIONS = ", ".join(f"rung{i + 1}::layer_update" for i in range(len(RUNGS)))
# All rungs on the shim. Any one barrier can be left out: they are numbered as they stand, from 0.
LIBRARY = f"""
#include "common.h"

static int left_out;
constexpr int kBefore = __COUNTER__ + 1;
#define block_barrier() (left_out == __COUNTER__ - kBefore ? void() : dla::cuda::block_barrier())
#define cluster_barrier() (left_out == __COUNTER__ - kBefore ? void() : dla::cuda::cluster_barrier())
{INCLUDES}
extern "C" int barriers() {{ return __COUNTER__ - kBefore; }}
extern "C" const char* layer_update(int rung, const ladder::Args& args, int seed, int barrier) {{
  const char* (*const rungs[])(const ladder::Args&) = {{{FUNCTIONS}}};
  simt::seed(seed);
  left_out = barrier;
  return rungs[rung](args);
}}
"""

SHAPES = [
    Shape.parse(name)
    for name in (
        "T1-B1-C1-HW1x1",
        "T2-B3-C7-R3-HW2x3",  # more samples than blocks of rung 4; planes that do not begin on 16 bytes
        "T4-B2-C33-R5-HW4x4",
        "T3-B3-C20-R40-HW13x12",  # a bottleneck wider than a warp; more vectors in a plane than a warp has lanes
        "T2-B1-C300-R9-HW5x7",  # more channels than a block has threads
    )
]
SMALL = SHAPES[1]
MANY = Shape.parse("T1-B260-C3-R2-HW1x2")  # more samples than a block of the first rung has threads
CASES = [*((rung, shape) for rung in range(len(RUNGS)) for shape in SHAPES), (0, MANY)]


class Args(ctypes.Structure):
    """ladder::Args of docs/ladder/common.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("T", "B", "C", "R", "HW")] + [
        (name, ctypes.c_void_p) for name in ("x", "w1", "w2", "b2", "out", "c", "y", "h", "u")
    ]


class Case(NamedTuple):
    """Inputs in float32, and what comes of them: exactly, and how far plain PyTorch is off."""

    shape: Shape
    x: torch.Tensor  # [T, B, C, H, W]
    weights: dla.Joint
    exact: dict
    plain: dict


def plain_results(x, weights):
    """out [T, B, C, H, W], c and y [T, B, C], by the reference."""
    out, (c,) = dla.reference.layer_update(list(x), weights, cell=dla.PAPER_DSU)
    return {"out": torch.stack(out), "c": c, "y": dla.reference.gap(list(x))}


def case_of(shape):
    x, w = torch.stack(maps(shape, torch.float32)), weights(dla.PAPER_DSU, shape, torch.float32)
    exact = plain_results(x.double(), dla.Joint(*(weight.double() for weight in w)))
    return Case(shape, x, w, exact, plain_results(x, w))


def compiled(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    source = folder / "ladder.cpp"
    source.write_text(LIBRARY)
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror", "-shared", "-fPIC"]
    compiled("g++", *flags, "-DDLA_SIMT", f"-I{LADDER}", f"-I{ROOT}/tests/simt", source, "-o", folder / "ladder.so")
    found = ctypes.CDLL(str(folder / "ladder.so"))
    found.layer_update.restype = ctypes.c_char_p
    return found


def climb(library, rung, case, seed, left_out=-1):
    """What a rung writes, under the schedules of a seed, without one of its barriers."""
    x, w, shape = case.x, case.weights, case.shape
    results = {name: torch.full_like(exact, torch.nan, dtype=torch.float32) for name, exact in case.exact.items()}
    h, u = (torch.full((shape.B, n), torch.nan) for n in (shape.C, shape.R))
    arrays = [x, *w, results["out"], results["c"], results["y"], h, u]
    sizes = shape.T, shape.B, shape.C, shape.R, x[0, 0, 0].numel()
    args = Args(*sizes, *(array.data_ptr() for array in arrays))
    went_wrong = library.layer_update(rung, ctypes.byref(args), seed, left_out)
    assert went_wrong is None, went_wrong.decode()
    return results


def faults(results, case):
    """What is further off than tests/tolerances.py allows, NaN included."""
    found = []
    for name, exact in case.exact.items():
        off, plainly = error(results[name], exact), error(case.plain[name], exact)
        allowed = allowed_error(torch.float32, plainly, largest(exact), case.shape.longest_sum)
        if not off <= allowed:
            found.append(f"{name}: off by {off:.3g}, {allowed:.3g} allowed")
    return found


@pytest.mark.parametrize("rung, shape", CASES, ids=lambda x: RUNGS[x].stem if isinstance(x, int) else str(x))
def test_a_rung_is_right(library, rung, shape):
    case = case_of(shape)
    for seed in range(SEEDS):
        assert faults(climb(library, rung, case, seed), case) == [], f"seed {seed}"


def test_a_barrier_that_is_left_out_is_missed(library):
    case = case_of(SMALL)
    sites = [
        (rung, f"{RUNGS[rung].name}: barrier {i + 1}")
        for rung in range(len(RUNGS))
        for i in range(RUNGS[rung].read_text().count("_barrier();"))
    ]
    assert len(sites) == library.barriers()
    needless = [
        name
        for number, (rung, name) in enumerate(sites)
        if not any(faults(climb(library, rung, case, seed, number), case) for seed in range(MORE_SEEDS))
    ]
    assert needless == []


@pytest.mark.slow
def test_nvcc_compiles_every_rung(tmp_path):
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc here")
    source = tmp_path / "ladder.cu"
    source.write_text(INCLUDES)
    flags = ["-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", "-Xptxas", "-O0", f"-I{LADDER}"]
    compiled(nvcc, *flags, "-c", source, "-o", tmp_path / "ladder.o")


def test_the_page_has_every_file_and_every_rung_is_short():
    page = (LADDER / "README.md").read_text()
    for file in LADDER.iterdir():
        assert file.suffix == ".md" or f"]({file.name})" in page, file.name
    for i, rung in enumerate(RUNGS):
        assert rung.name.startswith(f"{i + 1}_")
        assert rung.read_text().startswith(f"// Rung {i + 1}: ")
        assert len(rung.read_text().splitlines()) <= 120, rung.name
    for file in [*RUNGS, *LADDER.glob("*.h")]:
        for name in re.findall(r"\b(?:csrc|tests)/[\w/.]*\w", file.read_text()):
            assert (ROOT / name).exists(), f"{file.name} names {name}"
