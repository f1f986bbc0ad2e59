"""The channel attention of one sample: queries and keys are filters over the channels of y, and each head's score,
through a sigmoid, is the gate of its channels.

    q = filter(y; taps q), k = filter(y; taps k), gate = sig(scale sum over the head of q k)
"""

import triton
import triton.language as tl

from .cells.activation import sigmoid

HEAD = tl.constexpr(32)  # channels of a head at once
TAPS = tl.constexpr(16)  # of a filter at once


@triton.jit
def across_channels(y, taps, K, c, known, C, FLIPPED: tl.constexpr = False):
    """Return y [C] under the filter taps [K], with zeros beyond its ends, at channels c. Flipped, it is the filter that
    a gradient takes back."""
    sums = tl.zeros(c.shape, y.dtype.element_ty)
    for j in range(0, K):
        at = c + (j - K // 2)
        tap = tl.load(taps + (K - 1 - j if FLIPPED else j))
        sums += tap * tl.load(y + at, known & (at >= 0) & (at < C), 0.0)
    return sums


@triton.jit
def channels_of(g, d0, HEADS, D):
    """Return channels d0, d0 + 1, ... of heads g, and whether each is there: [g, d]."""
    d = d0 + tl.arange(0, HEAD)
    return g[:, None] * D + d[None, :], (g < HEADS)[:, None] & (d < D)[None, :]


@triton.jit
def channel_gates(gate, y, q, k, K, HEADS, C, SCALE: tl.constexpr, TILES: tl.constexpr):
    """Compute gate [C] from y [C] and the taps q, k [K]."""
    ROWS: tl.constexpr = TILES.rows
    D = C // HEADS
    for g0 in range(0, HEADS, ROWS):
        g = g0 + tl.arange(0, ROWS)
        score = tl.zeros([ROWS], gate.dtype.element_ty)
        for d0 in range(0, D, HEAD):
            c, known = channels_of(g, d0, HEADS, D)
            product = across_channels(y, q, K, c, known, C) * across_channels(y, k, K, c, known, C)
            score += tl.sum(product, 1)
        of_head = sigmoid(score * SCALE)
        for d0 in range(0, D, HEAD):
            c, known = channels_of(g, d0, HEADS, D)
            tl.store(gate + c, tl.broadcast_to(of_head[:, None], c.shape), known)


@triton.jit
def channel_gates_bwd(
    dy, dq, dk, dq_row, dk_row, dgate, gate, y, q, k, K, HEADS, C, SCALE: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    """Send dgate [C] back: add to dy [C], and fill dq, dk [K]. dq_row, dk_row [C] are scratch, for the gradients of
    queries and keys."""
    ROWS: tl.constexpr = TILES.rows
    A: tl.constexpr = gate.dtype.element_ty
    D = C // HEADS
    for g0 in range(0, HEADS, ROWS):
        g = g0 + tl.arange(0, ROWS)
        of_score = tl.zeros([ROWS], A)
        for d0 in range(0, D, HEAD):
            c, known = channels_of(g, d0, HEADS, D)
            of_score += tl.sum(tl.load(dgate + c, known, 0.0), 1)
        of_head = tl.load(gate + g * D, g < HEADS, 0.0)
        of_score *= of_head * (1.0 - of_head) * SCALE
        for d0 in range(0, D, HEAD):
            c, known = channels_of(g, d0, HEADS, D)
            tl.store(dq_row + c, of_score[:, None] * across_channels(y, k, K, c, known, C), known)
            tl.store(dk_row + c, of_score[:, None] * across_channels(y, q, K, c, known, C), known)
    tl.debug_barrier()
    for c0 in range(0, C, TILES.channels):
        c = c0 + tl.arange(0, TILES.channels)
        from_q = across_channels(dq_row, q, K, c, c < C, C, True)
        from_k = across_channels(dk_row, k, K, c, c < C, C, True)
        tl.store(dy + c, tl.load(dy + c, c < C, 0.0) + from_q + from_k, c < C)
    tap_gradients(dq, dq_row, y, K, C, TILES)
    tap_gradients(dk, dk_row, y, K, C, TILES)
    tl.debug_barrier()


@triton.jit
def tap_gradients(to, g, y, K, C, TILES: tl.constexpr):
    """Fill to[j] with the sum over channels of g times what tap j sees of y."""
    CHANNELS: tl.constexpr = TILES.channels
    for j0 in range(0, K, TAPS):
        j = j0 + tl.arange(0, TAPS)
        sums = tl.zeros([TAPS, CHANNELS], y.dtype.element_ty)
        for c0 in range(0, C, CHANNELS):
            c = c0 + tl.arange(0, CHANNELS)
            at = c[None, :] + (j - K // 2)[:, None]
            seen = tl.load(y + at, (c < C)[None, :] & (at >= 0) & (at < C), 0.0)
            sums += seen * tl.load(g + c, c < C, 0.0)[None, :]
        tl.store(to + j, tl.sum(sums, 1), j < K)
