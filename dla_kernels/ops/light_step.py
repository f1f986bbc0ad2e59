from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from .. import reference
from ..attention import ACTIVATIONS, Attention, Scores
from ..backends import REFERENCE, BackendName, select
from ..cells import PAPER_DSU, PROJECTIONS, Cell, KindName, Weights, as_cell
from ..reference.heads import gate as own_gate
from .attend import attend
from .autograd import accumulated, start_state, without_autocast
from .checks import check_alike, check_attention, check_cell, check_state, check_weight
from .depthwise import depthwise
from .differentiable import Differentiable
from .flops import Shape, across_channels, convolution, projection
from .gap import gap
from .mix import mix
from .refresh import refresh
from .scan import scan
from .shapes import moments as moments_of
from .shapes import rows, states

State = tuple[Tensor, ...]


@overload
def light_step(
    x: Tensor,
    o_prev: Tensor | None,
    attention: Attention,
    lam: Tensor,
    weights: Weights | None = None,
    *,
    heads: int,
    cell: Cell | KindName | str = PAPER_DSU,
    state: State | None = None,
    e: Tensor | None = None,
    act: str | None = None,
    moments: bool = False,
    scores: Literal[False] = False,
    backend: BackendName | None = None,
) -> tuple[Tensor, State | None, Tensor | None]: ...


@overload
def light_step(
    x: Tensor,
    o_prev: Tensor | None,
    attention: Attention,
    lam: Tensor,
    weights: Weights | None = None,
    *,
    heads: int,
    cell: Cell | KindName | str = PAPER_DSU,
    state: State | None = None,
    e: Tensor | None = None,
    act: str | None = None,
    moments: bool = False,
    scores: Literal[True],
    backend: BackendName | None = None,
) -> tuple[Tensor, State | None, Tensor | None, Scores]: ...


def light_step(
    x: Tensor,
    o_prev: Tensor | None,
    attention: Attention,
    lam: Tensor,
    weights: Weights | None = None,
    *,
    heads: int,
    cell: Cell | KindName | str = PAPER_DSU,
    state: State | None = None,
    e: Tensor | None = None,
    act: str | None = None,
    moments: bool = False,
    scores: bool = False,
    backend: BackendName | None = None,
) -> tuple[Tensor, State | None, Tensor | None] | tuple[Tensor, State | None, Tensor | None, Scores]:
    """Compute one layer of DLA-L inside a network (Eq. 3), of MRLA-L without weights, in one launch but with ``act``.

    ``o = lam o_prev' + sig(q . k / sqrt(D)) dwconv(x; v)``, where ``o_prev' = o_prev d + dwconv(o_prev; e)`` is
    o_prev refreshed with the state after x.

    x: the layer's map [B, C, H, W].
    o_prev: the layer before's, of the same shape and dtype; None for the first of a stage.
    attention: the layer's filters q, k [K] and v [C, 1, 3, 3].
    lam: [C].
    weights: of the cell, as ``cell.projection`` says (with Light, plain PyTorch runs); None for MRLA, which has none.
    heads: G, a divisor of C.
    state: the cell's before x, as in ``scan``.
    e: the refresh convolution [C, 1, 3, 3] of the published code; the paper has none.
    act: ``"gelu"`` for the value ``gelu(dwconv(x; v))`` of vision transformers, which is a map of its own: the step is
        then made of ``depthwise``, ``attend``, ``scan``, ``refresh`` and ``mix``, and its last bits on a CPU are as
        torch's gelu rounds them, which is otherwise at the end of each thread's share.
    Returns o, a map like x; the new state, each [B, C], None without weights; and with ``moments`` mean and biased
    variance of o per channel, [2, C], which ``norm_add`` takes and which are constants to autograd, else None. With
    ``scores`` also ``Scores``, constants too: the gate ``sig(q . k / sqrt(D))`` [B, G], and d [B, C], None without.
    """
    maps = {"x": x} if o_prev is None else {"x": x, "o_prev": o_prev}
    check_alike(maps)
    check_attention(attention, heads, x)
    B, C = x.shape[:2]
    check_weight("lam", lam, (C,), "x", x)
    if e is not None:
        check_weight("e", e, (C, 1, 3, 3), "x", x)
    cell = as_cell(cell)
    if weights is not None:
        check_cell(weights, cell, C, "x", x)
        if state is not None:
            check_state(state, cell, B, C, "x", x)
    elif state is not None:
        raise ValueError("state: expected None without weights, got a state; pass the cell's weights too")
    if act is not None and act not in [*ACTIVATIONS]:
        raise ValueError(f"act: expected None or one of {', '.join(ACTIVATIONS)}, got {act!r}")
    chosen = select(backend, x.device, cell if weights else None)
    if act is not None and chosen != REFERENCE:
        with without_autocast(x.device):
            return _by_parts(x, o_prev, attention, lam, weights, heads, cell, state, e, act, moments, scores, chosen)
    if chosen == REFERENCE or (weights is not None and cell.projection == "light"):
        with without_autocast(x.device):
            return reference.light_step(
                x,
                o_prev,
                attention,
                lam,
                weights,
                heads=heads,
                cell=cell,
                state=state,
                e=e,
                act=act,
                moments=moments,
                scores=scores,
            )
    filters = accumulated([*attention, lam, *([] if e is None else [e])], x)
    w, start = accumulated(weights or (), x), start_state(state, x)
    how = {"cell": cell if weights else None, "heads": heads, "moments": moments}
    sizes = None, len(cell.state_names) if weights else 0, None, int(moments)
    o, found, y, of_o = _run(chosen, list(maps.values()), filters, w, start, sizes=sizes, **how)
    new_state, of_o = tuple(found) if weights else None, of_o[0] if moments else None
    if not scores:
        return o, new_state, of_o
    with torch.no_grad(), without_autocast(x.device):  # from the means y, which the launch has left
        d = None
        if new_state is not None and o_prev is not None:
            assert weights is not None
            d = refresh(y[1:], new_state, weights, cell=cell, backend=backend)[0]
        return o, new_state, of_o, Scores(own_gate(y[0], attention.q, attention.k, heads), d)


