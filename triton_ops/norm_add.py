"""out = x + keep f((o - mean) / sqrt(var + eps) gamma + beta), f = relu or nothing, keep of each sample"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .cells.activation import reciprocal, relu, relu_grad
from .checks import check_like_maps, check_maps, check_tensor, require
from .launch import maps_of_program, pieces_of, run
from .maps import ELEMENT, MapList, accumulate_dtype, map_of, pixels_of, row_of, table, tile_of
from .operator import operator
from .sums import sum_samples


@triton.jit
def one_over_root(x):
    """Return 1 / sqrt(x), each step rounded to nearest: what the chip does by itself is not."""
    if x.dtype == tl.float64:
        return 1.0 / tl.sqrt(x)
    else:
        return reciprocal(tl.sqrt_rn(x))


@triton.jit
def norm_of(moments, c, C, EPS: tl.constexpr):
    """Return mean and 1 / sqrt(var + eps) of channels c."""
    var = moments + C
    return tl.load(moments + c, c < C, 0.0), one_over_root(tl.load(var + c, c < C, 1.0) + EPS)


@triton.jit(do_not_specialize=["B"])
def norm_add_kernel(
    table,  # maps.Table of x, o and out [B, C, H, W]; out is written
    moments,  # [2, C] mean and biased variance
    gamma,  # [C]
    beta,  # [C]
    keep,  # [B], or None for ones
    B,
    C,
    EPS: tl.constexpr,
    RELU: tl.constexpr,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    TILE: tl.constexpr = TILES.interleaved if INTERLEAVED else TILES.planar
    A: tl.constexpr = moments.dtype.element_ty
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    x, x_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    o, o_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    out, out_stride = map_of(table.maps[2], 0, b, ELEMENT, PIECE)
    for c0 in range(begin, end, TILE[0]):
        c = c0 + tl.arange(0, TILE[0])
        mean, rstd = norm_of(moments, c, C, EPS)
        scale = tl.load(gamma + c, c < C, 0.0) * rstd
        shift = tl.load(beta + c, c < C, 0.0)
        for p0 in range(0, HW, TILE[1]):
            p = p0 + tl.arange(0, TILE[1])
            there = (c < C)[:, None] & (p < HW)[None, :]
            away = tl.load(tile_of(o, o_stride, c, p, INTERLEAVED), there, 0.0).to(A) - mean[:, None]
            new = away * scale[:, None] + shift[:, None]
            if RELU:
                new = relu(new)
            if keep is not None:
                new *= tl.load(keep + b)
            new += tl.load(tile_of(x, x_stride, c, p, INTERLEAVED), there, 0.0).to(A)
            tl.store(tile_of(out, out_stride, c, p, INTERLEAVED), new.to(ELEMENT), there)


@triton.jit
def before_norm(
    dout, dout_stride, o, o_stride, mean, rstd, gamma, beta, keep, c, p, C, HW, RELU: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Return the gradient of gamma ohat + beta, and ohat, at pixels p of channels c; zeros where there is none."""
    A: tl.constexpr = mean.dtype
    there = (c < C)[:, None] & (p < HW)[None, :]
    away = tl.load(tile_of(o, o_stride, c, p, INTERLEAVED), there, 0.0).to(A) - mean[:, None]
    ohat = tl.where(there, away * rstd[:, None], 0.0)
    dz = tl.load(tile_of(dout, dout_stride, c, p, INTERLEAVED), there, 0.0).to(A)
    if keep is not None:
        dz *= tl.load(keep)
    if RELU:
        dz = relu_grad(away * (gamma * rstd)[:, None] + beta[:, None], dz)
    return dz, ohat


