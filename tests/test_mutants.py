"""Sources are changed on trial only where they run, by their own tests, and the table counts what came of it."""

import json
import os

import pytest

from . import guardian
from .mutants import __main__ as cli
from .mutants import affected, sites, trial

CPP = """\
// a comment: 1 + 2
#define DLA_N 3
template <class T, int N> const T* at(const Rows<T>& rows, int64_t i) {
  static_assert(N > 0, "N > 0");
  STD_CHECK(i < 4, "expected i < 4");
  return !rows.empty() && i + N < rows.size() ? &rows[i] : nullptr;
}
"""
PYTHON = '''\
"""A docstring: 1 + 2."""
def f(x: Tensor | None, *rest: int, twice: bool = False) -> Tensor | None:
    # a comment: 3 < 4
    if x is None or not rest:
        raise ValueError(f"expected {1 + 2}, got {len(rest)}")
    return x * -x if twice else x // 2
'''


def changes(text, found):
    return [(text[site.begin : site.end], site.new) for site in found]


def test_only_code_that_runs_is_changed_in_cpp():
    found = changes(CPP, sites.cpp_sites("a.h", CPP))
    assert found == [("<", "<="), ("4", "5"), ("!", ""), ("&&", "||"), ("+", "-"), ("<", "<=")]


def test_only_code_that_runs_is_changed_in_python():
    found = changes(PYTHON, sorted(sites.python_sites("a.py", PYTHON)))
    assert found == [
        ("False", "True"),
        ("is", "is not"),
        ("or", "and"),
        ("not ", ""),
        ("*", "/"),
        ("-", ""),
        ("//", "*"),
        ("2", "3"),
    ]
    for site in sites.python_sites("a.py", PYTHON):
        compile(site.changed(PYTHON), "a.py", "exec")


def test_a_site_is_named_by_the_line_around_it():
    site = next(sites.cpp_sites("a.h", CPP))
    assert site.told(CPP) == 'a.h: STD_CHECK(i [< -> <=] 4, "expected i < 4");'


@pytest.mark.parametrize("area", sites.AREAS)
def test_every_area_has_more_sites_than_are_tried(area):
    found = sites.all_sites()[area]
    assert len(set(found)) == len(found) > cli.SHARES[area]
    for site in found:
        text = (sites.ROOT / site.file).read_text()
        assert site.changed(text) != text


@pytest.mark.parametrize(
    ("file", "ops"),
    [
        ("csrc/cpu/gap.cpp", {"gap"}),
        ("triton_ops/cells/activation.py", set(affected.OPS)),
        ("csrc/cpu/attend.cpp", {"attend", "base_step"}),
        ("csrc/cpu/recurrence.h", {"scan", "refresh", "layer_update", "recalibrate", "light_step", "base_step"}),
        ("csrc/cpu/microkernels/simd.h", set(affected.OPS)),
        ("csrc/cuda/scan.cuh", {"scan", "base_step"}),
        ("csrc/cuda/plan.h", set(affected.OPS)),
        ("csrc/cuda/planner.h", {"scan", "refresh", "layer_update", "recalibrate", "light_step", "base_step"}),
        ("triton_ops/norm_add.py", {"norm_add"}),
        ("dla_kernels/ops/autograd.py", set(affected.OPS)),
    ],
)
def test_a_source_is_traced_to_the_ops_made_of_it(file, ops):
    assert affected.ops_of(file) == ops


def test_the_seed_decides_what_is_tried():
    assert cli.drawn(1) == cli.drawn(1) != cli.drawn(2)


def rows(*verdicts):
    return [{"site": f"csrc/cpu/mix.cpp: {i}", "verdict": v, "test": "", "seed": 0} for i, v in enumerate(verdicts)]


def test_the_table_counts_changes_that_compile_to_other_machine_code():
    fast, full, none = trial.KILLED_FAST, trial.KILLED_FULL, trial.SURVIVED
    table = cli.table(rows(fast, fast, fast, full, none, trial.SAME_CODE, trial.STILLBORN))
    assert "| csrc/cpu | 5 | 3 | 1 | 1 | 1 |" in table
    assert "| all | 5 | 3 | 1 | 1 | 1 |" in table
    assert "The fast tier kills 75.0 % of what the full run kills." in table


