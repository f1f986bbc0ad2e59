"""How large a piece each program and each step of it takes: one small table, by what a launch is about.

Never by the batch: a sample's bits would then depend on how many others are beside it, and every new batch size
would compile anew.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from math import gcd, prod
from typing import Any, NamedTuple

import torch


class Tiles(NamedTuple):
    """How a launch is cut. All sizes are powers of two."""

    samples: int  # that a program takes through the recurrence together, sharing every weight it reads
    rows: int  # (layer, sample) of a product that need not wait for the layer before
    columns: int  # of results that are summed over samples
    product: tuple[int, int]  # columns of such a product's result, and terms at once
    into: tuple[int, int]  # the same of a product inside the scan, whose rows are the samples, into the bottleneck
    out_of: tuple[int, int]  # and out of it
    channels: int  # of the cell's rule at once
    planar: tuple[int, int]  # channels and pixels of a map whose pixels are neighbours in memory
    interleaved: tuple[int, int]  # and of one whose channels are
    window: int  # pieces of a row of a map under a 3x3 filter, each what one access reads
    piece: int  # channels of a program, where programs share the channels of a sample
    abreast: bool  # whether programs share out each step of a tile's scan, in launches of its own: phases.py
    dots: bool  # whether products of 16 rows go to tl.dot; fp64 is summed without it
    warps: int
    stages: int
    registers: int  # of a thread, at most; ptxas would else spill a few for the sake of more programs at once


def power_of_two(n: int) -> int:
    """Return the least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def between(least: int, n: int, most: int) -> int:
    """Return n, or the bound that it is beyond."""
    return max(least, min(n, most))


class Strip(NamedTuple):
    """What a program has of a row of a map under a 3x3 filter. All sizes are powers of two."""

    channels: int
    pieces: int
    columns: int  # of a piece: neighbours that one access reads


ROWS_AHEAD = 2  # of a strip, which are asked for before the first is used
CHANNELS_AT_ONCE = 4  # of an interleaved map, that a thread reads, each with taps of its own


