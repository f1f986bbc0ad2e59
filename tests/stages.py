"""This module makes random layers of a stage with layer attention: their maps and their weights."""

import torch

from dla_kernels.cells import accumulate_dtype

from .cases import filters, maps, weights


def layers(shape, dtype=torch.float64):
    """Return T pairs of a map [B, C, H, W], all of one size, and the layer's own filters."""
    return [(x, filters(shape, dtype)) for x in maps(shape, dtype)]


def cell_weights(cell, shape, dtype=torch.float64):
    return cell and weights(cell, shape, dtype)


def grown(x):
    """Return a leaf of the same values that asks for a gradient."""
    return x.clone().requires_grad_()


def norm(C, dtype, device="cpu"):
    """Return gamma, beta, and a running mean and variance."""
    gamma, beta, mean = (torch.randn(C).to(device, dtype) for _ in range(3))
    return gamma, beta, (mean, (torch.rand(C) + 0.5).to(device, dtype))


def drop_path(B, dtype, device="cpu"):
    """Return factors that drop every third sample's branch, and make up for it in the others."""
    return (torch.arange(B).remainder(3).gt(0).to(torch.float32) * 1.5).to(device, dtype)


def check_moments(moments, o):
    """Check that moments are those of o as stored, to the rounding of their dtype, however large the mean is."""
    var, mean = torch.var_mean(o.double(), (0, 2, 3), correction=0)
    assert moments.dtype == accumulate_dtype(o.dtype)
    eps = torch.finfo(moments.dtype).eps
    spread = var.sqrt() + eps * mean.abs()
    assert ((moments[0] - mean).abs() <= 8 * eps * (mean.abs() + spread)).all()
    assert ((moments[1] - var).abs() <= 64 * eps * spread.square() + (8 * eps * mean).square()).all()
