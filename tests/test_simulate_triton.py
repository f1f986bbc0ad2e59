"""The model of the Triton kernels keeps its order, and is held against the scans that were measured."""

import pytest

from bench import simulate, simulate_triton
from bench.simulate import Chip

PROBLEMS = simulate.problems()
H100 = Chip.of("h100")


@pytest.mark.parametrize("device", sorted(simulate.OTHERS))
def test_predictions_lie_between_the_best_and_the_worst_constants(device):
    for name, p in PROBLEMS:
        worst, likely, best = (simulate_triton.predicted(p, Chip.of(device, which), which)[0] for which in range(3))
        assert 0 < best < likely < worst, name


def test_no_row_is_predicted_to_beat_the_memory():
    for name, p in PROBLEMS:
        us, spent = simulate_triton.predicted(p, H100)
        least = (1.5 if p.forward else 2.5) if p.op == "light_step" else (2 if p.forward else 3)
        assert us > least * p.S / H100["memory"], name
        assert us == pytest.approx(spent.total())


def test_every_row_is_predicted_to_take_less_than_the_kernels_of_one_launch_took():
    then = simulate.measured_then("triton")
    for name, p in PROBLEMS:
        if (name, p.forward) in then:
            assert simulate_triton.predicted(p, H100)[0] < then[name, p.forward], name


def test_the_scans_that_were_measured_are_met_within_a_factor_of_two():
    lines = simulate_triton.report_scans(H100).splitlines()[2:]
    ratios = [float(line.split()[-1]) for line in lines]
    assert len(ratios) == 8
    assert all(0.5 < ratio < 2 for ratio in ratios)


def test_the_tiles_are_those_of_the_kernels():
    tiles = pytest.importorskip("triton_ops.tiles")
    for _, p in PROBLEMS:
        op = p.op if p.forward else f"{p.op}_bwd"
        assert simulate_triton.tiles_of(p) == tiles.from_table(op, p.C, p.R, 0, simulate_triton.torch.bfloat16)


def test_the_command_prints_what_is_asked_for(capsys):
    simulate_triton.main(["--device", "h200", "--rows", "C64"])
    said = capsys.readouterr().out
    assert "h200, bf16" in said
    assert "T12-B128-C64" in said
    assert "C2048-HW7x7-r16  backward" not in said
