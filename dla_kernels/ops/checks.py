"""Checks of what the public functions require of their arguments, said in words a user can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..attention import Attention
from ..cells import PROJECTIONS, Cell, Weights, accumulate_dtype, as_cell, weight_shapes

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_FLOAT_NAMES = "float32, float64, bfloat16 or float16"


def shape_of(x: Tensor) -> str:
    return "[" + ", ".join(str(n) for n in x.shape) + "]"


def check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected {_FLOAT_NAMES}, got {x.dtype}; convert it first, e.g. {name}.float()")
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {x.layout}; convert it first, e.g. {name}.to_dense()")


def check_maps(xs: Sequence[Tensor]) -> None:
    """Raise an error unless xs are T maps [B, C, H, W] that share dtype, device, B and C."""
    if isinstance(xs, Tensor) or not isinstance(xs, Sequence):
        raise TypeError(f"xs: expected a list of maps [B, C, H, W], got {type(xs).__name__}")
    if not xs:
        raise ValueError("xs: expected at least one map, got an empty list")
    _check_map(0, xs[0], xs[0])
    dtype, device, (B, C, _, _) = xs[0].dtype, xs[0].device, xs[0].shape
    for t, x in enumerate(xs):
        # One quick look at each map; only what looks wrong is looked at closely.
        fine = isinstance(x, Tensor) and x.dtype is dtype and x.device == device and x.dim() == 4
        fine = fine and x.layout is torch.strided
        if not fine or x.shape[0] != B or x.shape[1] != C or 0 in x.shape[1:]:
            _check_map(t, x, xs[0])


def _check_map(t: int, x: Tensor, first: Tensor) -> None:
    check_tensor(f"xs[{t}]", x)
    if x.dim() != 4:
        raise ValueError(f"xs[{t}]: expected a map [B, C, H, W], got {shape_of(x)}")
    if x.dtype != first.dtype:
        raise TypeError(f"xs[{t}]: expected {first.dtype} like xs[0], got {x.dtype}")
    if x.device != first.device:
        raise ValueError(f"xs[{t}]: expected device {first.device} like xs[0], got {x.device}")
    if x.shape[:2] != first.shape[:2]:
        raise ValueError(
            f"xs[{t}]: expected B={first.shape[0]} and C={first.shape[1]} like xs[0], got {shape_of(x)}; "
            "the maps of a stage may differ in H and W only"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"xs[{t}]: expected C, H and W of at least 1, got {shape_of(x)}")


def check_rows(name: str, y: Tensor) -> None:
    """Raise an error unless y, or d, is [T, B, C]."""
    check_tensor(name, y)
    if y.dim() != 3 or y.shape[0] == 0 or y.shape[2] == 0:
        raise ValueError(f"{name}: expected [T, B, C] with T and C of at least 1, got {shape_of(y)}")


def _check_company(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """Raise an error unless x has the device of ``like``, and is float64 exactly where ``like`` is."""
    check_tensor(name, x)
    if x.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} like {like_name}, got {x.device}")
    if accumulate_dtype(x.dtype) != accumulate_dtype(like.dtype):
        expected = "float64" if like.dtype == torch.float64 else "float32 or a 16-bit float"
        raise TypeError(f"{name}: expected {expected} beside {like_name} of {like.dtype}, got {x.dtype}")


def check_gates(name: str, T: str, d: Tensor, xs_name: str, xs: Sequence[Tensor]) -> None:
    """Raise an error unless d has one factor for each channel of each map."""
    check_rows(name, d)
    _check_company(name, d, f"{xs_name}[0]", xs[0])
    expected = [len(xs), *xs[0].shape[:2]]
    if list(d.shape) != expected:
        raise ValueError(f"{name}: expected [{T}, B, C] = {expected}, got {shape_of(d)}")


def check_alike(maps: Mapping[str, Tensor]) -> None:
    """Raise an error unless these are maps [B, C, H, W] of one shape, dtype and device."""
    (first_name, first), *_ = maps.items()
    for name, x in maps.items():
        check_tensor(name, x)
        if x.dim() != 4 or 0 in x.shape[1:]:
            raise ValueError(f"{name}: expected a map [B, C, H, W] with C, H and W of at least 1, got {shape_of(x)}")
        if x.dtype != first.dtype:
            raise TypeError(f"{name}: expected dtype {first.dtype} like {first_name}, got {x.dtype}")
        if x.device != first.device:
            raise ValueError(f"{name}: expected device {first.device} like {first_name}, got {x.device}")
        if x.shape != first.shape:
            raise ValueError(f"{name}: expected shape {shape_of(first)} like {first_name}, got {shape_of(x)}")


def check_weight(name: str, w: Tensor, shape: tuple[int, ...], like_name: str, like: Tensor) -> None:
    _check_company(name, w, like_name, like)
    if tuple(w.shape) != shape:
        raise ValueError(f"{name}: expected {list(shape)}, got {shape_of(w)}")


def check_attention(attention: Attention, heads: int, like: Tensor) -> None:
    """Raise an error unless these are one layer's filters, for maps like x."""
    C = like.shape[1]
    if not isinstance(attention, Attention):
        raise TypeError(f"attention: expected a dla_kernels.Attention(q, k, v), got {type(attention).__name__}")
    check_heads("attention.", attention.q, attention.k, heads, C, "x", like)
    check_weight("attention.v", attention.v, (C, 1, 3, 3), "x", like)


