"""What the operators require of their tensors before a kernel is told their addresses. The public functions check
the same in friendlier words; these guard those who call torch.ops.dla_triton directly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cells import RULES, Cell
from .maps import ELEMENT, accumulate_dtype

PROJECTIONS = {3: "joint", 8: "split", 4: "dense"}  # by the number of weights

IN_PLACE = "xs: in place, expected maps that are NCHW or channels_last in memory"


def require(holds: bool, complaint: str) -> None:
    """Raise a RuntimeError that says what is wrong, unless it holds."""
    if not holds:
        raise RuntimeError(complaint)


def check_tensor(name: str, x: Tensor, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> None:
    """Require this shape, this dtype, and the device of ``like``."""
    if x.shape == tuple(shape) and x.dtype == dtype and x.device == like.device:
        return
    require(x.dim() == len(shape), f"{name}: expected {len(shape)} dimensions, got {x.dim()}")
    for i, (expected, got) in enumerate(zip(shape, x.shape)):
        require(expected == got, f"{name}: expected size {expected} in dimension {i}, got {got}")
    require(x.dtype == dtype, f"{name}: expected dtype {dtype}, got {x.dtype}")
    raise RuntimeError(f"{name}: expected device {like.device}, got {x.device}")


def check_maps(xs: Sequence[Tensor]) -> None:
    """Require T maps [B, C, H, W] of one dtype that share B and C."""
    require(len(xs) > 0, "xs: expected at least one map, got an empty list")
    first = xs[0]
    require(first.dtype in ELEMENT, f"xs: expected fp32, fp64, bf16 or fp16, got {first.dtype}")
    for x in xs:
        require(x.dim() == 4, f"xs: expected maps [B, C, H, W], got {x.dim()} dimensions")
        require(0 not in x.shape[1:], "xs: a map of size zero")
        check_tensor("xs", x, (*first.shape[:2], *x.shape[2:]), first.dtype, first)


def check_like_maps(name: str, dout: Sequence[Tensor], xs: Sequence[Tensor]) -> None:
    """Require one map for each of xs, of its shape and dtype."""
    require(len(dout) == len(xs), f"{name}: expected {len(xs)} maps, got {len(dout)}")
    for given, x in zip(dout, xs):
        check_tensor(name, given, x.shape, x.dtype, xs[0])


def check_light_maps(maps: Sequence[Tensor]) -> None:
    """Require [x] or [x, o_prev], of one size."""
    check_maps(maps)
    require(len(maps) <= 2, f"maps: expected x and perhaps o_prev, got {len(maps)}")
    for x in maps:
        check_tensor("maps", x, maps[0].shape, maps[0].dtype, maps[0])


def check_heads(q: Tensor, k: Tensor, C: int, heads: int, dtype: torch.dtype, like: Tensor) -> None:
    """Require filters [K] with an odd K, and heads that C channels can be shared out to."""
    require(heads > 0 and C % heads == 0, f"heads: expected a divisor of C = {C}, got {heads}")
    require(q.dim() == 1 and q.numel() % 2 == 1, "q: expected [K] with an odd K")
    check_tensor("q", q, q.shape, dtype, like)
    check_tensor("k", k, q.shape, dtype, like)


def check_past(past: Sequence[Tensor], y: Tensor) -> int:
    """Require [], [keys, scale] or [keys, scale, d] of M layers before, and return M."""
    require(len(past) in (0, 2, 3), f"past: expected keys, scale and maybe d, got {len(past)} tensors")
    M = past[0].shape[0] if past else 0
    for x, rows in zip(past, (M, M, 2 * M)):
        check_tensor("past", x, (rows, *y.shape), y.dtype, y)
    return M


def check_filters(filters: Sequence[Tensor], C: int, dtype: torch.dtype, like: Tensor) -> None:
    """Require [q, k, v, lam], or those with e."""
    require(len(filters) in (4, 5), f"filters: expected q, k, v, lam and perhaps e, got {len(filters)}")
    K = filters[0].numel()
    require(K % 2 == 1, f"filters: expected an odd width, got {K}")
    for f, shape in zip(filters, ((K,), (K,), (C, 1, 3, 3), (C,), (C, 1, 3, 3))):
        check_tensor("filters", f, shape, dtype, like)


def check_rows(name: str, y: Tensor) -> None:
    """Require [T, B, C] in fp32 or fp64."""
    require(y.dim() == 3, f"{name}: expected [T, B, C], got {y.dim()} dimensions")
    require(y.shape[0] > 0 and y.shape[2] > 0, f"{name}: expected at least one layer and channel")
    require(y.dtype in (torch.float32, torch.float64), f"{name}: expected fp32 or fp64, got {y.dtype}")


def check_gates(d: Tensor, xs: Sequence[Tensor], name: str = "d") -> None:
    """Require a gate for each channel of every sample and layer, [T, B, C], in the dtype of sums over the maps."""
    check_tensor(name, d, (len(xs), *xs[0].shape[:2]), accumulate_dtype(xs[0].dtype), xs[0])


def check_rule(rule: str) -> Cell:
    """Return the cell of this name."""
    require(rule in RULES, f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
    return RULES[rule]


def check_weights(weights: Sequence[Tensor], NG: int, C: int, dtype: torch.dtype, like: Tensor) -> str:
    """Require the weights of one of the projections, and return which."""
    count = len(weights)
    require(count in PROJECTIONS, f"weights: expected 3 (joint), 8 (split) or 4 (dense) tensors, got {count}")
    projection = PROJECTIONS[count]
    R = weights[0].shape[0] if weights[0].dim() else 0
    require(R > 0, "weights: expected a bottleneck of at least one row")
    N = NG * C
    shapes = {
        "joint": [(R, 2 * C), (N, R), (N,)],
        "split": [(R, C), (R,), (N, R), (N,)] * 2,
        "dense": [(N, C), (N,)] * 2,
    }
    for w, shape in zip(weights, shapes[projection]):
        check_tensor("weights", w, shape, dtype, like)
    return projection


BOTTLENECK, LIGHT = 4, 7  # weights of a light cell: those of its bottleneck, and all


def is_light(weights: Sequence[Tensor]) -> bool:
    """Return whether these are a light cell's."""
    return len(weights) == LIGHT


