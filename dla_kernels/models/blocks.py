"""Residual blocks that hand over branch and shortcut unadded."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]  # of so many channels


class Options(NamedTuple):
    """What the blocks of a network have in common.

    groups, width_per_group: of a bottleneck's 3x3 convolution, as in ResNeXt: it has groups * width * width_per_group /
        64 channels.
    dropout: between the convolutions of a wide block.
    ends_in_norm: whether a norm ends branches that begin with one, as where a cell recalibrates them.
    """

    norm: Norm = nn.BatchNorm2d
    groups: int = 1
    width_per_group: int = 64
    dropout: float = 0.0
    ends_in_norm: bool = False

    def inner(self, width: int) -> int:
        """Return the channels of a bottleneck's 3x3 convolution."""
        return width * self.width_per_group // 64 * self.groups


USUAL = Options()


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the size of maps, but for the stride."""
    padding = size // 2 * dilation
    return nn.Conv2d(inputs, outputs, size, stride, padding, dilation, groups, bias=False)


def downsample(inputs: int, outputs: int, stride: int, norm: Norm | None) -> nn.Module | None:
    """Return the shortcut where a block changes the shape, else None."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), *([norm(outputs)] if norm else []))


class Block(nn.Module):
    """A block whose forward turns x into (residual branch, shortcut), both [B, C, H, W]; the stage recalibrates the
    branch, where there is something to do so, adds them, and applies the relu that a block ends with."""

    expansion = 1
    ends_in_relu = True  # else each branch begins with a norm and a relu
    downsample: nn.Module | None
    recalibrate: nn.Module | None
    last_norm: nn.Module | None = None  # at the end of the branch, where it ends with one

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.branch(x), x if self.downsample is None else self.downsample(x)


class BasicBlock(Block):
    """A block that has two 3x3 convolutions."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        recalibrate: nn.Module | None = None,
        options: Options = USUAL,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        if dilation != 1 or options.groups != 1 or options.width_per_group != 64:
            raise ValueError(
                "groups, width_per_group, replace_stride_with_dilation: expected none with basic blocks, only "
                "bottlenecks have them"
            )
        self.conv1, self.bn1 = conv(inputs, width, 3, stride), options.norm(width)
        self.conv2, self.bn2 = conv(width, width, 3), options.norm(width)
        self.downsample = downsample(inputs, width, stride, options.norm)
        self.recalibrate = recalibrate

    @property
    def last_norm(self) -> nn.Module:  # type: ignore[override]
        return self.bn2

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))


class Bottleneck(Block):
    """A block that has a 3x3 convolution between two 1x1 ones, of which the last widens fourfold."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        recalibrate: nn.Module | None = None,
        options: Options = USUAL,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        norm, outputs = options.norm, 4 * width
        inner = options.inner(width)
        self.conv1, self.bn1 = conv(inputs, inner, 1), norm(inner)
        self.conv2, self.bn2 = conv(inner, inner, 3, stride, options.groups, dilation), norm(inner)
        self.conv3, self.bn3 = conv(inner, outputs, 1), norm(outputs)
        self.downsample = downsample(inputs, outputs, stride, norm)
        self.recalibrate = recalibrate

    @property
    def last_norm(self) -> nn.Module:  # type: ignore[override]
        return self.bn3

    def branch(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return self.bn3(self.conv3(x))


class PreBottleneck(Block):
    """A bottleneck whose norms and relus come before its convolutions."""

    expansion = 4
    ends_in_relu = False

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        recalibrate: nn.Module | None = None,
        options: Options = USUAL,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        norm = options.norm
        inner = options.inner(width)
        self.bn1, self.conv1 = norm(inputs), conv(inputs, inner, 1)
        self.bn2, self.conv2 = norm(inner), conv(inner, inner, 3, stride, options.groups, dilation)
        self.bn3, self.conv3 = norm(inner), conv(inner, 4 * width, 1)
        self.bn4 = norm(4 * width) if options.ends_in_norm else None
        self.downsample = downsample(inputs, 4 * width, stride, None)
        self.recalibrate = recalibrate

    @property
    def last_norm(self) -> nn.Module | None:  # type: ignore[override]
        return self.bn4

    def branch(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.bn1(x)))
        x = self.conv2(F.relu(self.bn2(x), inplace=True))
        x = self.conv3(F.relu(self.bn3(x), inplace=True))
        return x if self.bn4 is None else self.bn4(x)


class WideBlock(Block):
    """Two 3x3 convolutions, each behind a norm and a relu, with dropout between; where the shape changes, the shortcut
    begins behind the first relu, too."""

    ends_in_relu = False

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        recalibrate: nn.Module | None = None,
        options: Options = USUAL,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.bn1, self.conv1 = options.norm(inputs), conv(inputs, width, 3, stride)
        self.bn2, self.conv2 = options.norm(width), conv(width, width, 3)
        self.dropout = nn.Dropout(options.dropout)
        self.bn3 = options.norm(width) if options.ends_in_norm else None
        self.downsample = downsample(inputs, width, stride, None)
        self.recalibrate = recalibrate

    @property
    def last_norm(self) -> nn.Module | None:  # type: ignore[override]
        return self.bn3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = F.relu(self.bn1(x))
        a = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(before)), inplace=True)))
        return (
            a if self.bn3 is None else self.bn3(a),
            x if self.downsample is None else self.downsample(before),
        )
