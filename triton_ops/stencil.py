"""3x3 filters over planes, each channel its own, with zeros around the plane. Tap k looks at the pixel k // 3 - 1
rows below and k % 3 - 1 columns to the right."""

import triton
import triton.language as tl

from .maps import tile_of

MIDDLE = tl.constexpr(4)


@triton.jit
def taps_of(w, scale, middle, c, C, FLIPPED: tl.constexpr):
    """Return the taps of channels c, each [c]: scale w, w [C, 9], with `middle` added to its middle one; that one alone
    if w is None. Flipped, the filter is that of the gradient."""
    taps = ()
    if w is None:
        taps = (scale * middle,)
    else:
        for k in tl.static_range(9):
            tap = tl.load(w + c * 9 + (8 - k if FLIPPED else k), c < C, 0.0)
            taps += (scale * (tap + middle if k == MIDDLE else tap),)
    return taps


@triton.jit
def neighbours(x, stride, plus, c, p, C, W, HW, k: tl.constexpr, A: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Return what tap k sees from pixels p of channels c: [c, p]; plus [c], which may be None, is added inside the
    plane."""
    row = p + (k // 3 - 1) * W  # of p's column
    column = p % W + (k % 3 - 1)
    inside = (p < HW) & (row >= 0) & (row < HW) & (column >= 0) & (column < W)
    there = (c < C)[:, None] & inside[None, :]
    seen = tl.load(tile_of(x, stride, c, row + (k % 3 - 1), INTERLEAVED), there, 0.0).to(A)
    if plus is not None:
        seen = tl.where(there, seen + plus[:, None], 0.0)
    return seen


@triton.jit
def convolved(x, stride, plus, taps, c, p, C, W, HW, INTERLEAVED: tl.constexpr):
    """Return pixels p of channels c of the map x + plus under their filters."""
    A: tl.constexpr = taps[0].dtype
    if len(taps) == 1:
        sums = neighbours(x, stride, plus, c, p, C, W, HW, MIDDLE, A, INTERLEAVED) * taps[0][:, None]
    else:
        sums = neighbours(x, stride, plus, c, p, C, W, HW, 0, A, INTERLEAVED) * taps[0][:, None]
        for k in tl.static_range(1, 9):
            sums += neighbours(x, stride, plus, c, p, C, W, HW, k, A, INTERLEAVED) * taps[k][:, None]
    return sums


@triton.jit
def convolve(
    x, x_stride, plus, out, out_stride, shift, taps, c, C, W, HW, INTERLEAVED: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    """Filter all pixels of channels c: out = the map x + plus under their filters, + shift [c]."""
    for p0 in range(0, HW, PIXELS):
        p = p0 + tl.arange(0, PIXELS)
        new = convolved(x, x_stride, plus, taps, c, p, C, W, HW, INTERLEAVED) + shift[:, None]
        there = (c < C)[:, None] & (p < HW)[None, :]
        tl.store(tile_of(out, out_stride, c, p, INTERLEAVED), new.to(out.dtype.element_ty), there)


@triton.jit
def correlate(
    to, g, g_stride, plus, x, x_stride, c, C, W, HW, FIRST: tl.constexpr, END: tl.constexpr,
    INTERLEAVED: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Fill to[c, k], of [C, 9], with the sum over pixels of the map g + plus times what tap k sees of x, for taps FIRST
    .. END: all that the gradient of a filter needs."""
    A: tl.constexpr = to.dtype.element_ty
    CHANNELS: tl.constexpr = c.shape[0]
    sums = ()
    for _ in tl.static_range(FIRST, END):
        sums += (tl.zeros([CHANNELS, PIXELS], A),)
    for p0 in range(0, HW, PIXELS):
        p = p0 + tl.arange(0, PIXELS)
        here = neighbours(g, g_stride, plus, c, p, C, W, HW, MIDDLE, A, INTERLEAVED)
        more = ()
        for k in tl.static_range(FIRST, END):
            more += (sums[k - FIRST] + here * neighbours(x, x_stride, None, c, p, C, W, HW, k, A, INTERLEAVED),)
        sums = more
    for k in tl.static_range(FIRST, END):
        tl.store(to + c * 9 + k, tl.sum(sums[k - FIRST], 1), c < C)
