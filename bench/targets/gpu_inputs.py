"""The rows that the GPU benchmark measures, their bytes, and their inputs in enough copies to outgrow the L2 cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import dla_kernels as dla
from bench.common import Shape
from bench.devices import Cuda, StandIn
from bench.ops.suites import CIFAR
from bench.ops.work import torch_lstm
from dla_kernels import reference
from dla_kernels.backends import BACKENDS
from dla_kernels.verify import Case, functions, largest_error, parity, random_weights

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

ROWS = (
    *(Shape(12, 128, C, HW, 4) for C, HW in CIFAR),
    Shape(3, 256, 256, 56, 16),
    Shape(4, 256, 512, 28, 16),
    Shape(6, 256, 1024, 14, 16),
    Shape(3, 256, 2048, 7, 16),
    Shape(23, 256, 1024, 14, 16),
    *(Shape(12, B, C, HW, 4) for B in (8, 1) for C, HW in CIFAR),
)
REHEARSAL = (Shape(3, 4, 16, 4, 4), Shape(2, 1, 8, 3, 4))  # for the stand-in

# Passes over S bytes: the fewest there can be, and those of a kernel that reads its maps twice.
PASSES = {"forward": (2, 3), "backward": (3, 4)}


def map_bytes(shape: Shape, dtype: str) -> int:
    """Return S, the bytes of all maps."""
    return shape.S // 4 * DTYPES[dtype].itemsize


def copies_needed(size: int, l2: int, free: int, most: int = 128) -> int:
    """Return how many copies pass three times the L2, in at most a quarter of the memory with their gradients."""
    return max(1, min(most, max(2, math.ceil(3 * l2 / size)), free // 4 // (2 * size)))


class Set:
    """One of the copies in which a row's inputs are made."""

    def __init__(self, shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> None:
        T, B, C, HW, _ = shape

        def randn(*sizes: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(sizes, dtype=dtype, device=generator.device, generator=generator)

        self.flat = randn(T, B, C, HW, HW, dtype=dtype)
        self.xs = list(self.flat.unbind(0))
        self.leaves = [x.detach().requires_grad_() for x in self.xs]
        self.grads = list(randn(T, B, C, HW, HW, dtype=dtype).unbind(0))
        self.y = randn(T, B, C, dtype=torch.float32)
        self.y_rounded = self.y.to(dtype)  # for cuDNN's LSTM


def triton_on(device: Cuda | StandIn) -> Any:
    """Return the ops of the Triton backend, None where it does not serve the device."""
    triton = BACKENDS["triton"]
    return functions("triton") if triton.available and triton.serves(device.type) else None


class Inputs:
    """The weights that a row has, in fp32 as mixed-precision training keeps them, and its rotating sets."""

    def __init__(self, shape: Shape, dtype: str, device: Cuda | StandIn) -> None:
        # Nothing random comes from the device's default generator, which a CUDA graph that fails leaves unusable.
        torch.manual_seed(0)
        generator = torch.Generator(device.type).manual_seed(0)
        self.shape, self.dtype, self.device = shape, dtype, device
        self.S = map_bytes(shape, dtype)
        count = copies_needed(self.S, device.l2_bytes, device.free_bytes())
        self.sets = [Set(shape, DTYPES[dtype], generator) for _ in range(count)]
        weights = random_weights(dla.PAPER_DSU, shape.C, shape.R)
        self.weights = dla.Joint(*(w.to(device.type) for w in weights))
        self.weight_leaves = dla.Joint(*(w.clone().requires_grad_() for w in self.weights))
        self.copied = torch.empty_like(self.sets[0].flat)
        self.ours = functions(device.backend)
        self.triton = triton_on(device)

    def lstm(self) -> tuple[torch.nn.LSTM, dla.Dense]:
        """Return cuDNN's LSTM in the row's dtype, and the same weights for our scan."""
        weights = random_weights(dla.Cell("lstm"), self.shape.C, self.shape.R)
        dense = dla.Dense(*(w.to(self.device.type) for w in weights))
        return torch_lstm(dense).to(DTYPES[self.dtype]).requires_grad_(False), dense

    def copy(self, one: Set) -> None:
        self.copied.copy_(one.flat)

    def forward(self, layer_update: Callable, one: Set) -> None:
        layer_update(one.xs, self.weights)

    def forward_backward(self, layer_update: Callable, one: Set) -> None:
        out, _ = layer_update(one.leaves, self.weight_leaves)
        torch.autograd.grad(out, [*one.leaves, *self.weight_leaves], one.grads)

    def backward_only(self, layer_update: Callable) -> Callable[[], object]:
        """Return a call of the backward pass by itself, of a forward pass that is kept."""
        one = self.sets[0]
        out, _ = layer_update(one.leaves, self.weight_leaves)
        inputs = [*one.leaves, *self.weight_leaves]
        return lambda: torch.autograd.grad(out, inputs, one.grads, retain_graph=True)


def outputs_and_gradients(
    f: Any, xs: Sequence[Tensor], weights: dla.Joint, grads: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what belongs to samples (outputs, contexts, map gradients; B is dimension -4 or -2) and to weights."""
    xs = [x.detach().requires_grad_() for x in xs]
    weights = dla.Joint(*(w.detach().requires_grad_() for w in weights))
    out, states = f.layer_update(xs, weights)
    got = torch.autograd.grad(out, [*xs, *weights], grads)
    return [x.detach() for x in (*out, *got[: len(xs)], *states)], list(got[len(xs) :])


def layer_update_parity(inputs: Inputs, ours: Any = None, chunk_bytes: int = 1 << 30) -> tuple[float, float]:
    """Return (error, allowed) of one backend's layer_update on the very inputs that are timed, as in `verify.parity`.

    The truth in fp64 would not fit beside large rows, so it is computed for a few samples at a time: samples
    are independent, and the gradients of the weights are sums over them.
    """
    one, B = inputs.sets[0], inputs.shape.B
    candidates = [outputs_and_gradients(f, one.xs, inputs.weights, one.grads) for f in (ours or inputs.ours, reference)]
    weights64 = dla.Joint(*(w.double() for w in inputs.weights))
    step = max(1, chunk_bytes // (one.flat.numel() // B * 8))
    num = len(candidates[0][0])
    off = torch.zeros(2, num, dtype=torch.float64)
    scale = torch.zeros(num, dtype=torch.float64)
    sums: list[Tensor] = [torch.zeros_like(w) for w in weights64]
    for start in range(0, B, step):
        samples = slice(start, start + step)
        xs, grads = ([x[samples].double() for x in group] for group in (one.xs, one.grads))
        truth, dweights = outputs_and_gradients(reference, xs, weights64, grads)
        sums = [total + dw for total, dw in zip(sums, dweights)]
        for i, t in enumerate(truth):
            scale[i] = max(scale[i], t.abs().max().cpu())
            for j, (tensors, _) in enumerate(candidates):
                g = tensors[i][samples] if tensors[i].dim() == 4 else tensors[i][:, samples]
                off[j, i] = torch.maximum(off[j, i], (g.double() - t).abs().max().cpu())  # NaN stays
    error, plain = (
        torch.maximum((o / scale.clamp_min(1e-30)).max(), torch.tensor(largest_error(dw, sums), dtype=torch.float64))
        for o, (_, dw) in zip(off, candidates)
    )
    return error.item(), 2 * plain.item() + 4 * torch.finfo(DTYPES[inputs.dtype]).eps


def scan_parity(inputs: Inputs, cell: dla.Cell, weights: dla.Joint | dla.Dense) -> tuple[float, float]:
    """Return (error, allowed) of scan, outputs and gradients."""

    def call(f: Any, t: Sequence[Tensor]) -> Sequence[Tensor]:
        return f.scan(t[0], type(weights)(*t[1:]), cell=cell)

    return parity(Case("scan", cell, (inputs.sets[0].y, *weights), call), inputs.device.backend, torch.float32)
