"""The squashing functions a cell is built from: value(x), and grad(x, dy) = d value/dx * dy."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Activation(NamedTuple):
    """A function and its gradient; the cells hold them, not their names."""

    value: Any
    grad: Any


@triton.jit
def exp(x):
    """Return exp(x) for x up to 87. For fp32 it is put together here: the chip's own is off by many units in the last
    place far from 0."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = tl.where(x < -87.0, -87.0, x)
        n = tl.floor(x * 1.4426950408889634 + 0.5)
        rest = (x - n * 0.693359375) + n * 2.12194440e-4  # ln 2 in two parts, the first times n exact
        return tl.exp2(rest * 1.4426950408889634) * tl.exp2(n)


@triton.jit
def reciprocal(x):
    """Return 1 / x, rounded to nearest: the chip's own division of fp32 is not."""
    if x.dtype == tl.float64:
        return 1.0 / x
    else:
        return tl.div_rn(tl.full(x.shape, 1.0, x.dtype), x)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)); for fp32, of no x below -87, where exp would overflow."""
    if x.dtype == tl.float64:
        return 1.0 / (1.0 + tl.exp(-x))
    else:
        return reciprocal(1.0 + exp(tl.where(x < -87.0, 87.0, -x)))


@triton.jit
def sigmoid_grad(x, dy):
    """Return sigmoid'(x) dy."""
    s = sigmoid(x)
    return dy * s * (1.0 - s)


@triton.jit
def tanh(x):
    """Return tanh x: far from 0, 1 - 2 / (exp(2|x|) + 1); near 0, where that would cancel, x + x^3 P(x^2), fitted, and
    a quotient of two polynomials for fp64."""
    size = tl.abs(x)
    z = x * x
    if x.dtype == tl.float64:
        P = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3
        Q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3
        near_zero = x + x * z * (P / Q)
        twice = tl.where(size > 40.0, 40.0, size) * 2.0
    else:
        P = (((-0.00626912 * z + 0.021110959) * z - 0.05387395) * z + 0.13332915) * z - 0.3333333
        near_zero = x + x * z * P
        twice = tl.where(size > 10.0, 10.0, size) * 2.0
    far = 1.0 - 2.0 * reciprocal(exp(twice) + 1.0)
    return tl.where(size < 0.6, near_zero, tl.where(x < 0.0, -far, far))


@triton.jit
def tanh_grad(x, dy):
    """Return tanh'(x) dy."""
    t = tanh(x)
    return dy * (1.0 - t * t)


@triton.jit
def relu(x):  # NaN passes, as in torch.relu
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def relu_grad(x, dy):  # 0 at 0; at NaN it passes dy
    return tl.where(x <= 0.0, 0.0, dy)


@triton.jit
def identity(x):
    return x


@triton.jit
def identity_grad(x, dy):
    return dy


SIGMOID = Activation(sigmoid, sigmoid_grad)
TANH = Activation(tanh, tanh_grad)
RELU = Activation(relu, relu_grad)
IDENTITY = Activation(identity, identity_grad)
