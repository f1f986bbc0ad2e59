from __future__ import annotations

from torch import Tensor

from .. import reference
from ..backends import REFERENCE, BackendName, select
from ..cells import PAPER_DSU, PROJECTIONS, Cell, KindName, Weights
from ..reference.cells import output_of
from .autograd import accumulated, start_state, without_autocast
from .checks import check_cell, check_rows, check_state
from .differentiable import Differentiable
from .flops import projection
from .scan import scan


def refresh(
    y: Tensor,
    state: tuple[Tensor, ...],
    weights: Weights,
    *,
    cell: Cell | KindName | str = PAPER_DSU,
    backend: BackendName | None = None,
) -> Tensor:
    """Compute the refresh gate (Eq. 6): ``d_t = Dyn(y_t, c_T)`` for all t at once, output only.

    y: [T, B, C].
    state: the last context, each [B, C]: (h,) for rnn, (h, c) for lstm and dia, (c,) or (h, c) for
        dsu; usually ``tuple(s[-1] for s in scan(...))``.
    weights: Joint, Split, Dense or Light, as ``cell.projection`` says.
    Returns d [T, B, C], in float32 (float64 for float64).
    """
    check_rows("y", y)
    T, B, C = y.shape
    cell = check_cell(weights, cell, C, "y", y)
    check_state(state, cell, B, C, "y", y)
    chosen = select(backend, y.device, cell)
    if chosen == REFERENCE:
        with without_autocast(y.device):
            return reference.refresh(y, state, weights, cell=cell)
    if cell.projection == "light":  # a step of as many samples as there are rows
        each = tuple(s.expand(T, B, C).reshape(T * B, C) for s in state)
        made = scan(y.reshape(1, T * B, C), weights, cell=cell, state=each, backend=backend)
        return output_of(tuple(s[0] for s in made), cell).view(T, B, C)
    (y,), w, last = accumulated([y], y), accumulated(weights, y), start_state(state, y)
    (d,) = _run(chosen, y, last, w, sizes=(None,), cell=cell)
    return d


def _by_reference(y: Tensor, state: list[Tensor], weights: list[Tensor], cell: Cell) -> tuple:
    return (reference.refresh(y, tuple(state), PROJECTIONS[cell.projection](*weights), cell=cell),)


_run = Differentiable(
    "refresh",
    "d",
    forward=lambda ops, y, state, weights, *, cell: (ops.refresh(y, state, weights, cell.rule),),
    backward=lambda ops, dd, y, state, weights, cell: ops.refresh_bwd(dd, y, state, weights, cell.rule),
    reference=_by_reference,
    shapes=lambda y, state, weights, rule: y.new_empty(y.shape),
    flops=lambda y, weights: projection(y[0] * y[1], weights),
)
