from __future__ import annotations

from torch import Tensor

from .. import reference
from ..backends import REFERENCE, BackendName, select
from ..cells import PROJECTIONS, Cell, KindName, Weights, accumulate_dtype
from .autograd import accumulated, kernels, start_state, without_autocast
from .checks import check_alike, check_cell, check_state
from .differentiable import Differentiable
from .flops import Shape, projection
from .inplace import check_inplace, mark_written
from .shapes import declare, like, row, states


def recalibrate(
    a: Tensor,
    weights: Weights,
    *,
    cell: Cell | KindName | str,
    state: tuple[Tensor, ...] | None = None,
    shortcut: Tensor | None = None,
    relu: bool = False,
    inplace: bool = False,
    backend: BackendName | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Recalibrate a residual branch by what a cell makes of its mean, and add the shortcut, in one launch:
    ``out = f(shortcut + a h)`` with ``h`` the cell's output after a step with ``y = GAP(a)``.

    a: the branch [B, C, H, W].
    weights: of the cell, as ``cell.projection`` says.
    cell: one that blocks share, which remembers (DIA), or ``"se"`` or ``"eca"``.
    state: the cell's before a, each [B, C], as in ``scan``; None, or () for a cell that remembers nothing.
    shortcut: a map like a; None for none.
    relu: whether f is relu; else it is nothing.
    inplace: write the result where the shortcut is, or without one where a is; under ``torch.no_grad()`` only.
    Returns a map like a, and the new state, each [B, C].
    """
    check_alike({"a": a} if shortcut is None else {"a": a, "shortcut": shortcut})
    B, C = a.shape[:2]
    cell = check_cell(weights, cell, C, "a", a, remembers=False)
    if state is not None:
        check_state(state, cell, B, C, "a", a)
    added = [] if shortcut is None else [shortcut]
    if inplace:
        check_inplace(added or [a], names=["shortcut", "a"] if added else ["a"], read=[a] if added else [])
    chosen = select(backend, a.device, cell)
    if chosen == REFERENCE:
        with without_autocast(a.device):
            return reference.recalibrate(
                a, weights, cell=cell, state=state, shortcut=shortcut, relu=relu, inplace=inplace
            )
    w, start = accumulated(weights, a), start_state(state, a)
    if inplace:
        written = [a.new_empty((B, C), dtype=accumulate_dtype(a.dtype)) for _ in cell.state_names]
        out = added[0] if added else a
        mark_written([out])
        kernels(chosen).recalibrate_([out], written, [a] if added else [], w, start, cell.rule, relu)
        return out, tuple(written)
    sizes = None, len(cell.state_names), None
    how = {"cell": cell, "relu": relu, "adds": bool(added), "given": tuple(w is not None for w in weights)}
    out, found, _ = _run[bool(relu)](chosen, a, added, w, start, sizes=sizes, **how)
    return out, tuple(found)


def _by_reference(
    a: Tensor,
    shortcut: list[Tensor],
    weights: list[Tensor],
    state: list[Tensor],
    cell: Cell,
    given: tuple[bool, ...],
    out: Tensor | None = None,
) -> tuple:
    of_those = iter(weights)
    w = PROJECTIONS[cell.projection](*(next(of_those) if there else None for there in given))
    made, new_state = reference.recalibrate(
        a, w, cell=cell, state=tuple(state) or None, shortcut=shortcut[0] if shortcut else None
    )
    return (made if out is None else made.where(~(out <= 0), made.new_zeros(()))), new_state


def _flops(a: Shape, weights: list[Shape]) -> int:
    if len(weights) == 1:
        return 2 * a[0] * a[1] * weights[0][0]
    return projection(a[0], weights)


def _of(relu: bool) -> Differentiable:
    """Return the op; with a relu the result is kept, which says where it let something through."""

    def masked(ops, dout, dstates, a, weights, state, y, out, states, cell, adds):  # type: ignore[no-untyped-def]
        return ops.recalibrate_bwd(dout, dstates, a, [out], weights, state, y, states, cell.rule, adds)

    def whole(ops, dout, dstates, a, weights, state, y, states, cell):  # type: ignore[no-untyped-def]
        da, _, *others = ops.recalibrate_bwd(dout, dstates, a, [], weights, state, y, states, cell.rule, False)
        return da, *others

    return Differentiable(
        "recalibrate",
        "out states y",
        forward=lambda ops, a, shortcut, weights, state, *, cell, relu, adds, given: ops.recalibrate(
            a, shortcut, weights, state, cell.rule, relu
        ),
        backward=masked if relu else whole,
        reference=_by_reference,
        shapes=lambda a, shortcut, weights, state, rule, relu: (like([a])[0], states(row(a), rule), row(a)),
        flops=_flops,
        maps="a shortcut",
        passed="" if relu else "shortcut",
        linear="shortcut",
    )


def _gradients(
    dout: Tensor, dstates: list[Tensor], a: Tensor, out: list[Tensor], weights: list[Tensor], state: list[Tensor],
    y: Tensor, states: list[Tensor], rule: str, adds: bool,
) -> tuple:  # fmt: skip
    return (*like([a]), like(out) if adds else [], *([w.new_empty(w.shape) for w in x] for x in (weights, state)))


_run = {relu: _of(relu) for relu in (False, True)}
declare("recalibrate_bwd", _gradients)  # whose result for the shortcut is like a