def test_the_table_claims_no_share_while_changes_are_undecided():
    table = cli.table(rows(trial.KILLED_FAST, trial.UNDECIDED))
    assert "%" not in table
    assert "1 changes that the fast tier passes have not been put before the rest" in table


def test_what_no_test_noticed_is_told_with_the_reason():
    known, why = next(iter(cli.HARMLESS.items()))
    told = cli.table([*rows(trial.KILLED_FAST, trial.SURVIVED), rows(trial.SURVIVED)[0] | {"site": known}])
    assert "- `csrc/cpu/mix.cpp: 1`<br>Not known yet." in told
    assert f"- `{known}`<br>{why}" in told
    assert "noticed" not in cli.table(rows(trial.KILLED_FAST, trial.UNDECIDED))


def test_what_is_known_to_be_harmless_is_put_before_no_further_test(tmp_path):
    kept, (harmless, *_) = tmp_path / "tried.jsonl", cli.HARMLESS
    tried = [{"site": s, "verdict": trial.UNDECIDED, "test": "", "seed": 0} for s in (harmless, "another")]
    kept.write_text("".join(json.dumps(row) + "\n" for row in tried))
    assert [row["verdict"] for row in cli.read(kept)] == [trial.SURVIVED, trial.UNDECIDED]


def test_every_harmless_change_was_tried_and_passed_the_fast_tier():
    passed = {row["site"] for row in cli.read(cli.WRITTEN) if row["verdict"] in (trial.UNDECIDED, trial.SURVIVED)}
    assert set(cli.HARMLESS) <= passed


def test_a_test_that_fails_with_nothing_changed_kills_nothing(tmp_path, monkeypatch):
    """It is run by itself once, and asked no more; the next one that fails is put to the proof in its turn."""
    tree, alone = trial.Tree(tmp_path), []

    def tests(tree, *options):
        alone.append(options[-1])
        return (["always"] if options[-1] == "always" else []), int(options[-1] == "always")

    def noticing(tree, *_):
        return trial.KILLED_FAST, next(test for test in ("always", "in time (status -6)") if test not in tree.failing)

    monkeypatch.setattr(trial.Tree, "tests", tests)
    monkeypatch.setattr(trial, "verdict_of_any_test", noticing)
    for _ in range(2):
        assert trial.verdict(tree, None, "fast", 1) == (trial.KILLED_FAST, "in time (status -6)")
    assert alone == ["always", "in time"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Every change is tried once, and a second run finds nothing left to try."""
    tried = []
    monkeypatch.setattr(trial.Tree, "make", lambda tree: None)

    monkeypatch.setenv(guardian.MARK, "this run's")

    def verdict(tree, site, tier, seed):
        if len(tried) == 20:
            tried.append("interrupted")
            raise KeyboardInterrupt
        tried.append(site)
        return trial.KILLED_FAST, "a test"

    monkeypatch.setattr(trial, "verdict", verdict)
    monkeypatch.setattr(cli, "WRITTEN", tmp_path / "nothing was tried before")
    kept = tmp_path / "tried.jsonl"
    command = ["mutants", "--count", "60", "--jobs", "1", "--kept", str(kept), "--folder", str(tmp_path)]
    for code in ("stopped by KeyboardInterrupt()", 0, 0):
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == code
    sites_tried = [json.loads(line)["site"] for line in kept.read_text().splitlines()]
    assert len(set(sites_tried)) == len(sites_tried) == 60 == len(tried) - 1
    assert "| all | 60 | 60 | 0 | 0 | 0 |" in capsys.readouterr().out
    assert os.environ[guardian.MARK] == "this run's"


def test_the_page_has_the_table_of_what_was_tried():
    written = cli.PAGE.read_text()
    assert written == cli.page_with(cli.table(cli.read(cli.WRITTEN))), "run: python -m tests.mutants --table --write"


def test_the_page_says_of_each_survivor_why_it_changes_nothing():
    survivors = [row["site"] for row in cli.read(cli.WRITTEN) if row["verdict"] == trial.SURVIVED]
    assert [site for site in survivors if f"`{site}`" not in cli.PAGE.read_text()] == []
    assert set(survivors) <= set(cli.HARMLESS), "give it a test, or a line in tests/mutants/harmless.json"