def strip(how: Tiles, W: int, piece: int, interleaved: bool) -> Strip:
    """Return the strips of maps W wide, of which so many neighbouring elements may be read at once."""
    if interleaved:
        columns, pieces, at_once = 1, between(1, power_of_two(W), 8), how.window * piece
    else:
        columns, at_once = gcd(W, piece), how.window
        pieces = between(1, power_of_two(W // columns), 32)
    return Strip(between(1, at_once // pieces, how.piece), pieces, columns)


# What tune.py found, where it was switched on, by what tiles() is asked; and what it is trying out.
Question = tuple[str, int, int, int, torch.dtype]
chosen: dict[Question, dict[str, int]] = {}
trial: dict[str, int] = {}
asked: ContextVar[list[Question] | None] = ContextVar("asked", default=None)  # by whoever wants to know


def tiles(op: str, C: int, R: int, HW: int, dtype: torch.dtype) -> Tiles:
    """Return tiles for an op with C channels, a bottleneck of R and maps of at most HW pixels; R = HW = 0 where there
    is none."""
    question = (op.removesuffix("_"), C, R, HW, dtype)
    how, listed = from_table(*question), asked.get()
    if question in chosen:
        how = how._replace(**chosen[question])
    elif not how.abreast:  # whose time is that of many launches, and mostly the host's
        how = how._replace(**trial)
        if listed is not None:
            listed.append(question)
    how = how._replace(**from_environment())
    return how._replace(piece=max(how.piece, how.planar[0], how.interleaved[0]))


def from_environment() -> dict[str, Any]:
    """Return what DLA_KERNELS_TRITON_TILES asks for, such as ``samples=4,into=64x128``: for measurements and tests."""
    given = os.environ.get("DLA_KERNELS_TRITON_TILES", "")
    items = (item.partition("=") for item in given.split(",") if item)
    return {name: tuple(map(int, value.split("x"))) if "x" in value else int(value) for name, _, value in items}


def tile_of_weights(columns: int, terms: int, at_once: int) -> tuple[int, int]:
    """Return a tile of so many weights at most, of a product with so many columns, each a sum of so many terms."""
    inner = between(16, power_of_two(terms), min(256, at_once // 16))
    return between(16, power_of_two(columns), at_once // inner), inner


def from_table(op: str, C: int, R: int, HW: int, dtype: torch.dtype) -> Tiles:
    """Return what the table says, before anyone has measured or asked for something else."""
    wide = dtype == torch.float64
    cell = op.removesuffix("_bwd") in ("scan", "refresh", "layer_update", "light_step", "squeeze")
    light = op.removesuffix("_bwd") == "light_scan"
    # Some loop reads two maps at once, or keeps the moments of what it writes.
    much_at_hand = op in ("mix", "mix_bwd", "norm_add", "norm_add_bwd")
    filters = op.removesuffix("_bwd") in ("depthwise", "light_step_filters", "light_step_tap_sums", "light_step_maps")
    # A tile of a map is 4 K elements, 16 a thread; half of that where odd planes need a pointer for each.
    odd = HW * dtype.itemsize % 8 != 0
    whole = 2048 if odd or wide else 4096
    # No tile is wider than what a program takes, 64 channels at least: its neighbour's are its neighbour's.
    piece = between(16, max(64, power_of_two((32 << 10) // max(HW, 1))), power_of_two(C))
    pixels, channels = between(16, power_of_two(HW), whole // 8), between(16, min(power_of_two(C), piece), whole // 8)
    # Where a step has some 256 K weights, a MB, they are worth sharing: by 16 samples, and by all programs.
    of_step = C * R // 2 if op.startswith("squeeze") else C * R  # whose products are half as many, or fewer
    abreast = cell and (of_step >= 1 << 16 if R else C >= 512) and not wide
    samples = 16 if abreast else 4 if light else 1 if C < 1024 else 2 if C < 2048 else 4
    # A step waits for each tile of weights, so tiles are as large as registers allow: 32 numbers a thread, and as many
    # sums for each sample; and twice the threads where there is little else to keep.
    large = op in ("scan", "layer_update", "squeeze") and samples == 1 and not wide
    at_once = (4096 if wide else 16384 if large else 8192) // samples
    product = (16 if wide else 32 if abreast or large else 64, 16)
    into = product if abreast else tile_of_weights(R or C, C, at_once)
    out_of = product if abreast else tile_of_weights(4 * C, R or C, at_once)
    if wide:
        warps = 8
    elif abreast or filters or light:
        warps = 4
    elif cell:
        warps = between(4, samples * max(prod(into), prod(out_of)) // 1024, 16)
    else:
        warps = 16 if much_at_hand else 8  # twice the threads, each with half the work
    # Maps stream as fast as there are bytes on their way: 32 KB and more, of bf16, in 1024 threads of a processor, or
    # in 768 that read two maps or have a pointer for each element. Cells wait for weights, with 512 threads or 256.
    streams = {"gap": 80 if odd else 64, "rescale": 64, "gate_gradient": 80, "rescale_bwd": 80}
    streams |= {"recalibrate": 80, "recalibrate_bwd": 128 if odd else 80}
    streams |= {"shown_gradient": 128 if odd or dtype.itemsize > 2 else 80}
    registers = 255 if wide or (cell and warps <= 8) else streams.get(op, 128)
    return Tiles(
        samples=samples,
        rows=4 if wide else 16,
        columns=16 if wide else 32,
        product=product,
        into=into,
        out_of=out_of,
        channels=32 if light else between(16, power_of_two(C), min(128 if wide else 256, 512 // samples)),
        planar=(whole // pixels, pixels),
        interleaved=(channels, whole // channels),
        window=32 * warps,  # one for a thread, which holds nine taps of every channel that it has
        piece=piece,
        abreast=abreast,
        dots=not wide,
        warps=warps,
        stages=3 if abreast else 2,
        registers=registers,
    )
