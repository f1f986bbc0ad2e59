"""The Triton kernels compile for chips that are not here; none spills, none wants more shared memory than there is, and
what streams maps keeps enough on its way."""

import pytest
import records
import streams
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
    of_maps = {"gate_gradient", "light_step_filters", "light_step_tap_sums", "light_step_maps_bwd"}
    of_maps |= {"shown_gradient"}
    of_cells = {"forward_phase", "backward_phase", "squeeze", "squeeze_bwd", "taps", "taps_bwd"}
    of_cells |= {"light_scan", "light_scan_bwd"}
    expected = {*operators, *of_maps, *of_cells, "weight_gradients", "sums", "moments", "norm_sums"}
    for target in BUILD.chips(pytestconfig.option.tier):
        assert {r.kernel for r in resources if r.target == target} == expected, target


def test_kernels_were_compiled_for_every_dtype_and_kind_of_cell(resources):
    assert {r.dtype for r in resources} == set(triton_resources.MAP_DTYPES)
    more = triton_resources.RECALIBRATING + triton_resources.LIGHT
    assert {r.cell for r in resources} == {"", *triton_resources.KINDS, *more}


def test_no_kernel_spills_or_wants_more_shared_memory_than_there_is(resources):
    assert triton_resources.faults(resources) == []


def test_the_record_is_of_these_sources(pytestconfig):
    BUILD.check_record(pytestconfig.option.tier)


def test_the_page_has_a_row_for_every_kernel_and_dtype(resources):
    page = records.PAGE.read_text()
    for kernel, dtype in {(r.kernel, r.dtype) for r in resources}:
        assert f"| {kernel} | {dtype} |" in page, "run: python tools/triton_resources.py --write"


def test_spills_and_too_much_shared_memory_are_faults():
    some = triton_resources.Resources("gfx942", "scan", "rnn dense", "float32", 64, 0, 1024)
    assert triton_resources.faults([some]) == []
    assert triton_resources.faults([some._replace(spilled=8)])
    assert triton_resources.faults([some._replace(shared=65 << 10)])


def test_a_kernel_that_streams_with_little_on_its_way_is_a_fault():
    some = triton_resources.Resources("sm_90", "gap", "", "bfloat16", 56, 0, 4096, widest=16, flight=32)
    assert triton_resources.faults([some]) == []
    assert triton_resources.faults([some._replace(flight=31)])
    assert triton_resources.faults([some._replace(widest=2, flight=10)]) == []
    assert triton_resources.faults([some._replace(widest=2, flight=9)])
    assert triton_resources.faults([some._replace(kernel="scan", widest=0, flight=0)]) == []
    assert triton_resources.faults([some._replace(kernel="light_step_filters", flight=16)]) == []
    assert triton_resources.faults([some._replace(kernel="light_step_filters", flight=15)])


def test_every_kernel_that_streams_was_looked_into(resources):
    seen = {(r.target, r.kernel) for r in resources if r.flight}
    assert seen == {
        (r.target, r.kernel) for r in resources if r.kernel in triton_resources.STREAMS + triton_resources.FILTERS
    }


AMD = """
.LBB0_1:                                ; =>This Loop Header: Depth=1
	global_load_dword v1, v[2:3], off
	s_waitcnt vmcnt(0)
.LBB0_2:                                ;   in Loop: Header=BB0_3 Depth=2
	s_waitcnt vmcnt(0)
	v_add_f32 v1, v1, v1
	s_cbranch_scc0 .LBB0_1
.LBB0_3:                                ; %.lr.ph
                                        ;   Parent Loop BB0_1 Depth=1
                                        ; =>  This Inner Loop Header: Depth=2
	global_load_dwordx4 v[4:7], v[2:3], off
.LBB0_4:                                ;   in Loop: Header=BB0_3 Depth=2
	global_load_dwordx2 v[8:9], v[2:3], off
	s_branch .LBB0_2
.LBB0_5:                                ; %exit
	global_load_dword v1, v[2:3], off
"""


def test_what_a_loop_of_an_amd_chip_asks_for_is_counted_round_its_end():
    assert list(streams.amd_loops(AMD)) == [streams.Stream(widest=16, ahead=24, instructions=6)]
    waiting = AMD.replace("	global_load_dwordx2", "	s_waitcnt vmcnt(0)\n	global_load_dwordx2")
    assert list(streams.amd_loops(waiting)) == [streams.Stream(widest=16, ahead=16, instructions=7)]


def test_how_many_programs_a_processor_has_room_for():
    def room(registers, threads, shared, of_chip=streams.NVIDIA):
        return streams.programs_at_once(registers, threads, shared, of_chip, 100 << 10)

    assert room(64, 256, 0) == 4  # registers
    assert room(57, 256, 0) == 4  # which are given by eights
    assert room(16, 256, 0) == 8  # threads
    assert room(16, 256, 40 << 10) == 2  # shared memory
    assert room(64, 256, 0, streams.AMD) == 8
