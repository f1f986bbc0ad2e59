"""Attention inside a block: modules that scale the map [B, C, H, W] at the end of a residual branch by gates in (0, 1),
of its channels, its pixels, or both. What is pooled and scaled by channels goes through the ops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import filter_width
from ..backends import BackendName, check_backend
from ..cells import Cell, Squeeze, Taps, Weights, accumulate_dtype
from ..ops import gap, recalibrate, rescale
from ..ops.inplace import is_writable
from .hooks import is_watched
from .leaf import leaf


def check_odd(kernel_size: int) -> int:
    """Return the width of a filter that has a middle."""
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd integer, got {kernel_size!r}")
    return kernel_size


def recalibrated(
    a: Tensor,
    shortcut: Tensor | None,
    weights: Weights,
    cell: Cell | str,
    state: tuple[Tensor, ...] | None,
    relu: bool,
    backend: BackendName | None,
    inplace: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return ``shortcut + a h``, or its relu, and the new state; with ``inplace`` perhaps where the shortcut was. A
    shortcut of another dtype, as under autocast, or of a shape that broadcasts, is added by torch."""
    alike = shortcut is None or (shortcut.dtype == a.dtype and shortcut.shape == a.shape)
    how: dict[str, Any] = {"cell": cell, "state": state, "backend": backend}
    if alike:
        if inplace and shortcut is not None and is_writable(shortcut, a):
            how["inplace"] = True
        return recalibrate(a, weights, shortcut=shortcut, relu=relu, **how)
    a, state = recalibrate(a, weights, **how)
    return ended(a, shortcut, relu), state


