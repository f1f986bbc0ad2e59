"""The machine code of hot loops keeps within its limits, and the tool that reads it sees what is wrong. No GPU is
needed, and nvcc only where the sources are not those on record."""

from pathlib import Path

import cuda_resources
import machine_code
import pytest
import records
from machine_code import LOOPS, Counts, Loop

from .compilers import Build

pytestmark = pytest.mark.slow
BUILD = Build(cuda_resources, "--archs", cuda_resources.ARCHS, 90, "--folder")


def record():
    return records.read(machine_code.RECORD, Counts)


@pytest.fixture(scope="module")
def resources(pytestconfig):
    """Return the counts of these sources; of those that are not on record, as they are compiled for test_cuda_build.py
    too."""
    BUILD.rows(pytestconfig.option.tier)
    known = record()
    return known.rows if BUILD.recorded else machine_code.record_of(BUILD.folder / "built", BUILD.record, known).rows


def test_every_loop_keeps_within_its_limits(resources):
    assert {counts.loop for counts in resources} == {loop.name for loop in LOOPS}
    assert machine_code.faults(resources) == []


def test_the_record_is_of_every_chip_and_of_the_sources_whose_registers_are_on_record():
    assert record().digest == BUILD.record.digest
    assert {(c.loop, c.arch) for c in record().rows} == {(loop.name, a) for loop in LOOPS for a in machine_code.ARCHS}


def test_the_table_in_the_docs_is_the_record():
    page = records.PAGE.read_text()
    assert machine_code.section(record()) in page, "run: python tools/cuda_resources.py --write"


def test_every_loop_is_where_it_is_looked_for():
    for loop in LOOPS:
        lines = (records.ROOT / "csrc/cuda" / loop.file).read_text().splitlines()
        assert lines[machine_code.line_of(loop) - 1].strip().startswith(loop.begins)


# ---- listings of which the answer is known ----

SOURCE = """
template <class T>
DLA_DEVICE void other(T* p) {
  for (int i = 0; i < 4; ++i) p[i] = 0;
}
template <class T>
DLA_DEVICE void sums(const T* p) {
  for (int i = 0; i < 4; ++i) add(p[i]);
}
"""
OF_SUMS = Loop("sums", "kernel", "sums.cuh", "sums", "for (int i = 0;", "four numbers", {})

# A loop at line 8 of sums.cuh, called from line 20 of kernel.cuh, around one whose end is at line 70 of other.cuh.
LISTING = """
.text.kernel:
	//## File "/csrc/cuda/kernel.cuh", line 3
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
	//## File "/csrc/cuda/sums.cuh", line 8 inlined at "/csrc/cuda/kernel.cuh", line 20
	//## File "/csrc/cuda/kernel.cuh", line 20
@BODY@
        /*0200*/              @!P0 BRA `(.L_x_1) ;
        /*0210*/                   EXIT ;
"""


def counts_of(*body, loop=OF_SUMS, folder):
    (folder / "csrc/cuda").mkdir(parents=True)
    (folder / "csrc/cuda/sums.cuh").write_text(SOURCE)
    lines = [f"        /*{16 * i:04x}*/  {text} ;" if text[0] != "." else text for i, text in enumerate(body, 1)]
    listing = LISTING.replace("@BODY@", "\n".join(lines))
    return machine_code.measured(loop, 90, machine_code.functions(listing)["kernel"], folder)


def test_loads_that_are_asked_for_together(tmp_path):
    body = ["LDG.E.128 R4, desc[UR4][R2.64]", "LDG.E.U16 R8, desc[UR4][R2.64+0x10]", "IADD3 R2, R2, 0x20, RZ"]
    body += ["FADD R9, R4, R5", "LDG.E R10, desc[UR4][R2.64]", "FADD R9, R9, R10"]
    counts = counts_of(*body, folder=tmp_path)
    assert counts == Counts("sums", 90, len(body) + 1, 3, 18, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "use", ["FADD R9, R7, RZ", "@P1 FADD R9, R9, R7", "STG.E desc[UR4][R12.64], R7", "LDS R9, [R7]"]
)
def test_a_load_that_is_waited_for_ends_what_is_asked_for_ahead(tmp_path, use):
    body = ["LDG.E.128 R4, desc[UR4][R2.64]", use, "LDG.E.128 R16, desc[UR4][R2.64]"]
    assert counts_of(*body, folder=tmp_path).bytes_ahead == 16


def test_a_register_that_is_written_anew_is_not_used(tmp_path):
    body = ["LDG.E.64 R4, desc[UR4][R2.64]", "MOV R6, R7", "LDG.E.64 R8, desc[UR4][R2.64]"]
    assert counts_of(*body, folder=tmp_path).bytes_ahead == 16


