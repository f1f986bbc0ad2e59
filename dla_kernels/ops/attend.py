from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import reference
from ..backends import REFERENCE, BackendName, select
from .autograd import accumulated, without_autocast
from .checks import check_heads, check_past, check_tensor, shape_of
from .differentiable import Differentiable
from .flops import across_channels


def attend(
    y: Tensor, q: Tensor, k: Tensor, past: Sequence[Tensor] = (), *, heads: int, backend: BackendName | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a layer has of each layer before it and of itself: ``coef_m = softmax_m(q . k_m / sqrt(D)) scale_m``.

    y: [B, C], the means of the layer's map.
    q, k: filters [K] over its channels, K odd.
    past: of the M layers before: () for the first; (keys, scale), [M, B, C] each; or (keys, scale, d), which are
        first refreshed by d [2 M, B, C], its first half for the keys.
    heads: G, a divisor of C.
    Returns coef, keys and scale, [M + 1, B, C] each, the latter two for the next layer, in float32 (float64 for
    float64).
    """
    check_tensor("y", y)
    if y.dim() != 2 or y.shape[1] == 0:
        raise ValueError(f"y: expected [B, C] with C of at least 1, got {shape_of(y)}")
    check_heads("", q, k, heads, y.shape[1], "y", y)
    check_past(past, y)
    chosen = select(backend, y.device)
    if chosen == REFERENCE:
        with without_autocast(y.device):
            return reference.attend(y, q, k, past, heads=heads)
    y, q, k, *before = accumulated([y, q, k, *past], y)
    coef, keys, scale = _run(chosen, y, q, k, before, sizes=(None, None, None), heads=heads)
    return coef, keys, scale


def _shapes(y: Tensor, q: Tensor, k: Tensor, past: list[Tensor], heads: int) -> tuple[Tensor, ...]:
    M = past[0].shape[0] if past else 0
    return tuple(y.new_empty((M + 1, *y.shape)) for _ in range(3))


_run = Differentiable(
    "attend",
    "coef keys scale",
    forward=lambda ops, y, q, k, past, *, heads: ops.attend(y, q, k, past, heads),
    backward=lambda ops, dcoef, dkeys, dscale, y, q, k, past, heads: ops.attend_bwd(
        dcoef, dkeys, dscale, y, q, k, past, heads
    ),
    reference=reference.attend,
    shapes=_shapes,
    flops=lambda y, q, k: across_channels(y, q) + across_channels(y, k),
)