def ended(a: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Return what a residual block ends with: the sum, and its relu."""
    out = a if shortcut is None else shortcut + a
    return F.relu(out, inplace=shortcut is not None) if relu else out


class Recalibration(nn.Module):
    """The part that all have in common: a gate for each channel, by default."""

    def __init__(self, channels: int, backend: BackendName | None = None) -> None:
        super().__init__()
        check_backend(backend)
        self.channels, self.backend = channels, backend

    def gate(self, x: Tensor) -> Tensor:
        """Return the gates of channels [B, C]."""
        raise NotImplementedError

    def scaled(self, x: Tensor) -> Tensor:
        """Return x scaled by its gates."""
        return self._scaled(x, self.gate(x))

    @leaf
    def forward(self, x: Tensor, shortcut: Tensor | None = None, *, relu: bool | None = None) -> Tensor:
        """Scale a map: x [B, C, H, W] -> the same shape; with a shortcut what a residual block ends with,
        relu(shortcut + x scaled). relu: whether it ends with one, if not as the shortcut says."""
        return self.by_steps(x, shortcut, shortcut is not None if relu is None else relu)

    def by_steps(self, x: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
        """Return the same by gates, their scaling and the sum, one after the other."""
        self._check(x)
        x = self.scaled(x)
        return ended(x, shortcut, relu)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x: expected [B, {self.channels}, H, W], got {list(x.shape)}")

    def _means(self, x: Tensor) -> Tensor:
        """Return the means of all planes, [B, C], in the dtype of sums."""
        return gap([x], backend=self.backend)[0]

    def _scaled(self, x: Tensor, gate: Tensor) -> Tensor:
        return rescale([x], gate[None].to(accumulate_dtype(x.dtype)), backend=self.backend)[0]

    def extra_repr(self) -> str:
        return str(self.channels)


class Squeezing(Recalibration):
    """The part of those whose gates are ``sig(W2 relu(W1 y))``, behind a bottleneck of R = C // reduction."""

    def __init__(
        self, channels: int, inputs: int, reduction: int, backend: BackendName | None, bias: bool = False
    ) -> None:
        super().__init__(channels, backend)
        if not isinstance(reduction, int) or reduction < 1:
            raise ValueError(f"reduction: expected an integer of at least 1, got {reduction!r}")
        R = max(1, channels // reduction)
        self.squeeze = nn.Linear(inputs, R, bias=bias)
        self.excite = nn.Linear(R, channels, bias=bias)

    def _excited(self, y: Tensor) -> Tensor:
        """Return what the bottleneck makes of y [..., inputs], [..., C]."""
        return self.excite(self.squeeze(y.to(self.squeeze.weight.dtype)).relu())


class ByOneOp(Recalibration):
    """The part of those that ``recalibrate`` computes as a whole, what ends a block included; step by step where a
    subclass has gates of its own, or hooks want to see what is inside."""

    kind: str  # of its cell
    computed: Callable  # the gate that the op computes

    @property
    def weights(self) -> Weights:
        """The parameters as the op takes them."""
        raise NotImplementedError

    @leaf
    def forward(self, x: Tensor, shortcut: Tensor | None = None, *, relu: bool | None = None) -> Tensor:
        """Scale a map: x [B, C, H, W] -> the same shape; with a shortcut what a residual block ends with,
        relu(shortcut + x scaled). relu: whether it ends with one, if not as the shortcut says."""
        own, relu = type(self), shortcut is not None if relu is None else relu
        if own.gate is not own.computed or own.scaled is not Recalibration.scaled or is_watched(*self.children()):
            return self.by_steps(x, shortcut, relu)
        self._check(x)
        return recalibrated(x, shortcut, self.weights, self.kind, None, relu, self.backend)[0]


class SE(ByOneOp, Squeezing):
    """Squeeze and excitation: ``sig(W2 relu(W1 y))`` of the means y, behind a bottleneck of C // reduction.

    >>> SE(64)(torch.randn(8, 64, 16, 16)).shape
    torch.Size([8, 64, 16, 16])
    """

    def __init__(
        self, channels: int, reduction: int = 16, backend: BackendName | None = None, *, bias: bool = False
    ) -> None:
        super().__init__(channels, channels, reduction, backend, bias)

    kind = "se"

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self._excited(self._means(x)))

    computed = gate

    @property
    def weights(self) -> Squeeze:
        """The parameters as the op takes them."""
        return Squeeze(self.squeeze.weight, self.squeeze.bias, self.excite.weight, self.excite.bias)


class ECA(ByOneOp):
    """Efficient channel attention: ``sig`` of a filter over the means of neighbouring channels, its width by default
    that which goes with C."""

    def __init__(self, channels: int, backend: BackendName | None = None, *, kernel_size: int | None = None) -> None:
        super().__init__(channels, backend)
        self.taps = nn.Parameter(torch.empty(filter_width(channels) if kernel_size is None else check_odd(kernel_size)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filter as torch's convolutions do."""
        nn.init.uniform_(self.taps, -(len(self.taps) ** -0.5), len(self.taps) ** -0.5)

    kind = "eca"

    def gate(self, x: Tensor) -> Tensor:
        y = self._means(x)
        taps = self.taps.to(y.dtype)[None, None]
        return torch.sigmoid(F.conv1d(y[:, None], taps, padding=len(self.taps) // 2)[:, 0])

    computed = gate

    @property
    def weights(self) -> Taps:
        """The parameters as the op takes them."""
        return Taps(self.taps)


class CBAM(Squeezing):
    """The convolutional block attention module: channels are scaled by ``sig(MLP(mean) + MLP(max))``, then pixels by
    ``sig`` of a filter over their mean and maximum over the channels."""

    def __init__(
        self, channels: int, reduction: int = 16, kernel_size: int = 7, backend: BackendName | None = None
    ) -> None:
        super().__init__(channels, channels, reduction, backend)
        self.spatial = nn.Conv2d(2, 1, check_odd(kernel_size), padding=kernel_size // 2, bias=False)

    def gate(self, x: Tensor) -> Tensor:
        means = self._means(x)
        return torch.sigmoid(self._excited(torch.stack([means, x.amax((2, 3)).to(means.dtype)])).sum(0))

    def scaled(self, x: Tensor) -> Tensor:
        x = self._scaled(x, self.gate(x))
        seen = torch.stack([x.mean(1), x.amax(1)], 1)
        return x * torch.sigmoid(self.spatial(seen.to(self.spatial.weight.dtype))).to(x.dtype)


class SRM(Recalibration):
    """Style-based recalibration: ``sig(BN(w0 mean + w1 std))`` of every channel's pixels, whose weights begin at
    zero."""

    def __init__(self, channels: int, backend: BackendName | None = None, *, eps: float = 1e-5) -> None:
        super().__init__(channels, backend)
        self.eps = eps  # under the root
        self.weight = nn.Parameter(torch.zeros(channels, 2))
        self.bn = nn.BatchNorm1d(channels)

    def gate(self, x: Tensor) -> Tensor:
        mean = self._means(x).to(self.weight.dtype)
        std = (x.to(accumulate_dtype(x.dtype)).var((2, 3), correction=0) + self.eps).sqrt().to(self.weight.dtype)
        return torch.sigmoid(self.bn(mean * self.weight[:, 0] + std * self.weight[:, 1]))


class SPA(Squeezing):
    """Spatial pyramid attention: ``sig(W2 relu(W1 y))``, y being means of the map cut into 1, 2 and 4 pieces a side,
    21 C numbers."""

    SIDES = (1, 2, 4)

    def __init__(self, channels: int, reduction: int = 16, backend: BackendName | None = None) -> None:
        super().__init__(channels, channels * sum(side**2 for side in self.SIDES), reduction, backend)

    def gate(self, x: Tensor) -> Tensor:
        pooled = [F.adaptive_avg_pool2d(x, side).flatten(1) for side in self.SIDES]
        return torch.sigmoid(self._excited(torch.cat(pooled, 1)))


class SGE(Recalibration):
    """Spatial group-wise enhancement: each group of channels has a gate for every pixel, ``sig(gamma g + beta)``, g
    being the sum over its channels of the pixel times the channel's mean, normalised over the pixels."""

    def __init__(
        self, channels: int, groups: int = 64, backend: BackendName | None = None, *, eps: float = 1e-5
    ) -> None:
        super().__init__(channels, backend)
        if not isinstance(groups, int) or groups < 1 or channels % groups:
            raise ValueError(f"groups: expected a divisor of the {channels} channels, got {groups!r}")
        self.groups, self.eps = groups, eps  # beside the deviation
        self.gamma = nn.Parameter(torch.zeros(groups))
        self.beta = nn.Parameter(torch.ones(groups))

    def gate(self, x: Tensor) -> Tensor:
        """Return the gates of groups and pixels [B, groups, H, W]."""
        means = self._means(x)
        g = (x * means[:, :, None, None]).unflatten(1, (self.groups, -1)).sum(2)
        std, mean = torch.std_mean(g, (2, 3), correction=0, keepdim=True)
        return torch.sigmoid(self.gamma[:, None, None] * ((g - mean) / (std + self.eps)) + self.beta[:, None, None])

    def scaled(self, x: Tensor) -> Tensor:
        gate = self.gate(x).to(x.dtype)
        return (x.unflatten(1, (self.groups, -1)) * gate[:, :, None]).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}"


# ---- one module for all layers of a stage ----


class NormOfLayer(nn.ModuleList):
    """A norm that each layer has of its own; ``Shared`` says whose turn it is."""

    turn = 0

    def forward(self, x: Tensor) -> Tensor:
        return self[self.turn](x)


class Shared(nn.Module):
    """An attention module that all layers of a stage share, but for the BatchNorms inside it: statistics differ from
    layer to layer, so each has its own.

    >>> attend = Shared(SRM(64), layers=3)
    >>> for t in range(3):
    ...     a = attend(t, torch.randn(8, 64, 16, 16))  # the residual branch of block t
    """

    def __init__(self, module: nn.Module, layers: int) -> None:
        super().__init__()
        if not isinstance(layers, int) or layers < 1:
            raise ValueError(f"layers: expected an integer of at least 1, got {layers!r}")
        self.layers = layers
        self.module = of_each_layer(module, layers)

    def forward(self, t: int, *args: Any, **options: Any) -> Any:
        """Run the module as layer t does: t and what the module takes -> what it returns."""
        if not 0 <= t < self.layers:
            raise IndexError(f"t: expected one of {self.layers} layers, counted from 0, got {t}")
        for norm in self.module.modules():
            if isinstance(norm, NormOfLayer):
                norm.turn = t
        return self.module(*args, **options)

    def extra_repr(self) -> str:
        return f"layers={self.layers}"


def of_each_layer(module: nn.Module, layers: int) -> nn.Module:
    """Return a module with as many copies of each BatchNorm inside it as there are layers."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return NormOfLayer([module, *(copy.deepcopy(module) for _ in range(layers - 1))])
    for name, child in module.named_children():
        setattr(module, name, of_each_layer(child, layers))
    return module