def _by_parts(
    x: Tensor,
    o_prev: Tensor | None,
    attention: Attention,
    lam: Tensor,
    weights: Weights | None,
    heads: int,
    cell: Cell,
    state: State | None,
    e: Tensor | None,
    act: str,
    moments: bool,
    scores: bool,
    backend: Any,
) -> tuple[Tensor, State | None, Tensor | None] | tuple[Tensor, State | None, Tensor | None, Scores]:
    value, y = depthwise(x, attention.v, backend=backend)
    y = y[:1]  # [1, B, C]
    # The softmax over a key of zeros and the layer's own key has the sigmoid of its score.
    keys, scale = y.new_zeros(2, *y.shape)
    gate, _, _ = attend(y[0], attention.q, attention.k, (keys, scale), heads=heads, backend=backend)
    values, coef = [ACTIVATIONS[act](value)], [gate[1:]]
    new_state = d = None
    if weights is not None:
        new_state = tuple(s[0] for s in scan(y, weights, cell=cell, state=state, backend=backend))
    if o_prev is not None:
        share = lam.to(y.dtype).expand_as(y)
        filtered, means = (None, None) if e is None else depthwise(o_prev, e, backend=backend)
        if weights is not None and new_state is not None:
            means = gap([o_prev], backend=backend) if means is None else means[:1]
            d = refresh(means, new_state, weights, cell=cell, backend=backend)
        values.append(o_prev)
        coef.append(share if d is None else share * d)
        if filtered is not None:
            values.append(filtered)
            coef.append(share)
    o, of_o = mix(values, torch.cat(coef), moments=moments, backend=backend)
    if not scores:
        return o, new_state, of_o
    with torch.no_grad():
        shares = own_gate(y[0], attention.q, attention.k, heads)
    return o, new_state, of_o, Scores(shares, None if d is None else d[0].detach())


def _by_reference(
    maps: list[Tensor],
    filters: list[Tensor],
    weights: list[Tensor],
    state: list[Tensor],
    cell: Cell | None,
    heads: int,
) -> tuple:
    x, *before = maps
    q, k, v, lam, *e = filters
    o, new_state, *_ = reference.light_step(
        x,
        before[0] if before else None,
        Attention(q, k, v),
        lam,
        PROJECTIONS[cell.projection](*weights) if cell else None,
        heads=heads,
        cell=cell or PAPER_DSU,
        state=tuple(state) or None,
        e=e[0] if e else None,
    )
    return o, new_state or ()


def _shapes(
    maps: list[Tensor],
    filters: list[Tensor],
    weights: list[Tensor],
    state: list[Tensor],
    rule: str,
    heads: int,
    moments: bool,
) -> tuple:
    y = rows(maps)
    return torch.empty_like(maps[0]), states(y[0], rule), y, moments_of(maps[0], moments)


def _flops(maps: list[Shape], filters: list[Shape], weights: list[Shape]) -> int:
    (x, *before), (q, k, *_) = maps, filters
    convolutions = 2 if before and len(filters) == 5 else 1
    of_means = across_channels(x[:2], q) + across_channels(x[:2], k) + projection(len(maps) * x[0], weights)
    return of_means + convolutions * convolution(x)


def _rule(cell: Cell | None) -> str:
    return cell.rule if cell else ""


_run = Differentiable(
    "light_step",
    "o states y of_o",
    forward=lambda ops, maps, filters, weights, state, *, cell, heads, moments: ops.light_step(
        maps, filters, weights, state, _rule(cell), heads, moments
    ),
    backward=lambda ops, do, dstates, maps, filters, weights, state, y, states, cell, heads: ops.light_step_bwd(
        do, dstates, maps, filters, weights, state, y, states, _rule(cell), heads
    ),
    reference=_by_reference,
    shapes=_shapes,
    flops=_flops,
    maps="maps",
)
