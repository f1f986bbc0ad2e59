from __future__ import annotations

from torch import Tensor

from ..attention import ACTIVATIONS, Attention, Scores
from ..cells import PAPER_DSU, Cell, Weights, accumulate_dtype
from .heads import State, depthwise, gate, moments_of, next_state, per_channel
from .refresh import refresh


def light_step(
    x: Tensor,
    o_prev: Tensor | None,
    attention: Attention,
    lam: Tensor,
    weights: Weights | None = None,
    *,
    heads: int,
    cell: Cell = PAPER_DSU,
    state: State | None = None,
    e: Tensor | None = None,
    act: str | None = None,
    moments: bool = False,
    scores: bool = False,
) -> tuple[Tensor, State | None, Tensor | None] | tuple[Tensor, State | None, Tensor | None, Scores]:
    """Compute one layer of DLA-L (Eq. 3), of MRLA-L without a cell: maps x and o_prev [B, C, H, W] -> o, the new state,
    and the moments of o and the scores where asked for.

    ``o = lam o_prev' + sig(q . k / sqrt(D)) dwconv(x; v)``, where ``o_prev'`` is ``o_prev`` refreshed with the state
    after x, ``o_prev d + dwconv(o_prev; e)``; the paper has no ``e``. In vision transformers the value is
    ``gelu(dwconv(x; v))``, as ``act`` says.
    """
    exact, C = x.to(accumulate_dtype(x.dtype)), x.shape[1]
    y = exact.mean((2, 3))
    share, d = gate(y, attention.q, attention.k, heads), None
    value = depthwise(exact, attention.v)
    if act is not None:  # then what filters make are maps like x
        value = ACTIVATIONS[act](value.to(x.dtype)).to(exact.dtype)
    o = per_channel(share, C)[..., None, None] * value
    new_state = None if weights is None else next_state(y, state, weights, cell)
    if o_prev is not None:
        before = o_prev.to(exact.dtype)
        refreshed = before
        if weights is not None and new_state is not None:
            d = refresh(before.mean((2, 3))[None], new_state, weights, cell=cell)[0]
            refreshed = before * d[..., None, None]
        if e is not None:
            filtered = depthwise(before, e)
            refreshed = refreshed + (filtered if act is None else filtered.to(x.dtype).to(exact.dtype))
        o = o + lam.to(o.dtype)[:, None, None] * refreshed
    o = o.to(x.dtype)
    of_o = moments_of(o) if moments else None
    if not scores:
        return o, new_state, of_o
    return o, new_state, of_o, Scores(share.detach(), None if d is None else d.detach())
