"""Checks of what writing maps in place requires of them, and what it owes autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad


def check_inplace(xs: Sequence[Tensor], names: Sequence[str] = (), read: Sequence[Tensor] = ()) -> None:
    """Raise ValueError if somebody differentiates through the maps, kernels cannot write them, or elements overlap.

    names: of the maps, xs[0] and so on if not given, and then of those that are read beside them.
    """
    names = names or [f"xs[{t}]" for t in range(len(xs))]
    if torch.is_grad_enabled():
        raise ValueError(
            "inplace: expected torch.no_grad() or torch.inference_mode(), got gradients enabled; "
            "call it under one of these, or leave inplace=False"
        )
    if forward_ad._current_level >= 0:
        raise ValueError("inplace: expected no forward-mode AD, got forward_ad.dual_level(); leave inplace=False")
    for t, x in enumerate(xs):
        _, C, H, W = x.shape
        one_run = H == 1 or W == 1 or x.stride(2) == W * x.stride(3)
        step = x.stride(3) if W > 1 else x.stride(2) if H > 1 else 1
        if not one_run or step == 0 or (step != 1 and x.stride(1) != 1 and C != 1):
            raise ValueError(
                f"{names[t]}: inplace expected a map that is NCHW or channels_last in memory, "
                f"got strides {tuple(x.stride())}"
            )
        if not _nested(_axes(x)):
            raise ValueError(
                f"{names[t]}: inplace expected a map of its own memory, got a view whose elements share it: "
                f"shape {tuple(x.shape)}, strides {tuple(x.stride())}"
            )
    if torch.compiler.is_compiling():
        return  # addresses are not known yet
    for t, x in enumerate(xs):
        if x.is_neg():
            raise ValueError(
                f"{names[t]}: inplace expected plain memory, got a lazily negated view; call resolve_neg() on it"
            )
    _check_separate([*xs, *read], names)


def is_writable(x: Tensor, beside: Tensor) -> bool:
    """Return whether an op may write x, a map that its caller has made and nobody else will read, in place of a new
    one: nobody differentiates, traces or compiles, and what is read beside it is elsewhere."""
    return (
        not torch.is_grad_enabled()
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
        and x.untyped_storage().data_ptr() != beside.untyped_storage().data_ptr()
    )


def mark_written(xs: Sequence[Tensor]) -> None:
    """Tell autograd that maps change, as torch's own in-place ops do, so that it refuses to use what it had saved.

    This comes before the kernel writes, since one that fails on the way may have written already.
    """
    if not torch.compiler.is_compiling():  # compiled code keeps track of mutations by itself
        torch.autograd.graph.increment_version([x for x in xs if not x.is_inference()])


# A map as a box in memory: its (stride, size) pairs, the largest stride first.
Axes = list[tuple[int, int]]


def _axes(x: Tensor) -> Axes:
    return sorted(((s, n) for s, n in zip(x.stride(), x.shape) if n > 1), reverse=True)


def _reach(axes: Axes) -> int:
    """Return the distance from the first to one past the last element."""
    return 1 + sum(stride * (size - 1) for stride, size in axes)


def _nested(axes: Axes) -> bool:
    """Return whether each step along an axis passes over all that lies within: then no two elements share memory."""
    return all(stride >= _reach(axes[i + 1 :]) for i, (stride, _) in enumerate(axes))


def _check_separate(xs: Sequence[Tensor], names: Sequence[str]) -> None:
    in_memory = sorted((x.data_ptr(), t) for t, x in enumerate(xs) if x.numel())
    reaches: list[tuple[int, int]] = []  # (t, end) of earlier maps that end after ``begin``
    for begin, t in in_memory:
        reaches = [(e, end) for e, end in reaches if end > begin]
        for e, _ in reaches:
            offset, rest = divmod(begin - xs[e].data_ptr(), xs[t].element_size())
            if rest or _may_meet(_axes(xs[e]), _axes(xs[t]), offset):
                first, second = sorted((e, t))
                raise ValueError(
                    f"{names[second]}: inplace expected maps of separate memory, got one that overlaps {names[first]}"
                )
        reaches.append((t, begin + _reach(_axes(xs[t])) * xs[t].element_size()))


def _may_meet(a: Axes, b: Axes, offset: int) -> bool:
    """Return whether boxes a and b, the latter ``offset`` elements further on, share an element. This is exact for
    equal strides, such as those of slices of one tensor; else it errs on the side of yes."""
    if offset >= _reach(a) or -offset >= _reach(b):
        return False
    if not a or not b or a[0][0] != b[0][0]:
        return True
    (stride, n), (_, m) = a[0], b[0]
    steps = offset // stride  # b lies this many steps along the axis, or one more and a bit back
    return any(-m < k < n and _may_meet(a[1:], b[1:], offset - k * stride) for k in (steps, steps + 1))
