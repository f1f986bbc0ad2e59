from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..backends import REFERENCE, BackendName, select
from .autograd import accumulated, without_autocast
from .checks import check_alike, check_weight
from .differentiable import Differentiable
from .flops import convolution
from .shapes import rows


def depthwise(x: Tensor, v: Tensor, *, backend: BackendName | None = None) -> tuple[Tensor, Tensor]:
    """Compute the value of layer attention: each channel under its own 3x3 filter, zeros around it, and both means.

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
    value, y = _run(chosen, x, v, sizes=(None, None))
    return value, y


_run = Differentiable(
    "depthwise",
    "value y",
    forward=lambda ops, x, v: ops.depthwise(x, v),
    backward=lambda ops, dvalue, dy, x, v: ops.depthwise_bwd(dvalue, dy, x, v),
    reference=reference.depthwise,
    shapes=lambda x, v: (torch.empty_like(x), rows([x, x])),
    flops=convolution,
    maps="x",
)