def check_light(weights: Sequence[Tensor], N: int, dtype: torch.dtype, like: Tensor) -> None:
    """Require wy, wh and b of a light cell."""
    require(len(weights) == 3, f"weights: expected wy, wh and b of a light cell, got {len(weights)} tensors")
    for w in weights:
        check_tensor("weights", w, (N,), dtype, like)


def check_squeeze(
    w1: Tensor, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, count: int, C: int, like: Tensor
) -> int:
    """Require the weights of a bottleneck from C channels to as many, and return its width. There may be no bias."""
    given = [w for w in (w1, b1, w2, b2) if w is not None]
    require(
        w2 is not None and len(given) == count, f"weights: expected w1, b1, w2 and b2, or fewer biases, got {count}"
    )
    R = w1.shape[0] if w1.dim() else 0
    require(R > 0, "weights: expected a bottleneck of at least one row")
    for w, shape in zip((w1, b1, w2, b2), ((R, C), (R,), (C, R), (C,))):
        if w is not None:
            check_tensor("weights", w, shape, accumulate_dtype(like.dtype), like)
    return R


def check_taps(weights: Sequence[Tensor], like: Tensor) -> None:
    """Require a filter over the channels, [K] with an odd K."""
    require(len(weights) == 1, f"weights: expected the taps alone, got {len(weights)} tensors")
    taps = weights[0]
    require(taps.dim() == 1 and taps.numel() % 2 == 1, "weights: expected taps [K] with an odd K")
    check_tensor("weights", taps, taps.shape, accumulate_dtype(like.dtype), like)


def check_state(
    state: Sequence[Tensor], cell: Cell, may_be_absent: bool, shape: Sequence[int], dtype: torch.dtype, like: Tensor
) -> None:
    """Require [h] (rnn), [h, c], or [c] of a dsu, whose h is then act(c)."""
    count = 1 if len(state) == 1 and not cell.saves_h else 1 + cell.saves_c
    check_states("state", state, count, may_be_absent, shape, dtype, like)


def check_states(
    name: str, states: Sequence[Tensor], count: int, may_be_absent: bool, shape: Sequence[int], dtype: torch.dtype,
    like: Tensor,
) -> None:  # fmt: skip
    """Require ``count`` tensors of one shape; perhaps none, where a cell starts by itself or no gradient arrives."""
    if may_be_absent and not states:
        return
    require(len(states) == count, f"{name}: expected {count} tensors, got {len(states)}")
    for s in states:
        check_tensor(name, s, shape, dtype, like)


def check_in_place(held: Sequence[Tensor], given: Sequence[Tensor], expected: str) -> None:
    """Require that what a kernel will write is what the caller gave, not a copy of it."""
    for ours, theirs in zip(held, given):
        require(ours.data_ptr() == theirs.data_ptr(), expected)
