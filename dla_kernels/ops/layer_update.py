from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from ..backends import REFERENCE, BackendName, select
from ..cells import PAPER_DSU, PROJECTIONS, Cell, KindName, Weights, accumulate_dtype
from .autograd import accumulated, kernels, start_state, without_autocast
from .checks import check_cell, check_maps, check_state
from .differentiable import Differentiable
from .flops import projection
from .gap import gap
from .inplace import check_inplace, mark_written
from .refresh import refresh
from .rescale import rescale
from .scan import scan
from .shapes import like, rows, states


def layer_update(
    xs: Sequence[Tensor],
    weights: Weights,
    *,
    cell: Cell | KindName | str = PAPER_DSU,
    state: tuple[Tensor, ...] | None = None,
    inplace: bool = False,
    backend: BackendName | None = None,
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Run one stage of dynamic layer attention (Eq. 4-6): pool, scan, refresh and rescale in one launch.

    xs: T maps [B, C, H, W] that share dtype, device, B and C; H and W may differ.
    weights: Joint, Split, Dense or Light, as ``cell.projection`` says; with the last it takes four ops.
    state: what the first layer starts from, as in ``scan``.
    inplace: write the maps where they are; under ``torch.no_grad()`` only. If memory runs out on the way, it raises,
        and some samples are refreshed and others are not.
    Returns the T refreshed maps, each with the dtype and memory layout of its input, and the states
    of all layers as ``scan`` returns them.
    """
    check_maps(xs)
    B, C = xs[0].shape[:2]
    cell = check_cell(weights, cell, C, "xs[0]", xs[0])
    if state is not None:
        check_state(state, cell, B, C, "xs[0]", xs[0])
    if inplace:
        check_inplace(xs)
    chosen = select(backend, xs[0].device, cell)
    if chosen == REFERENCE:
        with without_autocast(xs[0].device):
            return reference.layer_update(xs, weights, cell=cell, state=state, inplace=inplace)
    if cell.projection == "light":
        y = gap(xs, backend=backend)
        found = scan(y, weights, cell=cell, state=state, backend=backend)
        d = refresh(y, tuple(s[-1] for s in found), weights, cell=cell, backend=backend)
        return rescale(xs, d, inplace=inplace, backend=backend), found
    w, start = accumulated(weights, xs[0]), start_state(state, xs[0])
    if inplace:
        dtype = accumulate_dtype(xs[0].dtype)
        written = [xs[0].new_empty((len(xs), B, C), dtype=dtype) for _ in cell.state_names]
        mark_written(xs)
        kernels(chosen).layer_update_(list(xs), written, w, start, cell.rule)
        return list(xs), tuple(written)
    sizes = len(xs), len(cell.state_names), None
    out, made, _ = _run(chosen, list(xs), w, start, sizes=sizes, cell=cell)
    return out, tuple(made)


def _by_reference(xs: list[Tensor], weights: list[Tensor], state: list[Tensor], cell: Cell) -> tuple:
    w = PROJECTIONS[cell.projection](*weights)
    return reference.layer_update(xs, w, cell=cell, state=tuple(state) or None)


_run = Differentiable(
    "layer_update",
    "out states y",
    forward=lambda ops, xs, weights, state, *, cell: ops.layer_update(xs, weights, state, cell.rule),
    backward=lambda ops, dout, dstates, xs, weights, state, y, states, cell: ops.layer_update_bwd(
        dout, dstates, xs, weights, state, y, states, cell.rule
    ),
    reference=_by_reference,
    shapes=lambda xs, weights, state, rule: (like(xs), states(rows(xs), rule), rows(xs)),
    flops=lambda xs, weights: 2 * projection(len(xs) * xs[0][0], weights),  # scan and refresh
    maps="xs",
)
