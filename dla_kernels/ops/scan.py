from __future__ import annotations

from torch import Tensor

from .. import reference
from ..backends import REFERENCE, BackendName, select
from ..cells import PAPER_DSU, PROJECTIONS, Cell, KindName, Weights
from .autograd import accumulated, start_state, without_autocast
from .checks import check_cell, check_rows, check_state
from .differentiable import Differentiable
from .flops import projection
from .shapes import states


def scan(
    y: Tensor,
    weights: Weights,
    *,
    cell: Cell | KindName | str = PAPER_DSU,
    state: tuple[Tensor, ...] | None = None,
    backend: BackendName | None = None,
) -> tuple[Tensor, ...]:
    """Run the context scan over layers (Eq. 5): ``c_t = Dyn(y_t, c_{t-1})`` for t = 1..T.

    y: [T, B, C].
    weights: Joint, Split, Dense or Light, as ``cell.projection`` says. Behind its bottleneck a light
        cell's scan is elementwise.
    state: what the first layer starts from, each [B, C]: (h,) for rnn, (h, c) for lstm and dia,
        (c,) or (h, c) for dsu; None starts from zeros (``Cell.output`` says which h for a dsu).
    Returns the states of all layers, each [T, B, C], in float32 (float64 for float64):
        (h,) for rnn, (h, c) for lstm and dia, (c,) for dsu.
    """
    check_rows("y", y)
    _, B, C = y.shape
    cell = check_cell(weights, cell, C, "y", y)
    if state is not None:
        check_state(state, cell, B, C, "y", y)
    chosen = select(backend, y.device, cell)
    if chosen == REFERENCE:
        with without_autocast(y.device):
            return reference.scan(y, weights, cell=cell, state=state)
    (y,), w, start = accumulated([y], y), accumulated(weights, y), start_state(state, y)
    (found,) = _run(chosen, y, w, start, sizes=(len(cell.state_names),), cell=cell)
    return tuple(found)


def _by_reference(y: Tensor, weights: list[Tensor], state: list[Tensor], cell: Cell) -> tuple:
    w = PROJECTIONS[cell.projection](*weights)
    return (reference.scan(y, w, cell=cell, state=tuple(state) or None),)


_run = Differentiable(
    "scan",
    "states",
    forward=lambda ops, y, weights, state, *, cell: (ops.scan(y, weights, state, cell.rule),),
    backward=lambda ops, dstates, y, weights, state, states, cell: ops.scan_bwd(
        dstates, y, weights, state, states, cell.rule
    ),
    reference=_by_reference,
    shapes=lambda y, weights, state, rule: states(y, rule),
    flops=lambda y, weights: projection(y[0] * y[1], weights),
)
