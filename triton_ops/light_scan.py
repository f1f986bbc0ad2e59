"""c_t = Dyn(y_t, c_{t-1}) for t = 1..T, of a light cell: a bottleneck over all rows, and then elementwise. It is what
scan turns to."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import BOTTLENECK, check_rows
from .launch import run
from .light import LightCall, light_layers, light_layers_bwd
from .products import own_columns
from .recurrence import samples_of_tile
from .squeeze import Squeezing


@triton.jit(do_not_specialize=["T", "B"])
def light_scan_kernel(
    s,  # [T, B, C]
    states_h,  # [T, B, C] written; None where the cell saves none
    states_c,  # [T, B, C] written; None where the cell saves none
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    w,  # light.Light
    T,
    B,
    C,
    CELL: tl.constexpr,  # cells.Cell
    TILES: tl.constexpr,  # tiles.Tiles
):
    b, there = samples_of_tile(B, TILES)
    begin, end = own_columns(C, TILES.channels)
    for first in range(begin, end, TILES.channels):
        c = first + tl.arange(0, TILES.channels)
        light_layers(s, states_h, states_c, h0, c0, w, b, there, c, T, B, C, CELL)


@triton.jit(do_not_specialize=["T", "B"])
def light_scan_bwd_kernel(
    s,  # [T, B, C]
    ds,  # [T, B, C] written
    states_h,  # [T, B, C] as the forward pass saved them; None where the cell saves none
    states_c,  # [T, B, C] as the forward pass saved them; None where the cell saves none
    dstates_h,  # [T, B, C]; None where the cell saves none
    dstates_c,  # [T, B, C]; None where the cell saves none
    h0,  # [B, C]; None where it is act(c0), or the cell's own start
    c0,  # [B, C]; None for zeros
    dh0,  # [B, C] written; None where h0 is
    dc0,  # [B, C] written; None where c0 is
    parts,  # [programs along axis 0, 3 NG*C] written: each one's share in the gradients of wy, wh and b
    w,  # light.Light
    T,
    B,
    C,
    CELL: tl.constexpr,  # cells.Cell
    TILES: tl.constexpr,  # tiles.Tiles
):
    b, there = samples_of_tile(B, TILES)
    own = parts + tl.program_id(0).to(tl.int64) * (3 * CELL.NG * C)
    begin, end = own_columns(C, TILES.channels)
    for first in range(begin, end, TILES.channels):
        c = first + tl.arange(0, TILES.channels)
        light_layers_bwd(
            s, ds, states_h, states_c, dstates_h, dstates_c, h0, c0, dh0, dc0, own, w, b, there, c, T, B, C, CELL
        )  # fmt: skip


class Call:
    """The bottleneck, which takes all rows for samples, and the cell, which is told what it makes of them."""

    def __init__(self, op: str, rule: str, y: Tensor, weights: list[Tensor], state: list[Tensor]) -> None:
        check_rows("y", y)
        T, B, C = y.shape
        of_y, of_cell = weights[:BOTTLENECK], weights[BOTTLENECK:]
        self.y = y.contiguous().view(T * B, C)
        self.squeezing = Squeezing(f"squeeze{op}", rule, of_y, [], [], self.y)
        self.cell = LightCall(f"light_scan{op}", rule, of_cell, state, T, B, C, y)

    def run(self, kernel: Any, **args: Any) -> None:
        """Launch a program for every tile of samples and channels."""
        cell = self.cell
        programs = cell.programs, triton.cdiv(cell.C, cell.tiles.channels)
        shape = {"T": cell.T, "B": cell.B, "C": cell.C, "CELL": cell.cell, "TILES": cell.tiles}
        run(kernel, programs, cell.like, cell.tiles, s=self.squeezing.made, **args, **shape)


def light_scan(y: Tensor, weights: list[Tensor], state: list[Tensor], rule: str) -> list[Tensor]:
    call = Call("", rule, y, weights, state)
    states = call.cell.empty_states()
    call.squeezing.forward(call.y)
    call.run(light_scan_kernel, **call.cell.tensors(states))
    return states


def light_scan_bwd(
    dstates: list[Tensor], y: Tensor, weights: list[Tensor], state: list[Tensor], states: list[Tensor], rule: str
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    call = Call("_bwd", rule, y, weights, state)
    cell = call.cell
    states, dstates = cell.saved("states", states), cell.saved("dstates", dstates)
    ds = torch.empty_like(call.y)
    call.squeezing.forward(call.y)
    call.run(light_scan_bwd_kernel, ds=ds, **cell.tensors(states, dstates), **cell.back())
    of_cell, dstate = cell.gradients()
    dy, of_y = call.squeezing.back(call.y, ds)
    return dy.view(y.shape), of_y + of_cell, dstate