@triton.jit(do_not_specialize=["B"])
def norm_sums_kernel(
    table,  # maps.Table of dout, o and do [B, C, H, W]
    moments,  # [2, C] mean and biased variance
    gamma,  # [C]
    beta,  # [C]
    keep,  # [B], or None for ones
    sums,  # [B, 2, C] the sums over pixels of dz ohat and of dz, for gamma and beta; written
    B,
    C,
    EPS: tl.constexpr,
    RELU: tl.constexpr,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    """Sum dz ohat and dz over the pixels of each plane, for gamma and beta."""
    TILE: tl.constexpr = TILES.interleaved if INTERLEAVED else TILES.planar
    CHANNELS: tl.constexpr = TILE[0]
    PIXELS: tl.constexpr = TILE[1]
    A: tl.constexpr = moments.dtype.element_ty
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    dout, dout_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    o, o_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    dgamma = sums + row_of(0, b, B, C) * 2
    dbeta = dgamma + C
    kept = None if keep is None else keep + b
    for c0 in range(begin, end, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)
        mean, rstd = norm_of(moments, c, C, EPS)
        scale, shift = tl.load(gamma + c, c < C, 0.0), tl.load(beta + c, c < C, 0.0)
        of_gamma, of_beta = tl.zeros([CHANNELS, PIXELS], A), tl.zeros([CHANNELS, PIXELS], A)
        for p0 in range(0, HW, PIXELS):
            p = p0 + tl.arange(0, PIXELS)
            dz, ohat = before_norm(
                dout, dout_stride, o, o_stride, mean, rstd, scale, shift, kept, c, p, C, HW, RELU, INTERLEAVED
            )  # fmt: skip
            of_gamma += dz * ohat
            of_beta += dz
        tl.store(dgamma + c, tl.sum(of_gamma, 1), c < C)
        tl.store(dbeta + c, tl.sum(of_beta, 1), c < C)


@triton.jit(do_not_specialize=["B"])
def norm_add_bwd_kernel(
    table,  # maps.Table of dout, o and do [B, C, H, W]; do is written
    moments,  # [2, C] mean and biased variance
    gamma,  # [C]
    beta,  # [C]
    keep,  # [B], or None for ones
    dgamma,  # [C], or None where the moments are constants
    dbeta,  # [C], or None where the moments are constants
    B,
    C,
    EPS: tl.constexpr,
    RELU: tl.constexpr,
    ELEMENT: tl.constexpr,  # dtype of the maps
    PIECE: tl.constexpr,  # neighbouring elements that may be read at once
    INTERLEAVED: tl.constexpr,  # or planar, all maps alike
    TILES: tl.constexpr,  # tiles.Tiles
):
    """Compute do, from dgamma and dbeta of the whole batch where the moments are its own."""
    TILE: tl.constexpr = TILES.interleaved if INTERLEAVED else TILES.planar
    _, b, begin, end = maps_of_program(B, C, TILES)
    HW = pixels_of(table, PIECE, INTERLEAVED)
    dout, dout_stride = map_of(table.maps[0], 0, b, ELEMENT, PIECE)
    o, o_stride = map_of(table.maps[1], 0, b, ELEMENT, PIECE)
    do, do_stride = map_of(table.maps[2], 0, b, ELEMENT, PIECE)
    kept = None if keep is None else keep + b
    for c0 in range(begin, end, TILE[0]):
        c = c0 + tl.arange(0, TILE[0])
        mean, rstd = norm_of(moments, c, C, EPS)
        scale, shift = tl.load(gamma + c, c < C, 0.0), tl.load(beta + c, c < C, 0.0)
        if dgamma is not None:
            of_var = tl.load(dgamma + c, c < C, 0.0) / B / HW
            of_mean = tl.load(dbeta + c, c < C, 0.0) / B / HW
        for p0 in range(0, HW, TILE[1]):
            p = p0 + tl.arange(0, TILE[1])
            dz, ohat = before_norm(
                dout, dout_stride, o, o_stride, mean, rstd, scale, shift, kept, c, p, C, HW, RELU, INTERLEAVED
            )  # fmt: skip
            if dgamma is not None:
                dz -= of_mean[:, None] + ohat * of_var[:, None]
            there = (c < C)[:, None] & (p < HW)[None, :]
            new = (dz * (scale * rstd)[:, None]).to(ELEMENT)
            tl.store(tile_of(do, do_stride, c, p, INTERLEAVED), new, there)


def _channels(o: Tensor, moments: Tensor, gamma: Tensor, beta: Tensor, keep: list[Tensor]) -> dict[str, Any]:
    """Return what is no map, as kernels take it."""
    B, C = o.shape[:2]
    dtype = accumulate_dtype(o.dtype)
    check_tensor("moments", moments, (2, C), dtype, o)
    check_tensor("gamma", gamma, (C,), dtype, o)
    check_tensor("beta", beta, (C,), dtype, o)
    require(len(keep) <= 1, f"keep: expected one tensor or none, got {len(keep)}")
    for of_samples in keep:
        check_tensor("keep", of_samples, (B,), dtype, o)
    return {
        "moments": moments.contiguous(),
        "gamma": gamma.contiguous(),
        "beta": beta.contiguous(),
        "keep": keep[0].contiguous() if keep else None,
    }


@operator()
def norm_add(
    x: Tensor, o: Tensor, moments: Tensor, gamma: Tensor, beta: Tensor, keep: list[Tensor], eps: float, relu: bool
) -> Tensor:
    check_maps([x])
    check_like_maps("o", [o], [x])
    given = _channels(o, moments, gamma, beta, keep)
    to = MapList([x])
    out, norm = to.empty_like(), MapList([o], to)
    maps, piece = table(to, norm, out)
    how, programs = pieces_of("norm_add", to)
    B, C = x.shape[:2]
    run(
        norm_add_kernel,
        programs,
        x,
        how,
        table=maps,
        **given,
        B=B,
        C=C,
        EPS=eps,
        RELU=relu,
        ELEMENT=ELEMENT[x.dtype],
        PIECE=piece,
        INTERLEAVED=to.interleaved[0],
        TILES=how,
    )
    return out.as_given(to)[0]


@operator()
def norm_add_bwd(
    dout: Tensor, o: Tensor, moments: Tensor, gamma: Tensor, beta: Tensor, keep: list[Tensor], eps: float, relu: bool,
    batch_moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Sum over the batch first, then send back what needs the sums."""
    check_maps([o])
    check_like_maps("dout", [dout], [o])
    given = _channels(o, moments, gamma, beta, keep)
    norm = MapList([o])
    grads, do = MapList([dout], norm), norm.empty_like()
    maps, piece = table(grads, norm, do)
    how, programs = pieces_of("norm_add_bwd", norm)
    B, C = o.shape[:2]
    sums, dgamma, dbeta = gamma.new_empty((B, 2 * C)), gamma.new_empty(C), gamma.new_empty(C)
    both: dict[str, Any] = {
        "table": maps,
        **given,
        "B": B,
        "C": C,
        "EPS": eps,
        "RELU": relu,
        "ELEMENT": ELEMENT[o.dtype],
        "PIECE": piece,
        "INTERLEAVED": norm.interleaved[0],
        "TILES": how,
    }
    run(norm_sums_kernel, programs, o, how, sums=sums, **both)
    sum_samples(sums, [dgamma, dbeta], how)
    of_var, of_mean = (dgamma, dbeta) if batch_moments else (None, None)
    run(norm_add_bwd_kernel, programs, o, how, dgamma=of_var, dbeta=of_mean, **both)
    return do.as_given(norm)[0], dgamma, dbeta
