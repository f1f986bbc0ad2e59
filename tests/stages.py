"""Random layers of a stage with layer attention: their maps and their weights."""

import torch

from dla_kernels.attention import Attention, filter_width

from .cases import maps, weights


def attention(C, dtype=torch.float64):
    width = filter_width(C)
    return Attention(*(torch.randn(shape, dtype=dtype) * 0.7 for shape in ((width,), (width,), (C, 1, 3, 3))))


def layers(shape, dtype=torch.float64):
    """T pairs of a map [B, C, H, W], all of one size, and the layer's own filters."""
    return [(x, attention(shape.C, dtype)) for x in maps(shape, dtype)]


def cell_weights(cell, shape, dtype=torch.float64):
    return cell and weights(cell, shape, dtype)


def grown(x):
    """A leaf that asks for a gradient."""
    return x.clone().requires_grad_()
