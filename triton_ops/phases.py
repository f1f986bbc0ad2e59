"""The cell a phase at a time, where weights are many: all programs share out each phase, its rows, columns and layers,
and the end of a launch is what everybody waits for. A step of the scan is then as fast as the chip, not as one
processor, can read the weights.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cell_call import CellCall, from_row
from .recurrence import (
    first_row,
    hoist_into,
    hoist_out_of,
    into_bottleneck,
    into_bottleneck_of_last,
    load_start,
    out_of_bottleneck,
    out_of_bottleneck_of_last,
    own_rows,
    rows_apart,
    rows_of_tile,
    samples_of_tile,
    share_last,
    take_step,
    write_refreshed,
)
from .recurrence_bwd import (
    Factors,
    begin,
    finish_into,
    finish_out_of,
    gather_refresh,
    keep_start,
    leave_refresh,
    refresh_to_bottleneck,
    refresh_to_state,
    step_back,
    step_to_bottleneck,
    step_to_state,
)


@triton.jit(do_not_specialize=["t", "T", "B"])
def forward_phase_kernel(
    y,  # [T, B, C]
    d,  # [T, B, C] written; None where no layer is refreshed
    states_h,  # [T, B, C] written; None where the cell saves none
    states_c,  # [T, B, C] written; None where the cell saves none
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    w,  # recurrence.Weights
    s,  # recurrence.Scratch
    t,  # the layer of a step; of a refresh, how many layers the scan had
    PHASE: tl.constexpr,
    T,
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell
    PROJECTION: tl.constexpr,  # "joint", "split" or "dense"
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    N = CELL.NG * C
    b, there = samples_of_tile(B, TILES)
    row = tl.cast(t, tl.int64) * B + b
    h = s.h + (t % 2) * tl.cast(B, tl.int64) * C
    if PHASE == "start":
        load_start(s, h0, c0, B, C, CELL, TILES)
    elif PHASE == "hoist into":
        hoist_into(y, w, s.p, s.q, s.uy, T, B, C, R, N, PROJECTION, TILES, PRECISION)
    elif PHASE == "hoist out of":
        hoist_out_of(w, s.q, s.uy, T, B, R, N, TILES, PRECISION)
    elif PHASE == "into":
        into_bottleneck(h, b * C, s.u, b * R, row, there, w, s.p, C, R, TILES, PRECISION, True)
    elif PHASE == "out of":
        out_of_bottleneck(
            h, b * C, s.u, b * R, s.a, b * N, row, there, w, s.q, C, R, N, PROJECTION, TILES, PRECISION, True
        )  # fmt: skip
    elif PHASE == "step":
        take_step(states_h, states_c, s, t, B, C, CELL, TILES)
    elif PHASE == "share last":
        share_last(h, s.last_product, w, B, C, R, N, PROJECTION, TILES, PRECISION)
    else:
        for m0 in range(first_row(TILES), T * TILES.samples, rows_apart(TILES)):
            row, b, there = rows_of_tile(m0, T, B, TILES)
            own = own_rows(row, TILES)
            if PHASE == "refresh into":
                into_bottleneck_of_last(s.last_product, b, s.u, own * R, row, there, w, s.p, R, TILES)
            elif PHASE == "refresh out of":
                out_of_bottleneck_of_last(
                    s.last_product, b, s.u, own * R, s.a, own * N, row, there, w, s.q, R, N, PROJECTION, TILES,
                    PRECISION,
                )  # fmt: skip
            else:
                write_refreshed(d, h, s.c, s.a, own, row, b, there, C, CELL, TILES)


@triton.jit(do_not_specialize=["t", "T", "B"])
def backward_phase_kernel(
    y,  # [T, B, C]
    d,  # [T, B, C] written where it is wanted
    dd,  # [T, B, C]; None without a refresh
    dy,  # [T, B, C] written
    states_h,  # [T, B, C] as the forward pass saved them; None where the cell saves none
    states_c,  # [T, B, C] as the forward pass saved them; None where the cell saves none
    dstates_h,  # [T, B, C]; None where no gradient arrives
    dstates_c,  # [T, B, C]; None where no gradient arrives
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    h_last,  # [B, C] the state that layers are refreshed from
    c_last,  # [B, C]; None where the cell has none
    w,  # recurrence.Weights
    f,  # recurrence_bwd.Factors, written
    t,  # the layer of a step
    PHASE: tl.constexpr,
    FIRST: tl.constexpr,  # as `finish` takes them
    BOTH: tl.constexpr,
    T,
    B,
    C,
    R,
    CELL: tl.constexpr,  # cells.Cell
    PROJECTION: tl.constexpr,  # "joint", "split" or "dense"
    TILES: tl.constexpr,  # tiles.Tiles
    PRECISION: tl.constexpr,  # of products: "ieee" or "tf32"
):
    N = CELL.NG * C
    if PHASE == "begin":
        begin(states_h, states_c, h0, c0, f, T, B, C, CELL, TILES)
    elif PHASE == "hoist into":
        hoist_into(y, w, f.p, f.q, f.uy, T, B, C, R, N, PROJECTION, TILES, PRECISION)
    elif PHASE == "hoist out of":
        hoist_out_of(w, f.q, f.uy, T, B, R, N, TILES, PRECISION)
    elif PHASE == "share last":
        share_last(h_last, f.last_product, w, B, C, R, N, PROJECTION, TILES, PRECISION)
    elif PHASE == "leave refresh":
        leave_refresh(dd, d, h_last, c_last, f, T, B, C, CELL, TILES)
    elif PHASE == "refresh to bottleneck":
        refresh_to_bottleneck(w, f, T, B, R, N, TILES, PRECISION)
    elif PHASE == "gather refresh":
        gather_refresh(f, T, B, R, N, PROJECTION, TILES)
    elif PHASE == "refresh to state":
        refresh_to_state(w, f, T, B, C, R, N, PROJECTION, TILES, PRECISION)
    elif PHASE == "step back":
        step_back(dstates_h, dstates_c, states_c, c0, f, t, T, B, C, CELL, TILES)
    elif PHASE == "step to bottleneck":
        step_to_bottleneck(w, f, t, T, B, R, N, TILES, PRECISION)
    elif PHASE == "step to state":
        step_to_state(w, f, t, T, B, C, R, N, PROJECTION, TILES, PRECISION)
    elif PHASE == "keep start":
        keep_start(h0, c0, f, B, C, CELL, TILES)
    elif PHASE == "finish into":
        finish_into(w, f, T, B, R, N, FIRST, BOTH, TILES, PRECISION)
    elif PHASE == "finish out of":
        finish_out_of(dy, w, f, T, B, C, R, N, FIRST, BOTH, PROJECTION, TILES, PRECISION)
    else:
        for m0 in range(first_row(TILES), T * TILES.samples, rows_apart(TILES)):
            row, b, there = rows_of_tile(m0, T, B, TILES)
            own = T * B + row
            if PHASE == "refresh into":
                into_bottleneck_of_last(f.last_product, b, f.u, row * R, row, there, w, f.p, R, TILES)
            elif PHASE == "refresh out of":
                out_of_bottleneck_of_last(
                    f.last_product, b, f.u, row * R, f.da, row * N, row, there, w, f.q, R, N, PROJECTION, TILES,
                    PRECISION,
                )  # fmt: skip
            elif PHASE == "gates into":
                into_bottleneck(f.h, row * C, f.u, own * R, row, there, w, f.p, C, R, TILES, PRECISION, False)
            else:
                out_of_bottleneck(
                    f.h, row * C, f.u, own * R, f.da, own * N, row, there, w, f.q, C, R, N, PROJECTION, TILES,
                    PRECISION, False,
                )  # fmt: skip


def columns_of(phase: str, call: CellCall) -> tuple[int, int]:
    """Return how many columns a phase has, and how many of them a program takes at once."""
    how, low, product = call.tiles, call.projection != "dense", call.tiles.product[0]
    if phase in ("start", "begin", "step", "step back", "leave refresh", "keep start"):
        return call.C, how.channels
    if phase in ("refresh to state", "step to state", "finish out of"):
        return call.C, product
    if phase == "write refreshed":
        return call.C, how.columns
    if phase == "refresh into":
        return call.R, how.columns
    if phase == "refresh out of":
        return call.N, product if low else how.columns
    if phase == "gather refresh":
        return call.R if low else call.N, how.channels
    if phase in ("hoist out of", "out of", "gates out of") or not low:
        return call.N, product
    return call.R, product


class Phases:
    """The launches of one pass: of each phase as many programs as its columns have tiles, and its rows layers."""

    def __init__(self, kernel: Any, call: CellCall, **args: Any) -> None:
        self.kernel, self.call, self.args = kernel, call, args

    def run(self, *phases: str, layers: int = 1, **args: Any) -> None:
        """Launch phases, one after the other, over so many layers at once."""
        for phase in phases:
            columns, of_tile = columns_of(phase, self.call)
            shares = triton.cdiv(columns, of_tile), layers
            self.call.run(self.kernel, PHASE=phase, shares=shares, **{"t": 0, "T": layers, **self.args, **args})


def of_bottleneck(call: CellCall, name: str) -> tuple[str, ...]:
    """Return the phases of two products, or of the one that there is without a bottleneck."""
    return (f"{name} out of",) if call.projection == "dense" else (f"{name} into", f"{name} out of")


def hoisted(call: CellCall) -> tuple[str, ...]:
    return ("hoist into", "hoist out of") if call.projection == "split" else ("hoist into",)


def forward(call: CellCall, y: Tensor, states: list[Tensor], *, scanned: int, refreshed: int) -> Tensor | None:
    """Run the cell over the first rows of y and fill states; return d of the last rows, from the state after that."""
    s, rows = call.scratch(), y.shape[0]
    d = call.empty(refreshed, call.B, call.C) if refreshed else None
    phases = Phases(forward_phase_kernel, call, y=y, d=d, **call.tensors(states))
    phases.run("start", s=s)
    phases.run(*hoisted(call), layers=rows, s=s)
    step = ("out of",) if call.projection == "dense" else ("into", "out of")
    for t in range(scanned):
        phases.run(*step, "step", t=t, s=s)
    if refreshed:
        of_refresh = from_row(s, rows - refreshed)
        phases.run("share last", t=scanned, s=of_refresh)
        phases.run(*of_bottleneck(call, "refresh"), "write refreshed", layers=refreshed, t=scanned, s=of_refresh)
    return d


def backward(
    call: CellCall, f: Factors, y: Tensor, dd: Tensor | None, states: list[Tensor], dstates: list[Tensor], *,
    h_last: Tensor | None = None, c_last: Tensor | None = None, d: Tensor | None = None, scanned: int, refreshed: int,
) -> Tensor:  # fmt: skip
    """Fill the factors, and d as the forward pass did where it is wanted, and return dy. The rows of y are those of the
    factors: the refreshed ones first, unless all rows are scanned and refreshed."""
    rows, T = y.shape[0], max(scanned, refreshed)
    dy = torch.empty_like(y)
    both = rows == T and scanned > 0 and refreshed > 0
    given = {"y": y, "d": d, "dd": dd, "dy": dy, "h_last": h_last, "c_last": c_last}
    given |= {"FIRST": 0 if refreshed else 1, "BOTH": both} | call.tensors(states, dstates)
    phases = Phases(backward_phase_kernel, call, **given)
    phases.run("begin", T=scanned, f=f)
    phases.run(*hoisted(call), layers=rows, f=f)
    low = call.projection != "dense"
    if refreshed:
        phases.run("share last", f=f)
        phases.run(*of_bottleneck(call, "refresh"), layers=refreshed, f=f)
        phases.run("leave refresh", T=refreshed, f=f)
        if low:
            phases.run("refresh to bottleneck", layers=refreshed, f=f)
        phases.run("gather refresh", "refresh to state", T=refreshed, f=f)
    if scanned:
        of_scan = f if both or not refreshed else from_row(f, refreshed)
        phases.run(*of_bottleneck(call, "gates"), layers=scanned, f=of_scan)
        back = ("step back", "step to bottleneck", "step to state") if low else ("step back", "step to state")
        for t in reversed(range(scanned)):
            phases.run(*back, t=t, T=scanned, f=of_scan)
    phases.run("keep start", f=f)
    finish = ("finish into", "finish out of") if call.projection == "split" else ("finish out of",)
    phases.run(*finish, layers=rows, f=f)
    return dy
