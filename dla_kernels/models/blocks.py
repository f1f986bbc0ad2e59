"""Residual blocks that hand over branch and shortcut unadded, and the channel attention that may end a branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import filter_width
from ..backends import BackendName
from ..nn.leaf import leaf
from ..ops import gap, rescale


class SE(nn.Module):
    """Squeeze and excitation: channels are rescaled by a gate behind a bottleneck of C // reduction."""

    def __init__(self, channels: int, reduction: int = 16, backend: BackendName | None = None) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"reduction: expected at least 1, got {reduction}")
        self.squeeze = nn.Linear(channels, max(1, channels // reduction), bias=False)
        self.excite = nn.Linear(max(1, channels // reduction), channels, bias=False)
        self.backend = backend

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        y = gap([x], backend=self.backend)
        gate = torch.sigmoid(self.excite(self.squeeze(y.to(self.squeeze.weight.dtype)).relu()))
        return rescale([x], gate.to(y.dtype), backend=self.backend)[0]


class ECA(nn.Module):
    """Efficient channel attention: the gate is a filter over neighbouring channels."""

    def __init__(self, channels: int, backend: BackendName | None = None) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.empty(filter_width(channels)))
        self.backend = backend
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.taps, -(len(self.taps) ** -0.5), len(self.taps) ** -0.5)

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        y = gap([x], backend=self.backend)
        gate = torch.sigmoid(
            F.conv1d(y.transpose(0, 1), self.taps.to(y.dtype)[None, None], padding=len(self.taps) // 2)
        )
        return rescale([x], gate.transpose(0, 1).to(y.dtype), backend=self.backend)[0]


def downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Return the shortcut where a block changes the shape, else None."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """A block whose forward turns x into (residual branch, shortcut), both [B, C, H, W]; the stage adds them."""

    expansion: int
    downsample: nn.Module | None
    recalibrate: nn.Module | None

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.branch(x)
        if self.recalibrate is not None:
            a = self.recalibrate(a)
        return a, x if self.downsample is None else self.downsample(x)


class BasicBlock(Block):
    """A block that has two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1, recalibrate: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample(inputs, width, stride)
        self.recalibrate = recalibrate

    @property
    def last_norm(self) -> nn.Module:
        return self.bn2

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))


class Bottleneck(Block):
    """A block that has a 3x3 convolution between two 1x1 ones, of which the last widens fourfold."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1, recalibrate: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample(inputs, 4 * width, stride)
        self.recalibrate = recalibrate

    @property
    def last_norm(self) -> nn.Module:
        return self.bn3

    def branch(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return self.bn3(self.conv3(x))
