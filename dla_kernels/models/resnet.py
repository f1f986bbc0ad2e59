"""ResNets for CIFAR and ImageNet that have attention between their layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..backends import check_backend
from ..cells import Cell
from ..nn import DLABase, DLALight, LayerwiseIntegration, MRLABase, MRLALight, make_cell
from ..nn.attention import StageAttention
from .blocks import ECA, SE, BasicBlock, Block, Bottleneck

ATTENTIONS = ("none", "se", "eca", "dia", "mrla_light", "mrla_base", "dla_light", "dla_base")
# The attention that runs between whole blocks.
BETWEEN = {"dla_light": DLALight, "dla_base": DLABase, "mrla_light": MRLALight, "mrla_base": MRLABase}
D = 32  # channels per head, unless given
WITH_CELL = {"dia": "dia", "dla_light": "dsu", "dla_base": "dsu"}  # attention with a cell -> its usual kind


def check_options(
    attention: str,
    cell: Cell | str | None,
    reduction: int | None,
    head_channels: int | None,
    drop_path: float,
    backend: str | None,
) -> None:
    """Raise an error on an option that is wrong or would have no effect."""
    if attention not in ATTENTIONS:
        raise ValueError(f"attention: expected one of {', '.join(ATTENTIONS)}, got {attention!r}")
    check_backend(backend)
    if cell is not None and not isinstance(cell, (Cell, str)):
        raise TypeError(f"cell: expected a dla_kernels.Cell or the name of a kind, got {type(cell).__name__}")
    for name, given, allowed, lacking in (
        ("cell", cell, WITH_CELL, "cell"),
        ("reduction", reduction, (*WITH_CELL, "se"), "bottleneck"),
        ("head_channels", head_channels, BETWEEN, "heads"),
        ("drop_path", drop_path or None, BETWEEN, "branch to drop"),
    ):
        if given is not None and attention not in allowed:
            raise ValueError(f"{name}: expected None with attention={attention!r}, got {given!r}; it has no {lacking}")


def stage_attention(
    attention: str,
    channels: int,
    layers: int,
    cell: Cell | str | None,
    reduction: int,
    *,
    head_channels: int | None = None,
    drop_path: float = 0.0,
    backend: str | None = None,
) -> StageAttention | LayerwiseIntegration | None:
    """Return what runs between the layers of a stage; None where nothing does."""
    cell = cell or WITH_CELL.get(attention)
    if attention == "dia":
        assert cell is not None
        if cell == "lstm":  # behind bottlenecks, as DIANet's own cell is
            cell = Cell("lstm", projection="split")
        return LayerwiseIntegration(make_cell(cell, channels, reduction, backend=backend))
    if attention not in BETWEEN:
        return None
    options = {"cell": cell, "reduction": reduction} if attention in WITH_CELL else {}
    options["head_channels"] = D if head_channels is None else head_channels
    return BETWEEN[attention](channels, layers, drop_path=drop_path, backend=backend, **options)


class Stage(nn.Module):
    """A stage that runs its blocks one after the other and, after each, its attention."""

    def __init__(self, blocks: Sequence[Block], attention: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        memory = None  # what the attention remembers from layer to layer
        for t, block in enumerate(self.layers):
            a, identity = block(x)
            if isinstance(self.attention, LayerwiseIntegration):
                x, memory = self.attention(identity, a, memory)
                x = F.relu(x, inplace=True)
                continue
            x = F.relu(a + identity, inplace=True)
            if self.attention is not None:
                x, memory = self.attention(t, x, identity, memory)
        return x


class ResNet(nn.Module):
    """A residual network whose attention may be chosen.

    depths: blocks of each stage.
    block: ``BasicBlock`` or ``Bottleneck``.
    imagenet: whether it begins with 64 channels at a quarter of the image, or with 16 at all of it.
    attention: ``none``, ``se``, ``eca``, ``dia``, ``mrla_light``, ``mrla_base``, ``dla_light`` or ``dla_base``.
    cell: of attention that has one, a ``dla_kernels.Cell`` or the name of a kind. The default is the published one:
        the released DSU, or DIANet's cell.
    reduction: r of the cell; 4, and 16 for ImageNet, where the paper says 20. Of ``se``, 16.
    head_channels: D of layer attention, a divisor of its channels; 32.
    drop_path: of layer attention, the rate at which a sample skips it in training.
    features_only: returns the maps of all stages, of ``channels`` at ``strides``, in place of class scores.
    backend: of all ops, as for them.

    >>> net = ResNet((2, 2, 2), Bottleneck, attention="dla_light", num_classes=10)
    >>> net(torch.randn(4, 3, 32, 32)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        depths: Sequence[int],
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck,
        *,
        imagenet: bool = False,
        num_classes: int | None = None,
        in_channels: int = 3,
        attention: str = "none",
        cell: Cell | str | None = None,
        reduction: int | None = None,
        head_channels: int | None = None,
        drop_path: float = 0.0,
        features_only: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_options(attention, cell, reduction, head_channels, drop_path, backend)
        if not depths or min(in_channels, *depths) < 1:
            raise ValueError(f"depths, in_channels: expected at least 1 each, got {tuple(depths)}, {in_channels}")
        squeeze = 16 if reduction is None else reduction
        if reduction is None:
            reduction = 16 if imagenet else 4
        width, stride = (64, 4) if imagenet else (16, 1)
        if imagenet:
            self.conv1 = nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.imagenet = imagenet
        channels, stages, self.channels, self.strides = width, [], [], []
        for s, depth in enumerate(depths):
            blocks = []
            for t in range(depth):
                outputs = width * block.expansion
                own: nn.Module | None = None
                if attention == "se":
                    own = SE(outputs, squeeze, backend)
                elif attention == "eca":
                    own = ECA(outputs, backend)
                blocks.append(block(channels, width, 2 if s > 0 and t == 0 else 1, own))
                channels = outputs
            between = stage_attention(
                attention,
                channels,
                depth,
                cell,
                reduction,
                head_channels=head_channels,
                drop_path=drop_path,
                backend=backend,
            )
            stages.append(Stage(blocks, between))
            self.channels.append(channels)
            self.strides.append(stride)
            width, stride = 2 * width, 2 * stride
        self.stages = nn.ModuleList(stages)
        if num_classes is None:
            num_classes = 1000 if imagenet else 10
        if num_classes < 1:
            raise ValueError(
                f"num_classes: expected at least 1, got {num_classes}; features_only=True has no classifier"
            )
        self.fc = None if features_only else nn.Linear(channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as the published networks do: those of convolutions, in layer attention too, normal by their
        fan-out; for ImageNet, branches begin at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for stage in self.stages:
            for block in stage.layers if self.imagenet else ():
                nn.init.zeros_(block.last_norm.weight)
            if isinstance(stage.attention, StageAttention):
                for filters in (*(layer.v for layer in stage.attention.layers), getattr(stage.attention, "e", None)):
                    if filters is not None:
                        nn.init.kaiming_normal_(filters, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return scores [B, num_classes] of images [B, 3, H, W], or the maps of all stages."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, padding=1)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features if self.fc is None else self.fc(x.mean((2, 3)))
