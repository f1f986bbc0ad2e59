"""What every launch shares: its tiles, its grid, the device."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .maps import ELEMENT, ROOM, MapList, table
from .tiles import Tiles, tiles

# The interpreter knows one program of one launch at a time, whichever thread asks.
INTERPRETED = triton.knobs.runtime.interpret
_alone: AbstractContextManager = threading.Lock() if INTERPRETED else nullcontext()


def launched(kernel: Any, programs: tuple[int, ...], like: Tensor, how: Tiles, /, **args: Any) -> None:
    """Launch on the device of ``like``, on its current stream, with the registers that the tiles allow a thread; one
    launch after the other where the interpreter runs them."""
    limit = {} if torch.version.hip else {"maxnreg": how.registers}
    device: AbstractContextManager = torch.cuda.device(like.device) if like.is_cuda else nullcontext()
    with device, _alone:
        kernel[programs](**args, num_warps=how.warps, num_stages=how.stages, **limit)


launch = launched  # tools/triton_resources.py compiles instead


def run(kernel: Any, programs: int | tuple[int, ...], like: Tensor, how: Tiles, /, **args: Any) -> None:
    """Launch a kernel in so many programs, along several axes perhaps, with its arguments by their names. An empty
    batch launches nothing."""
    grid = (programs,) if isinstance(programs, int) else programs
    if min(grid) > 0:
        launch(kernel, grid, like, how, **args)


def precision() -> str:
    """Return what products may round to: TF32 only where the user has allowed it through PyTorch."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


# ---- ops on maps alone ----


def pieces_of(op: str, x: MapList) -> tuple[Tiles, int]:
    """Return tiles, and how many programs: one for every layer, sample and piece of the channels."""
    B, C = x.held[0].shape[:2]
    how = tiles(op, C, 0, x.largest_plane(), x.held[0].dtype)
    return how, len(x.held) * B * triton.cdiv(C, how.piece)


def over_maps(op: str, kernel: Any, lists: tuple[MapList, ...], **args: Tensor | None) -> None:
    """Launch a kernel over the pieces of all maps, with its arguments beside the table of these lists."""
    like = lists[0].held[0]
    B, C = like.shape[:2]
    given, piece = table(*lists, room=ROOM)
    how, programs = pieces_of(op, lists[0])
    shape = {"B": B, "C": C, "ELEMENT": ELEMENT[like.dtype], "PIECE": piece}
    run(kernel, programs, like, how, table=given, **args, **shape, TILES=how)


@triton.jit
def maps_of_program(B, C, TILES: tl.constexpr, BACKWARDS: tl.constexpr = False):
    """Return the program's layer, its sample, and its channels begin .. end. BACKWARDS: from the last layer on, whose
    maps an earlier launch has read last, so that the cache still holds them."""
    pieces = tl.cdiv(C, TILES.piece)
    program = tl.num_programs(0) - 1 - tl.program_id(0) if BACKWARDS else tl.program_id(0)
    begin = program % pieces * TILES.piece
    return program // pieces // B, program // pieces % B, begin, tl.minimum(begin + TILES.piece, C)
