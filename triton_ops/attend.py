"""What a layer has of each layer before it and of itself, of M + 1 in all:

    coef_m = softmax over m of (q . k_m / sqrt(D)) scale_m,  q = filter(y; taps q), k_M = filter(y; taps k), scale_M = 1

where keys k_m and scales of the layers before are first refreshed, multiplied by d. One program for each sample."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_heads, check_past, check_tensor, require
from .heads import HEAD, across_channels, channels_of, tap_gradients
from .launch import run
from .maps import row_of
from .operator import operator
from .sums import sum_samples
from .tiles import Tiles, tiles


@triton.jit
def refreshed(own, rows, d, m, d_m, M, b, B, c, known, C):
    """Return the keys or scales of layer m at channels c: of a layer before, row m of [M, B, C] times row d_m of d; of
    this layer, where m = M, its own."""
    of_m = own
    if rows is not None:  # noqa: SIM102, known when compiled, unlike m
        if m < M:
            of_m = tl.load(rows + row_of(m, b, B, C) + c, known, 0.0)
            if d is not None:
                of_m *= tl.load(d + row_of(d_m, b, B, C) + c, known, 0.0)
    return of_m


@triton.jit
def key_of(keys, d, y, k, K, m, M, b, B, c, known, C):
    """Return the key of layer m at channels c, refreshed: of this layer, the filter k over its y."""
    return refreshed(across_channels(y, k, K, c, known, C), keys, d, m, m, M, b, B, c, known, C)


@triton.jit
def scale_of(scale, d, m, M, b, B, c, known, C, A: tl.constexpr):
    """Return the scale of layer m at channels c, refreshed: of this layer, 1."""
    return refreshed(tl.full(c.shape, 1.0, A), scale, d, m, M + m, M, b, B, c, known, C)


@triton.jit
def scores_of_layers(scores, y, q, k, keys, d, M, b, B, g, HEADS, K, D, C, SCALE: tl.constexpr):
    """Fill scores [M + 1, B, HEADS] of heads g. Return the largest, and the sum of exp(score - largest)."""
    A: tl.constexpr = y.dtype.element_ty
    there = g < HEADS
    largest = tl.full(g.shape, float("-inf"), A)
    for m in range(0, M + 1):
        score = tl.zeros(g.shape, A)
        for d0 in range(0, D, HEAD):
            c, known = channels_of(g, d0, HEADS, D)
            key = key_of(keys, d, y, k, K, m, M, b, B, c, known, C)
            score += tl.sum(across_channels(y, q, K, c, known, C) * key, 1)
        score *= SCALE
        largest = tl.where(score <= largest, largest, score)  # NaN is largest
        tl.store(scores + row_of(m, b, B, HEADS) + g, score, there)
    tl.debug_barrier()  # other threads read them
    sums = tl.zeros(g.shape, A)
    for m in range(0, M + 1):
        sums += tl.exp(tl.load(scores + row_of(m, b, B, HEADS) + g, there, 0.0) - largest)
    return largest, sums


@triton.jit
def share_of(scores, m, b, B, g, HEADS, largest, sums):
    """Return the softmax of layer m."""
    return tl.exp(tl.load(scores + row_of(m, b, B, HEADS) + g, g < HEADS, 0.0) - largest) / sums


@triton.jit(do_not_specialize=["M", "B", "K"])
def attend_kernel(
    coef,  # [M + 1, B, C] written
    keys,  # [M + 1, B, C] written
    scale,  # [M + 1, B, C] written
    scores,  # [M + 1, B, HEADS] scratch
    y,  # [B, C]
    q,  # [K] taps
    k,  # [K] taps
    past_keys,  # [M, B, C], or None where there is no layer before
    past_scale,  # [M, B, C], or None
    d,  # [2 M, B, C] gates of past_keys, then of past_scale; None where nothing is refreshed
    M,  # layers before
    B,
    HEADS,
    K,  # taps
    C,
    SCALE: tl.constexpr,  # 1 / sqrt(D)
    TILES: tl.constexpr,  # tiles.Tiles
):
    A: tl.constexpr = y.dtype.element_ty
    b = tl.program_id(0)
    y += row_of(0, b, B, C)
    D = C // HEADS
    for g0 in range(0, HEADS, TILES.rows):
        g = g0 + tl.arange(0, TILES.rows)
        largest, sums = scores_of_layers(scores, y, q, k, past_keys, d, M, b, B, g, HEADS, K, D, C, SCALE)
        for m in range(0, M + 1):
            share = share_of(scores, m, b, B, g, HEADS, largest, sums)
            for d0 in range(0, D, HEAD):
                c, known = channels_of(g, d0, HEADS, D)
                of_m = scale_of(past_scale, d, m, M, b, B, c, known, C, A)
                at = row_of(m, b, B, C) + c
                tl.store(keys + at, key_of(past_keys, d, y, k, K, m, M, b, B, c, known, C), known)
                tl.store(scale + at, of_m, known)
                tl.store(coef + at, share[:, None] * of_m, known)


@triton.jit(do_not_specialize=["M", "B", "K"])
def attend_bwd_kernel(
    dy,  # [B, C] written
    dtaps,  # [B, 2 K] of q, then of k, of each sample; written
    dpast_keys,  # [M, B, C] written; None where past_keys is
    dpast_scale,  # [M, B, C] written; None where past_scale is
    dd,  # [2 M, B, C] written; None where d is
    dq_row,  # [B, C] scratch: the gradient of the query
    dk_row,  # [B, C] scratch: that of the layer's own key
    scores,  # [M + 1, B, HEADS] scratch
    dshares,  # [M + 1, B, HEADS] scratch
    dcoef,  # [M + 1, B, C]
    dkeys,  # [M + 1, B, C]
    dscale,  # [M + 1, B, C]
    y,  # [B, C]
    q,  # [K] taps
    k,  # [K] taps
    past_keys,  # [M, B, C], or None where there is no layer before
    past_scale,  # [M, B, C], or None
    d,  # [2 M, B, C] gates of past_keys, then of past_scale; None where nothing is refreshed
    M,  # layers before
    B,
    HEADS,
    K,  # taps
    C,
    SCALE: tl.constexpr,  # 1 / sqrt(D)
    TILES: tl.constexpr,  # tiles.Tiles
):
    A: tl.constexpr = y.dtype.element_ty
    ROWS: tl.constexpr = TILES.rows  # as a constant of its own: Triton 3.6 takes no other in a shape
    b = tl.program_id(0)
    row = row_of(0, b, B, C)
    y, dq_row, dk_row, dy = y + row, dq_row + row, dk_row + row, dy + row
    dq = dtaps + row_of(0, b, B, 2 * K)
    D = C // HEADS
    for g0 in range(0, HEADS, ROWS):
        g = g0 + tl.arange(0, ROWS)
        there = g < HEADS
        largest, sums = scores_of_layers(scores, y, q, k, past_keys, d, M, b, B, g, HEADS, K, D, C, SCALE)
        mean = tl.zeros([ROWS], A)
        for m in range(0, M + 1):
            dshare = tl.zeros([ROWS], A)
            for d0 in range(0, D, HEAD):
                c, known = channels_of(g, d0, HEADS, D)
                of_m = scale_of(past_scale, d, m, M, b, B, c, known, C, A)
                dshare += tl.sum(tl.load(dcoef + row_of(m, b, B, C) + c, known, 0.0) * of_m, 1)
            mean += share_of(scores, m, b, B, g, HEADS, largest, sums) * dshare
            tl.store(dshares + row_of(m, b, B, HEADS) + g, dshare, there)
        tl.debug_barrier()  # other threads read them
        for d0 in range(0, D, HEAD):
            c, known = channels_of(g, d0, HEADS, D)
            query = across_channels(y, q, K, c, known, C)
            to_q = tl.zeros(c.shape, A)
            for m in range(0, M + 1):
                share = share_of(scores, m, b, B, g, HEADS, largest, sums)
                dscore = share * (tl.load(dshares + row_of(m, b, B, HEADS) + g, there, 0.0) - mean) * SCALE
                at = row_of(m, b, B, C) + c
                to_q += dscore[:, None] * key_of(past_keys, d, y, k, K, m, M, b, B, c, known, C)
                to_key = tl.load(dkeys + at, known, 0.0) + dscore[:, None] * query
                if m == M:
                    tl.store(dk_row + c, to_key, known)
                elif past_keys is not None:
                    to_scale = tl.load(dscale + at, known, 0.0) + tl.load(dcoef + at, known, 0.0) * share[:, None]
                    if d is not None:
                        at_scale = row_of(M + m, b, B, C) + c
                        tl.store(dd + at, to_key * tl.load(past_keys + at, known, 0.0), known)
                        tl.store(dd + at_scale, to_scale * tl.load(past_scale + at, known, 0.0), known)
                        to_key *= tl.load(d + at, known, 0.0)
                        to_scale *= tl.load(d + at_scale, known, 0.0)
                    tl.store(dpast_keys + at, to_key, known)
                    tl.store(dpast_scale + at, to_scale, known)
            tl.store(dq_row + c, to_q, known)
    tl.debug_barrier()
    for c0 in range(0, C, TILES.channels):
        c = c0 + tl.arange(0, TILES.channels)
        from_q = across_channels(dq_row, q, K, c, c < C, C, True)
        tl.store(dy + c, from_q + across_channels(dk_row, k, K, c, c < C, C, True), c < C)
    tap_gradients(dq, dq_row, y, K, C, TILES)
    dk = dq + K
    tap_gradients(dk, dk_row, y, K, C, TILES)


def _told(
    op: str, y: Tensor, q: Tensor, k: Tensor, past: list[Tensor], heads: int
) -> tuple[Tiles, int, dict[str, Any]]:
    """Return tiles, M, and what both kernels are told: what they read, and how much of it there is."""
    require(y.dim() == 2 and y.shape[1] > 0, f"y: expected [B, C], got {y.dim()} dimensions")
    require(y.dtype in (torch.float32, torch.float64), f"y: expected fp32 or fp64, got {y.dtype}")
    B, C = y.shape
    check_heads(q, k, C, heads, y.dtype, y)
    M = check_past(past, y)
    how = tiles(op, C, 0, 0, y.dtype)
    past_keys, past_scale, d = [*(x.contiguous() for x in past), *[None] * (3 - len(past))]
    told = {
        "y": y.contiguous(),
        "q": q.contiguous(),
        "k": k.contiguous(),
        "past_keys": past_keys,
        "past_scale": past_scale,
        "d": d,
        "M": M,
        "B": B,
        "HEADS": heads,
        "K": q.shape[0],
        "C": C,
        "SCALE": (C // heads) ** -0.5,
        "TILES": how,
    }
    return how, M, told


@operator()
def attend(y: Tensor, q: Tensor, k: Tensor, past: list[Tensor], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    how, M, told = _told("attend", y, q, k, past, heads)
    B, C = y.shape
    coef, keys, scale = (y.new_empty((M + 1, B, C)) for _ in range(3))
    scores = y.new_empty((M + 1, B, heads))
    run(attend_kernel, B, y, how, coef=coef, keys=keys, scale=scale, scores=scores, **told)
    return coef, keys, scale


@operator()
def attend_bwd(
    dcoef: Tensor, dkeys: Tensor, dscale: Tensor, y: Tensor, q: Tensor, k: Tensor, past: list[Tensor], heads: int
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    how, M, told = _told("attend_bwd", y, q, k, past, heads)
    B, C = y.shape
    grads = {"dcoef": dcoef, "dkeys": dkeys, "dscale": dscale}
    for name, x in grads.items():
        check_tensor(name, x, (M + 1, B, C), y.dtype, y)
    dpast = [x.new_empty(x.shape) for x in past]
    dpast_keys, dpast_scale, dd = [*dpast, *[None] * (3 - len(dpast))]
    dy, dq_row, dk_row = (y.new_empty((B, C)) for _ in range(3))
    scores, dshares = (y.new_empty((M + 1, B, heads)) for _ in range(2))
    dtaps, dq, dk = y.new_empty((B, 2 * q.shape[0])), q.new_empty(q.shape), k.new_empty(k.shape)
    run(
        attend_bwd_kernel,
        B,
        y,
        how,
        dy=dy,
        dtaps=dtaps,
        dpast_keys=dpast_keys,
        dpast_scale=dpast_scale,
        dd=dd,
        dq_row=dq_row,
        dk_row=dk_row,
        scores=scores,
        dshares=dshares,
        dcoef=dcoef.contiguous(),
        dkeys=dkeys.contiguous(),
        dscale=dscale.contiguous(),
        **told,
    )
    sum_samples(dtaps, [dq, dk], how)
    return dy, dq, dk, dpast
