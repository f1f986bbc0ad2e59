from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import REFERENCE, select
from .autograd import Backward, accumulated, double_backward, kernels, needs_grad, with_signature, without_autocast
from .checks import check_alike, check_weight


def depthwise(x: Tensor, v: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """The value of layer attention: each channel under its own 3x3 filter, zeros around it, and both means.

    x: a map [B, C, H, W].
    v: the filters [C, 1, 3, 3], as ``torch.nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False)`` holds them.
    Returns the value, a map like x, and y [2, B, C], the means of x and of the value over H and W, in float32
    (float64 for float64).
    """
    check_alike({"x": x})
    check_weight("v", v, (x.shape[1], 1, 3, 3), "x", x)
    chosen = select(backend, x.device)
    if chosen == REFERENCE:
        with without_autocast(x.device):
            return reference.depthwise(x, v)
    (v,) = accumulated([v], x)
    if needs_grad([x, v]):
        return _Depthwise.apply(chosen, x, v)
    return kernels(chosen).depthwise(x, v)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(backend: str, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return kernels(backend).depthwise(x, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.backend, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.of_outputs = [(out.shape, out.dtype, out.device) for out in output]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dvalue: Tensor | None, dy: Tensor | None) -> tuple:
        run = _DepthwiseBwd.apply if torch.is_grad_enabled() else _DepthwiseBwd.forward
        arrived = [
            torch.zeros(shape, dtype=dtype, device=device) if g is None else g
            for g, (shape, dtype, device) in zip((dvalue, dy), ctx.of_outputs)
        ]
        return None, *run(ctx.backend, *arrived, *ctx.saved_tensors)


class _DepthwiseBwd(Backward):
    @staticmethod
    @with_signature
    def forward(backend: str, dvalue: Tensor, dy: Tensor, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return kernels(backend).depthwise_bwd(dvalue, dy, x, v)

    @staticmethod
    def backward(ctx: Any, *ggs: Tensor | None) -> tuple:
        dvalue, dy, x, v = ctx.saved_tensors
        *to_inputs, to_dvalue, to_dy = double_backward(reference.depthwise, [x, v], [dvalue, dy], ggs)
        return None, to_dvalue, to_dy, *to_inputs
