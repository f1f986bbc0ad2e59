"""Nothing is compiled that is on record; on record is what these sources and this compiler gave, if without a fault."""

import json
import re
import shutil
import sys
from types import SimpleNamespace
from typing import NamedTuple

import cuda_resources
import machine_code
import pytest
import records
import triton_resources

from .compilers import FOLDER, Build

SOURCES = {
    cuda_resources: ("csrc/cuda/scan.cuh", "csrc/cuda/scan.cu", "csrc/cells/dsu.h", "csrc/half.h"),
    triton_resources: ("triton_ops/scan.py", "triton_ops/cells/dsu.py", "triton_ops/launch.py"),
}
FINE = {
    cuda_resources: cuda_resources.Resources("scan", "fp32", 90, 64, 0),
    triton_resources: triton_resources.Resources("sm_90", "scan", "rnn dense", "float32", 64, 0, 0),
}
FAULTY = {
    cuda_resources: FINE[cuda_resources]._replace(stack=cuda_resources.FRAME + 8),
    triton_resources: FINE[triton_resources]._replace(spilled=8),
}


LOOP = machine_code.Counts("pool planes", 90, 100, 4, 64, 0, 0, 0, 0, 0)


@pytest.fixture(params=SOURCES, ids=lambda tool: tool.__name__)
def tool(request):
    return request.param


# ---- digests ----


