from __future__ import annotations

from functools import partial
from typing import Literal, overload

from torch import Tensor

from ..attention import Attention, BaseStage, Scores
from ..backends import REFERENCE, BackendName, select
from ..cells import PAPER_DSU, Cell, KindName, Weights, as_cell
from ..reference.base_step import PARTS, Parts, from_parts
from .attend import attend
from .autograd import without_autocast
from .checks import check_alike, check_attention
from .depthwise import depthwise
from .mix import mix_and_hand_on
from .refresh import refresh
from .scan import scan


@overload
def base_step(
    x: Tensor,
    stage: BaseStage | None,
    attention: Attention,
    weights: Weights | None = None,
    *,
    heads: int,
    cell: Cell | KindName | str = PAPER_DSU,
    state: tuple[Tensor, ...] | None = None,
    moments: bool = False,
    scores: Literal[False] = False,
    backend: BackendName | None = None,
) -> tuple[Tensor, BaseStage, Tensor | None]: ...


@overload
def base_step(
    x: Tensor,
    stage: BaseStage | None,
    attention: Attention,
    weights: Weights | None = None,
    *,
    heads: int,
    cell: Cell | KindName | str = PAPER_DSU,
    state: tuple[Tensor, ...] | None = None,
    moments: bool = False,
    scores: Literal[True],
    backend: BackendName | None = None,
) -> tuple[Tensor, BaseStage, Tensor | None, Scores]: ...


def base_step(
    x: Tensor,
    stage: BaseStage | None,
    attention: Attention,
    weights: Weights | None = None,
    *,
    heads: int,
    cell: Cell | KindName | str = PAPER_DSU,
    state: tuple[Tensor, ...] | None = None,
    moments: bool = False,
    scores: bool = False,
    backend: BackendName | None = None,
) -> tuple[Tensor, BaseStage, Tensor | None] | tuple[Tensor, BaseStage, Tensor | None, Scores]:
    """Compute one layer of DLA-B inside a network (Eq. 2), of MRLA-B without weights.

    ``o = sum over m of softmax_m(q . k_m / sqrt(D)) v_m`` over this layer and all before it, whose keys and values
    are first refreshed with the state after x. No map is ever rewritten.

    x: the layer's map [B, C, H, W].
    stage: what ``base_step`` of the layer before returned; None for the first of a stage.
    attention: the layer's filters q, k [K] and v [C, 1, 3, 3].
    weights: of the cell, as ``cell.projection`` says; None for MRLA, which has none.
    heads: G, a divisor of C.
    state: the cell's before the first layer, as in ``scan``; later ones have it from ``stage``.
    Returns o, a map like x; the stage for the next layer; and with ``moments`` mean and biased variance of o per
    channel, [2, C], which ``norm_add`` takes and which are constants to autograd, else None. With ``scores`` also
    ``Scores``, constants too: the softmax over all M layers so far [M, B, G], and d [2, M - 1, B, C], what this layer
    refreshed earlier keys and values by, None without.
    """
    if not (stage is None or isinstance(stage, BaseStage)):
        raise TypeError(f"stage: expected what base_step returned, or None, got {type(stage).__name__}")
    check_alike({"x": x} if stage is None else {"stage.values[0]": stage.values[0], "x": x})
    check_attention(attention, heads, x)
    if weights is None and stage is not None and stage.state is not None:
        raise ValueError("weights: expected those of the layers before, whose state the stage holds, got None")
    if state is not None and (stage is not None or weights is None):
        found = "a stage" if stage is not None else "no weights"
        raise ValueError(f"state: expected None but for the first layer of a cell with weights, got one with {found}")
    cell = as_cell(cell)
    chosen = select(backend, x.device, cell if weights else None)
    parts = PARTS if chosen == REFERENCE else Parts(*(partial(f, backend=chosen) for f in _OURS))
    with without_autocast(x.device):
        return from_parts(
            parts, x, stage, attention, weights, heads=heads, cell=cell, state=state, moments=moments, scores=scores
        )


_OURS = Parts(depthwise, scan, refresh, attend, mix_and_hand_on)
