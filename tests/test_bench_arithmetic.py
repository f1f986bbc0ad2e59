"""What stands between the clock and a table is right: order of calls, medians, spreads, ratios, bandwidths, peaks."""

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from bench import clock, common
from bench.common import Shape
from bench.devices import Cpu
from bench.model import scaling
from bench.ops import timing
from bench.report import plot, render

# A copy of S bytes, both ways, in 3 ms: 4 GB/s. Ours: 8 MB in 2.5 ms, 3.2 GB/s.
ROW = {
    "op": "mix",
    "name": "T3",
    "dtype": "fp32",
    "pass": "forward",
    "S": 6_000_000,
    "model": {"read": 6_000_000, "written": 2_000_000, "again": 9_000_000, "flops": 1},
    "ms": {"cpu": 2.5, "eager": 5.0, "compile": 4.0, "copy": 3.0},
    "iqr_ms": {"cpu": 0.1, "eager": 0.5, "compile": 0.25, "copy": 0.0},
    "calls": {"cpu": {"kernels": 1.0, "copies": 1.0}, "eager": {"kernels": 7.0, "copies": 0.0}},
    "peak_bytes": {"cpu": 2_500_000, "eager": 9_000_000},
    "notes": {"compile T3": "slow"},
}

# ---- tables ----


def test_bandwidth_is_bytes_over_time():
    assert (timing.gbs(ROW, "cpu"), timing.copy_gbs(ROW)) == (pytest.approx(3.2), pytest.approx(4.0))
    assert timing.copy_gbs({**ROW, "ms": {"cpu": 2.5}}) is None


def test_costs_of_a_row_are_in_the_units_of_the_table():
    """They are the spread in percent, the best peer's time over ours, GB/s and the share of a copy's, MB of ours and of
    eager, calls of both."""
    assert timing.costs_of(ROW, ["cpu"]) == ["4", "1.60x", "3.2", "0.80", "2.5", "9.0", "2 / 7"]
    alone = {**ROW, "ms": {"cpu": 2.5}, "calls": {}, "peak_bytes": {}}
    assert timing.costs_of(alone, ["cpu"]) == ["4", "-", "3.2", "-", "-", "-", "- / -"]
    assert timing.costs_of({**ROW, "ms": {"eager": 5.0}}, ["cpu"]) == ["-"] * 7


def test_the_faster_of_a_plain_and_a_captured_call_counts():
    row = {**ROW, "ms": {**ROW["ms"], "cpu graph": 1.0, "eager graph": 3.0}, "iqr_ms": {"cpu graph": 0.5}}
    assert timing.costs_of(row, ["cpu"])[:4] == ["50", "3.00x", "8.0", "2.00"]


def test_the_csv_has_a_line_for_each_candidate():
    header, body = timing.lines([ROW])
    assert [dict(zip(header[4:], line[4:])) for line in body] == [
        dict(zip(header[4:], line.split(",")))
        for line in (
            "cpu,2.5000,0.1000,3.20,0.800,2.50,2",
            "eager,5.0000,0.5000,1.60,0.400,9.00,7",
            "compile,4.0000,0.2500,2.00,0.500,,",
            "copy,3.0000,0.0000,4.00,1.000,,",
        )
    ]
    assert " ".join(header) == "op shape dtype pass candidate ms iqr_ms gbs share_of_copy peak_mb calls"
    assert {tuple(line[:4]) for line in body} == {("mix", "T3", "fp32", "forward")}


def test_the_report_has_a_line_for_each_row_and_its_notes():
    title, header, _, line, *rest = timing.report([ROW], ["cpu"]).splitlines()
    assert title == "mix, ms"
    costs = "ours +-% speedup GB/s of copy MB eager MB calls"
    assert " ".join(header.split()) == f"shape dtype pass cpu eager compile copy {costs}"
    assert " ".join(line.split()) == "T3 fp32 forward 2.500 5.000 4.000 3.000 4 1.60x 3.2 0.80 2.5 9.0 2 / 7"
    assert "mix T3 fp32 forward  compile T3  slow" in rest


# ---- statistics ----


