"""torch's own checks of each operator: its schema, its fake, its behaviour under tracing."""

import pytest
import torch

from dla_kernels.backends import BACKENDS

from .cases import MIDDLE, inputs_of, maps, rows, state
from .cases import FEW_CELLS as CELLS

pytest.importorskip("expecttest", reason="torch.library.opcheck needs the package expecttest")


def arguments(cell):
    """Each operator with arguments for it."""
    xs, dout = maps(MIDDLE, torch.float32, "mixed"), maps(MIDDLE, torch.float32)
    y, d = rows(MIDDLE, torch.float32), rows(MIDDLE, torch.float32)
    w = list(inputs_of("scan", MIDDLE, cell, torch.float32)["weights"])
    start = list(state(MIDDLE, "hc", torch.float32))
    states = [rows(MIDDLE, torch.float32) for _ in cell.state_names]
    rule = cell.rule
    return {
        "gap": (xs,),
        "scan": (y, w, start, rule),
        "scan_bwd": (states, y, w, start, states, rule),
        "refresh": (y, start, w, rule),
        "refresh_bwd": (d, y, start, w, rule),
        "rescale": (xs, d),
        "rescale_": (xs, d),
        "rescale_bwd": (dout, xs, d),
        "layer_update": (xs, w, start, rule),
        "layer_update_": (xs, states, w, start, rule),
        "layer_update_bwd": (dout, states, xs, w, start, y, states, rule),
    }


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.projection)
@pytest.mark.parametrize("name", list(arguments(CELLS[0])))
def test_opcheck(name, cell):
    assert BACKENDS["cpu"].available, BACKENDS["cpu"].reason
    torch.library.opcheck(getattr(torch.ops.dla, name).default, arguments(cell)[name])