def check_heads(prefix: str, q: Tensor, k: Tensor, heads: int, C: int, like_name: str, like: Tensor) -> None:
    """Raise an error unless q and k are filters [K] over C channels in so many heads."""
    if not isinstance(heads, int) or heads < 1 or C % heads:
        raise ValueError(f"heads: expected a divisor of C = {C}, got {heads}")
    check_tensor(f"{prefix}q", q)
    if q.dim() != 1 or len(q) % 2 == 0:
        raise ValueError(f"{prefix}q: expected [K] with an odd K, got {shape_of(q)}")
    for name, taps in (("q", q), ("k", k)):
        check_weight(f"{prefix}{name}", taps, tuple(q.shape), like_name, like)


def check_past(past: Sequence[Tensor], y: Tensor) -> None:
    """Raise an error unless this is () | (keys, scale) | (keys, scale, d), for y [B, C]."""
    if isinstance(past, Tensor) or not isinstance(past, Sequence) or len(past) not in (0, 2, 3):
        got = f"{len(past)} tensors" if isinstance(past, (tuple, list)) else type(past).__name__
        raise ValueError(f"past: expected (), (keys, scale) or (keys, scale, d), got {got}")
    for i, p in enumerate(past):
        check_rows(f"past[{i}]", p)
        check_weight(f"past[{i}]", p, (len(past[0]) * (1 + i // 2), *y.shape), "y", y)


def check_cell(
    weights: Weights, cell: Cell | str, C: int, like_name: str, like: Tensor, *, remembers: bool = True
) -> Cell:
    """Return the cell, which may be given by name; raise an error unless the weights fit it and C channels, and it
    remembers where that is needed."""
    cell = as_cell(cell)
    if remembers and not cell.remembers:
        raise ValueError(f"cell: expected one with a state, got {cell.kind!r}, which is for dla_kernels.recalibrate")
    expected = PROJECTIONS[cell.projection]
    if not isinstance(weights, expected):
        got = type(weights).__name__
        raise TypeError(
            f"weights: expected {expected.__name__} for a cell with projection={cell.projection!r}, got {got}; "
            "pass these weights or choose another projection, e.g. Cell(..., projection=...)"
        )
    first: Tensor = weights[0]
    optional = ("b1", "b2") if cell.projection == "squeeze" else ()
    check_tensor(f"weights.{weights._fields[0]}", first)
    R = first.shape[0] if first.dim() else 0
    if R == 0:
        raise ValueError(f"weights.{weights._fields[0]}: expected at least one row, got {shape_of(first)}")
    shapes = weight_shapes(cell, C, R)
    if cell.projection == "taps" and R % 2 == 0:
        raise ValueError(f"weights.taps: expected [K] with an odd K, got {shape_of(first)}")
    for name, w in zip(weights._fields, weights):
        if w is None and name in optional:
            continue
        check_tensor(f"weights.{name}", w)
        assert w is not None
        _check_company(f"weights.{name}", w, like_name, like)
        if w.dtype != first.dtype:
            raise TypeError(f"weights.{name}: expected {first.dtype} like weights.{weights._fields[0]}, got {w.dtype}")
        if tuple(w.shape) != shapes[name]:
            raise ValueError(
                f"weights.{name}: expected {list(shapes[name])} for C={C} and NG={cell.num_gates} gates, "
                f"got {shape_of(w)}"
            )
    return cell


def check_state(state: tuple[Tensor, ...], cell: Cell, B: int, C: int, like_name: str, like: Tensor) -> None:
    """Raise an error unless this is a state to start from, in one of ``cell.state_forms``, each [B, C]."""
    forms = cell.state_forms
    if isinstance(state, Tensor) or not isinstance(state, Sequence) or len(state) not in map(len, forms):
        names = " or ".join(f"({', '.join(form)}{',' * (len(form) == 1)})" for form in forms)
        got = f"{len(state)} tensors" if isinstance(state, (tuple, list)) else type(state).__name__
        expected = f"a tuple {names}" if cell.remembers else "None"
        raise ValueError(f"state: expected {expected} for a {cell.kind} cell, got {got}")
    for i, s in enumerate(state):
        _check_company(f"state[{i}]", s, like_name, like)
        if tuple(s.shape) != (B, C):
            raise ValueError(f"state[{i}]: expected [B, C] = [{B}, {C}], got {shape_of(s)}")