def test_medians_and_spreads_are_those_of_quartiles():
    """Quartiles lie at a quarter and three quarters of n + 1 samples, in whatever order these came."""
    found = clock.medians_and_spreads({"odd": [8.0, 1.0, 16.0, 2.0, 4.0], "even": [1, 2, 3, 10], "one": [7.0]})
    assert found == {
        "ms": {"odd": 4.0, "even": 2.5, "one": 7.0},
        "iqr_ms": {"odd": 12 - 1.5, "even": 8.25 - 1.25, "one": 0.0},
    }


def test_medians_are_in_milliseconds():
    assert common.medians_ms({"ours": [0.25, 4.0, 0.5], "copy": [0.5, 0.25]}) == {"ours": 500.0, "copy": 375.0}


# ---- order of calls ----


class Candidates:
    """The candidates' calls note who was called, and move a clock by what each takes."""

    def __init__(self, **takes):
        self.takes, self.now, self.called = takes, 0.0, []

    def of(self, name, kind=None):
        def call():
            self.called.append(name)
            self.now += self.takes[kind or name]

        return call


def test_rounds_are_interleaved(monkeypatch):
    """Each candidate is called once in every round, after two calls to warm up; a time is of one call."""
    fake = Candidates(a=1.0, b=2.0)
    monkeypatch.setattr(common, "time", SimpleNamespace(perf_counter=lambda: fake.now))
    seconds = common.interleaved({name: fake.of(name) for name in "ab"}, rounds=3)
    assert "".join(fake.called) == "aabb" + 3 * "ab"
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3}


class Device(Cpu):
    """This device's clock is that of the candidates, in seconds."""

    def __init__(self, fake):
        self.fake, self.released = fake, 0

    def clock(self):
        return self.fake.now

    def release(self):
        self.released += 1


def test_sampled_rounds_are_interleaved_and_inputs_take_turns():
    """Each candidate has two calls to warm up, two by which to know how many fill 3 ms, then as many in each round."""
    fake = Candidates(a=1 / 1024, b=2 / 1024)
    built = [("a", lambda: [fake.of("a"), fake.of("A", "a")]), ("b", lambda: [fake.of("b", "b")])]
    notes = {}
    samples = clock.sampled(Device(fake), built, "forward", 3, 1e9, notes)
    assert "".join(fake.called) == "aAaA" + "bbbb" + "aAaA bb aAaA bb aAaA bb".replace(" ", "")
    assert samples == {"a": [1e3 / 1024] * 3, "b": [2e3 / 1024] * 3}
    assert notes == {}


def test_a_candidate_that_cannot_be_built_is_noted_and_left_out():
    def broken():
        raise ValueError("no\nsuch")

    fake, notes = Candidates(a=1.0), {}
    device = Device(fake)
    samples = clock.sampled(device, [("b", broken), ("a", lambda: [fake.of("a")])], "forward", 2, 1e9, notes)
    assert (samples, notes) == ({"a": [1000.0] * 2}, {"forward/b": "ValueError: no"})
    assert device.released == 2


def test_sampling_past_its_time_ends_after_five_rounds():
    fake = Candidates(a=1.0, b=1.0)
    built = [(name, lambda name=name: [fake.of(name)]) for name in "ab"]
    samples = clock.sampled(Device(fake), built, "forward", 9, -1.0, {})
    assert {name: len(times) for name, times in samples.items()} == {"a": 5, "b": 5}


# ---- memory ----


def test_peak_memory_is_the_most_that_a_call_holds_at_a_time():
    """What was held before the call does not count. 1 MiB is freed before 3 are taken, beside the 2 that stay."""
    before = torch.empty(1 << 20, dtype=torch.uint8)

    def call():
        first, second = (torch.empty(n << 20, dtype=torch.uint8) for n in (1, 2))
        del first
        return second, torch.empty(3 << 20, dtype=torch.uint8), before

    assert Cpu().peak_bytes(call) == 5 << 20


# ---- scaling ----


