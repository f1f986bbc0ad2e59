"""The Triton kernels compile for chips that are not here; none spills, none wants more shared memory than there is."""

import pytest
import records
import triton_resources

from .compilers import Build
from .test_house import QUESTIONS, SCHEMAS

pytestmark = pytest.mark.slow
# The tool compiles in a process of its own: this one interprets.
BUILD = Build(triton_resources, "--targets", triton_resources.TARGETS, "sm_90")


@pytest.fixture(scope="module")
def resources(pytestconfig):
    return BUILD.rows(pytestconfig.option.tier)


def test_every_kernel_was_compiled_for_every_chip(resources, pytestconfig):
    # The same kernels write in place.
    operators = [name for name in SCHEMAS if name not in QUESTIONS and not name.endswith("_")]
    expected = {*operators, "weight_gradients", "sums", "moments", "norm_sums"}
    for target in BUILD.chips(pytestconfig.option.tier):
        assert {r.kernel for r in resources if r.target == target} == expected, target


def test_kernels_were_compiled_for_every_dtype_and_kind_of_cell(resources):
    assert {r.dtype for r in resources} == set(triton_resources.MAP_DTYPES)
    assert {r.cell for r in resources} == {"", *triton_resources.KINDS}


def test_no_kernel_spills_or_wants_more_shared_memory_than_there_is(resources):
    assert triton_resources.faults(resources) == []


def test_the_record_is_of_these_sources(pytestconfig):
    BUILD.check_record(pytestconfig.option.tier)


def test_the_page_has_a_row_for_every_kernel_and_dtype(resources):
    page = records.PAGE.read_text()
    for kernel, dtype in {(r.kernel, r.dtype) for r in resources}:
        assert f"| {kernel} | {dtype} |" in page, "run: python tools/triton_resources.py --cells all --write"


def test_spills_and_too_much_shared_memory_are_faults():
    some = triton_resources.Resources("gfx942", "scan", "rnn dense", "float32", 64, 0, 1024)
    assert triton_resources.faults([some]) == []
    assert triton_resources.faults([some._replace(spilled=8)])
    assert triton_resources.faults([some._replace(shared=65 << 10)])