@pytest.fixture
def copy(tool, tmp_path):
    """Return a copy of all that the tool compiles."""
    for folder in ("csrc", "triton_ops", "dla_kernels"):
        shutil.copytree(records.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(records.ROOT / "CMakeLists.txt", tmp_path)
    return tmp_path


def test_a_byte_of_any_source_changes_the_digest(tool, copy):
    seen = {tool.digest(copy)}
    assert seen == {tool.digest()}, "it is of what the sources hold, not of where they lie"
    for source in SOURCES[tool]:
        with (copy / source).open("a") as file:
            file.write("\n")
        assert tool.digest(copy) not in seen, source
        seen.add(tool.digest(copy))


def test_another_name_of_a_source_changes_the_digest(tool, copy):
    source = copy / SOURCES[tool][0]
    source.rename(source.with_stem("other"))
    assert tool.digest(copy) != tool.digest()


def test_a_file_that_is_not_compiled_leaves_the_digest_unchanged(tool, copy):
    for other in ("csrc/cpu/scan.cpp", "csrc/cuda/scan.cpp", "dla_kernels/verify.py"):
        (copy / other).write_text("")
    assert tool.digest(copy) == tool.digest()


@pytest.mark.parametrize("tool", [cuda_resources], indirect=True)
def test_flags_and_architectures_change_the_digest(copy, monkeypatch):
    seen = {cuda_resources.digest(copy)}
    rules = copy / "CMakeLists.txt"
    for old, new in (("--threads 2", "--threads 2 -lineinfo"), ("CUDA_STANDARD 17", "CUDA_STANDARD 20")):
        rules.write_text(rules.read_text().replace(old, new))
        assert cuda_resources.digest(copy) not in seen, old
        seen.add(cuda_resources.digest(copy))
    rules.write_text(rules.read_text().replace("csrc/cpu/scan.cpp", "csrc/cpu/scans.cpp"))
    assert cuda_resources.digest(copy) in seen, "the CPU's files are no rule of nvcc's"
    monkeypatch.setattr(cuda_resources, "ARCHS", (90,))
    assert cuda_resources.digest(copy) not in seen


# ---- records ----


def test_a_record_is_taken_only_for_its_sources_and_its_compiler():
    record = records.Record("abc", "13.0", [])
    assert record.is_of("abc", "13.0") and record.is_of("abc", None)
    assert not record.is_of("abd", "13.0") and not record.is_of("abc", "13.1") and not record.is_of("abd", None)


@pytest.fixture
def write(tool, tmp_path, monkeypatch):
    """Return a function that runs `--write`, of rows that no compiler has to find, into a folder of its own, and
    returns what it wrote."""
    monkeypatch.setattr(records, "PAGE", shutil.copy(records.PAGE, tmp_path / "page.md"))
    monkeypatch.setattr(tool, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(machine_code, "RECORD", tmp_path / "loops.json")
    monkeypatch.setattr(machine_code, "measure", lambda _: [LOOP])
    monkeypatch.setattr(tool, "version", lambda: "1.0")

    def run(rows, *options):
        monkeypatch.setattr(tool, "compile_all", lambda *_: rows)
        monkeypatch.setattr(sys, "argv", ["tool", "--write", *options])
        tool.main()
        return records.read(tool.RECORD, tool.Resources)

    return run


def test_write_records_what_was_found(tool, write):
    assert write([FINE[tool]])[:3] == (tool.digest(), "1.0", [FINE[tool]])


@pytest.mark.parametrize("tool", [cuda_resources], indirect=True)
def test_loops_that_were_not_compiled_again_stay_on_record(tmp_path, write):
    compiled, other = LOOP._replace(instructions=1), LOOP._replace(loop="step back")
    records.Record("abc", "1.0", [compiled, other]).write(tmp_path / "loops.json")
    write([FINE[cuda_resources]])
    written = records.read(tmp_path / "loops.json", machine_code.Counts)
    assert written[:3] == (cuda_resources.digest(), "1.0", [LOOP, other])
    assert machine_code.section(written) in records.PAGE.read_text()


@pytest.mark.parametrize("tool", [cuda_resources], indirect=True)
def test_write_refuses_loops_that_outgrow_their_limits(tmp_path, monkeypatch, write):
    monkeypatch.setattr(machine_code, "measure", lambda _: [LOOP._replace(fences=1)])
    with pytest.raises(SystemExit, match="pool planes, sm_90: fences 1, allowed at most 0"):
        write([FINE[cuda_resources]])
    assert not cuda_resources.RECORD.exists() and not (tmp_path / "loops.json").exists()


def test_only_sources_that_are_not_on_record_are_compiled_again(tmp_path, monkeypatch, capsys):
    row, compiled = FINE[cuda_resources], []

    def compile_all(_, archs, sources):
        compiled.append(sources)
        return [row]

    monkeypatch.setattr(cuda_resources, "compile_all", compile_all)
    monkeypatch.setattr(cuda_resources, "RECORD", tmp_path / "record.json")
    on_record = [row._replace(registers=1), row._replace(kernel="gap"), row._replace(kernel="gone")]
    known = cuda_resources.parts() | {"scan.cu": "another"}
    records.Record("abc", "1.0", on_record, known).write(tmp_path / "record.json")

    def rows(version, *options):
        monkeypatch.setattr(cuda_resources, "version", lambda: version)
        monkeypatch.setattr(sys, "argv", ["tool", "--json", "--archs", "90", *options])
        cuda_resources.main()
        return [cuda_resources.Resources(*values) for values in json.loads(capsys.readouterr().out)]

    assert rows("1.0") == [row._replace(kernel="gap"), row]
    assert rows("1.1") == rows("1.0", "--all") == [row], "of another compiler, or if asked for, no row is kept"
    assert compiled == [["scan.cu"], None, None]


def test_write_refuses_faults(tool, write):
    page = records.PAGE.read_text()
    with pytest.raises(SystemExit, match=re.escape(str(FAULTY[tool]))):
        write([FINE[tool], FAULTY[tool]])
    assert not tool.RECORD.exists() and records.PAGE.read_text() == page


def test_write_refuses_sources_that_change_meanwhile(tool, write, monkeypatch):
    monkeypatch.setattr(tool, "digest", iter(["abc", "abd"]).__next__)
    with pytest.raises(SystemExit, match="meanwhile"):
        write([])
    assert not tool.RECORD.exists()


def test_write_refuses_to_record_fewer_than_all_chips(tool, write, capsys):
    one = {cuda_resources: ("--archs", "90"), triton_resources: ("--targets", "sm_90")}
    with pytest.raises(SystemExit):
        write([], *one[tool])
    assert "--write is for all" in capsys.readouterr().err


def test_without_a_file_nothing_is_on_record(tmp_path):
    assert not records.read(tmp_path / "record.json", tuple).is_of("abc", None)


# ---- what the tests make of records ----


class Row(NamedTuple):
    chip: str


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return a maker of builds whose tool finds a row for each chip; the record is of sources `abc`, compiler 13.0."""
    script, record = tmp_path / "finds.py", tmp_path / "record.json"
    script.write_text("import json, sys\nprint(json.dumps([[chip] for chip in sys.argv[3:]]))\n")
    records.Record("abc", "13.0", [Row("recorded")]).write(record)
    monkeypatch.setenv(FOLDER, str(tmp_path / "builds"))
    (tmp_path / "builds").mkdir()

    def of(digest, version):
        says = {"digest": lambda: digest, "version": lambda: version}
        finds = SimpleNamespace(__file__=str(script), RECORD=record, Resources=Row, **says)
        return Build(finds, "--chips", "xy", "x")

    return of


@pytest.mark.parametrize("tier", ("fast", "rest", "full"))
@pytest.mark.parametrize("version", ("13.0", None))
def test_sources_on_record_are_not_compiled(build, tier, version):
    known = build("abc", version)
    known.start(tier)
    assert known.rows(tier) == [Row("recorded")] and known.chips(tier) == ("x", "y")
    assert not known.folder.exists()
    known.check_record(tier)


@pytest.mark.parametrize("tier, chips", (("fast", "x"), ("rest", "x"), ("full", "xy")))
@pytest.mark.parametrize("digest, version", (("abd", "13.0"), ("abc", "13.1")))
def test_sources_not_on_record_are_compiled_for_one_chip_or_in_the_full_run_for_all(
    build, tier, chips, digest, version
):
    new = build(digest, version)
    new.start(tier)
    assert new.folder.exists()
    assert new.rows(tier) == [Row(chip) for chip in new.chips(tier)] == [Row(chip) for chip in chips]


def test_without_a_compiler_sources_not_on_record_are_skipped(build):
    new = build("abd", None)
    new.start("full")
    assert not new.folder.exists()
    with pytest.raises(pytest.skip.Exception, match="no compiler"):
        new.rows("full")


def test_a_stale_record_is_told_and_fails_the_full_run_where_nothing_can_be_compiled(build):
    for version in ("13.0", None):
        for tier in ("fast", "rest", "full"):
            outcome = pytest.fail if version is None and tier != "fast" else pytest.skip
            with pytest.raises(outcome.Exception, match=r"run: python tools/finds\.py --write"):
                build("abd", version).check_record(tier)