def test_what_is_wrong_with_a_loop_is_seen(tmp_path, monkeypatch):
    """As the first kernels were: each load behind a branch, an integer division, a fence of all memory, addresses that
    may be of any memory."""
    body = ["@P1 BRA `(.L_x_2)", "LDG.E.U16 R4, desc[UR4][R2.64]", "FADD R9, R4, R9", ".L_x_2:", "@P2 BRA `(.L_x_3)"]
    body += ["LD.E R5, desc[UR4][R2.64]", "FADD R9, R5, R9", ".L_x_3:", "I2F.RP R6, R7", "MUFU.RCP R6, R6"]
    body += ["MEMBAR.ALL.GPU", "CCTL.IVALL", "STL [R1+0x8], R9", "LDL R9, [R1+0x8]", "@!P4 ST.E desc[UR4][R2.64], R9"]
    limits = {
        "instructions": 9,
        "bytes_ahead": 16,
        "generic": 0,
        "divisions": 0,
        "fences": 0,
        "branches": 0,
        "spills": 0,
    }
    strict = OF_SUMS._replace(limits=limits)
    counts = counts_of(*body, loop=strict, folder=tmp_path)
    assert counts == Counts("sums", 90, 14, 2, 2, 2, 1, 2, 1, 2)
    monkeypatch.setattr(machine_code, "LOOPS", [strict])
    assert machine_code.faults([counts]) == [
        "sums, sm_90: instructions 14, allowed at most 9",
        "sums, sm_90: bytes_ahead 2, allowed at least 16",
        "sums, sm_90: generic 2, allowed at most 0",
        "sums, sm_90: divisions 1, allowed at most 0",
        "sums, sm_90: fences 2, allowed at most 0",
        "sums, sm_90: branches 1, allowed at most 0",
        "sums, sm_90: spills 2, allowed at most 0",
    ]


def test_the_first_stencil_would_be_refused():
    """Of its two pixels each load stood behind a branch, and was waited for before the next."""
    function = machine_code.functions((Path(__file__).parent / "first_stencil.sass").read_text())["light_step_kernel"]
    (body,) = function.loops_of(("stencil.cuh", 104))
    counts = machine_code.count("filter of two maps", 90, body)
    assert (counts.instructions, counts.loads, counts.bytes_ahead) == (265, 12, 4)
    assert machine_code.faults([counts]) == [
        "filter of two maps, sm_90: bytes_ahead 4, allowed at least 96",
        "filter of two maps, sm_90: branches 3, allowed at most 0",
    ]


def test_of_variants_the_one_with_the_widest_loads_counts_and_loops_inside_are_part_of_it(tmp_path):
    narrow = LISTING.replace("@BODY@", "        /*0010*/  LDG.E R4, desc[UR4][R2.64] ;\n" * 5)
    here = LISTING[LISTING.index("\t//## File", LISTING.index(".L_x_1")) : LISTING.index("@BODY@")]
    inner = "        /*0020*/  MOV R2, R3 ;\n.L_x_9:\n"
    inner += '\t//## File "/csrc/cuda/other.cuh", line 70 inlined at "/csrc/cuda/sums.cuh", line 8\n' + here
    inner += "        /*0030*/  LDG.E.128 R4, desc[UR4][R2.64] ;\n        /*0040*/  BRA `(.L_x_9) ;\n" + here
    wide = LISTING.replace("@BODY@", inner).partition(".text.kernel:\n")[2].replace("L_x_1", "L_x_5")
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "csrc/cuda/sums.cuh").write_text(SOURCE)
    function = machine_code.functions(narrow + wide)["kernel"]
    assert sorted(map(len, function.loops())) == [2, 4, 6]
    assert machine_code.measured(OF_SUMS, 90, function, tmp_path).instructions == 4


def test_code_at_the_end_that_leads_back_into_a_loop_is_no_loop():
    body = ["MOV R2, R3", "@P1 BRA `(.L_x_8)", ".L_x_7:", "LDG.E.128 R4, desc[UR4][R2.64]"]
    listing = LISTING.replace("@BODY@", "\n".join(t if t[0] == "." else f"        /*0020*/  {t} ;" for t in body))
    listing += ".L_x_8:\n        /*0220*/  MOV R9, R9 ;\n        /*0230*/  BRA `(.L_x_7) ;\n"
    (loop,) = machine_code.functions(listing)["kernel"].loops()
    assert len(loop) == 4


def test_a_loop_that_is_gone_is_an_error(tmp_path):
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "csrc/cuda/sums.cuh").write_text(SOURCE)
    with pytest.raises(LookupError, match=r"no loop of sums\.cuh, line 8"):
        machine_code.measured(OF_SUMS, 90, machine_code.Function([], {}), tmp_path)
    with pytest.raises(LookupError, match="while"):
        machine_code.line_of(OF_SUMS._replace(begins="while"), tmp_path)