def test_the_floor_is_the_time_of_the_models_bytes_at_a_copys_bandwidth():
    """The model has 8 MB in one pass and 17 in two, and a copy runs at 4 GB/s."""
    assert scaling.floor_ms(ROW) == pytest.approx(2.0)
    assert scaling.floor_ms(ROW, "two passes") == pytest.approx(4.25)


def test_the_picture_draws_the_floor_and_the_times(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    kept, axes_of = [], plot.axes_of

    def watched(*args, **options):
        kept.append(axes_of(*args, **options))
        return kept[0]

    monkeypatch.setattr(plot, "axes_of", watched)
    monkeypatch.setattr(scaling, "AXES", {"T": (2, 4)})
    once = {**ROW, "axis": "T", "shape": Shape(2, 1, 1, 1, 1)._asdict()}
    twice = {**once, "shape": Shape(4, 1, 1, 1, 1)._asdict(), "ms": {**ROW["ms"], "cpu": 4.0, "copy": 6.0}}
    rows = [{**row, "pass": which} for row in (once, twice) for which in scaling.PASSES]
    scaling.picture(rows, tmp_path / "scaling.png")
    drawn = {line.get_label(): list(line.get_xydata().ravel()) for line in kept[0][1][0][0].lines}
    assert drawn.keys() == {"cpu", "eager", "compile", scaling.FLOOR}
    assert drawn["cpu"] == [2, 2.5, 4, 4.0]
    assert drawn[scaling.FLOOR] == pytest.approx([2, 2.0, 4, 4.0])


def test_every_committed_run_on_a_gpu_can_be_drawn(tmp_path):
    """Every candidate that was measured has a colour."""
    pytest.importorskip("matplotlib")
    runs = [json.loads(file.read_text()) for file in common.LATEST.parent.glob("*/bench.json")]
    on_gpus = [run["rows"] for run in runs if "layers" in run]
    assert on_gpus
    for i, rows in enumerate(on_gpus):
        plot.speedups([row for row in rows if row["ms"]], tmp_path / f"{i}.png")


def watch_figures(monkeypatch):
    """Return a list that gets each figure that is drawn, with its panels."""
    kept, axes_of = [], plot.axes_of
    monkeypatch.setattr(plot, "axes_of", lambda *a, **o: kept.append(axes_of(*a, **o)) or kept[-1])
    return kept


def legend_of(figure):
    (legend,) = figure.legends
    return legend, [text.get_text() for text in legend.get_texts()]


def test_pictures_of_the_committed_run_have_every_bar_and_their_legends_cover_none(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    found, figures = json.loads((common.LATEST.parent / "cpu/bench.json").read_text()), watch_figures(monkeypatch)
    rows = render.at_a_glance(found)
    plot.glance(rows, tmp_path / "glance.png")
    plot.layers(found, tmp_path / "layers.png")
    plot.speedups(found["rows"], tmp_path / "speedups.png")
    for figure, panels in figures:
        figure.canvas.draw()
        legend, names = legend_of(figure)
        assert len(names) == len({*names})
        for axis in panels.ravel():
            assert not legend.get_window_extent().overlaps(axis.get_window_extent())
            assert axis.patches
    bars = figures[0][1].ravel()[0].patches
    assert len(bars) == sum(len(ms) for _, ms in rows)
    assert sorted(bar.get_width() for bar in bars) == sorted(t / ms["ours"] for _, ms in rows for t in ms.values())
    titles = " ".join(title for title, _ in rows)
    assert all(name in titles for name in ("layer_update", "light_step", "base_step", "resnet56"))
    assert all({"eager", "ours"} <= ms.keys() for _, ms in rows)


def test_bars_stand_side_by_side_without_gaps(monkeypatch):
    pytest.importorskip("matplotlib")
    _, ((axis,),) = plot.axes_of(1)
    rows = [{"eager": 2.0, "ours": 1.0}, {"eager": 3.0, "compile": 2.0, "ours": 1.0}]
    plot.bars(axis, rows, ["eager", "compile", "ours"])
    places = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in axis.patches)
    gaps = [round(begin - end, 6) for (_, end), (begin, _) in pairwise(places)]
    assert gaps == [0, pytest.approx(1 - 2.5 * 0.8 / 3, abs=1e-6), 0, 0]
