"""ResNets for CIFAR and ImageNet that have attention between their layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from ..backends import BackendName, check_backend
from ..cells import Cell, KindName
from ..nn import ECA, SE, DLABase, DLALight, LayerwiseIntegration, MRLABase, MRLALight, make_cell
from ..nn.attention import StageAttention
from ..nn.recalibration import Recalibration
from .blocks import BasicBlock, Bottleneck
from .stage import Stage

AttentionName = Literal["none", "se", "eca", "dia", "mrla_light", "mrla_base", "dla_light", "dla_base"]
BetweenName = Literal["mrla_light", "mrla_base", "dla_light", "dla_base"]
ATTENTIONS = get_args(AttentionName)
# The attention that runs between whole blocks.
BETWEEN = {"dla_light": DLALight, "dla_base": DLABase, "mrla_light": MRLALight, "mrla_base": MRLABase}
D = 32  # channels per head, unless given or no divisor of C
WITH_CELL = {"dia": "dia", "dla_light": "dsu", "dla_base": "dsu"}  # attention with a cell -> its usual kind


def check_options(
    attention: str,
    cell: Cell | KindName | str | None,
    reduction: int | None,
    head_channels: int | None,
    drop_path: float,
    backend: BackendName | None,
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
    cell: Cell | KindName | str | None,
    reduction: int,
    *,
    head_channels: int | None = None,
    drop_path: float = 0.0,
    backend: BackendName | None = None,
) -> StageAttention | LayerwiseIntegration | None:
    """Return what runs between the layers of a stage; None where nothing does."""
    cell = WITH_CELL.get(attention) if cell is None else cell
    if attention == "dia":
        assert cell is not None
        if cell == "lstm":  # behind bottlenecks, as DIANet's own cell is
            cell = Cell("lstm", projection="split")
        return LayerwiseIntegration(make_cell(cell, channels, reduction, backend=backend))
    if attention not in BETWEEN:
        return None
    options = {"cell": cell, "reduction": reduction} if attention in WITH_CELL else {}
    if head_channels is None:
        head_channels = next(divisor for divisor in range(min(D, channels), 0, -1) if channels % divisor == 0)
    options["head_channels"] = head_channels
    return BETWEEN[attention](channels, layers, drop_path=drop_path, backend=backend, **options)


class ResNetStage(Stage):
    """A stage of blocks that hand over branch and shortcut: their sum follows, or layer-wise integration."""

    def layer(self, t: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        a, identity = self[t](x)
        recalibrate = getattr(self[t], "recalibrate", None)
        if isinstance(self.attention, LayerwiseIntegration):
            return self.attention(identity, a if recalibrate is None else recalibrate(a), memory, relu=True)
        if isinstance(recalibrate, Recalibration):
            x = recalibrate(a, identity)
        else:
            x = F.relu((a if recalibrate is None else recalibrate(a)) + identity, inplace=True)
        return (x, None) if self.attention is None else self.attention(t, x, identity, memory)


OLD_STAGE = re.compile(r"stages\.(\d+)\.")  # in a checkpoint of 0.1


def take_old_names(net: ResNet, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Rename what a checkpoint of 0.1 has at ``stages.0``, which is ``layer1`` now; its blocks the stage renames."""
    for name in [name for name in state_dict if OLD_STAGE.match(name.removeprefix(prefix))]:
        new = OLD_STAGE.sub(lambda found: f"{stage_name(int(found[1]))}.", name.removeprefix(prefix), count=1)
        state_dict[prefix + new] = state_dict.pop(name)


def stage_name(s: int) -> str:
    return f"layer{s + 1}"


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
    num_classes: with 0 there is no classifier, and the network returns the means of its last maps.
    features_only: returns the maps of stages, of ``channels`` at ``strides``, in place of class scores.
    out_indices: of ``features_only``, of which stages, counted from 0, or of how many of the last; else of all.
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
        attention: AttentionName = "none",
        cell: Cell | KindName | str | None = None,
        reduction: int | None = None,
        head_channels: int | None = None,
        drop_path: float = 0.0,
        features_only: bool = False,
        out_indices: Sequence[int] | int | None = None,
        backend: BackendName | None = None,
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
        self.relu = nn.ReLU(inplace=True)
        if imagenet:
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.imagenet, self.depths = imagenet, tuple(depths)
        channels, self.channels, self.strides = width, [], []
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
            self.add_module(stage_name(s), ResNetStage(((str(t), block) for t, block in enumerate(blocks)), between))
            self.channels.append(channels)
            self.strides.append(stride)
            width, stride = 2 * width, 2 * stride
        self.num_features = channels
        # timm's words for what its tools ask of a network.
        self.feature_info: Any = [
            {"num_chs": C, "reduction": reduction, "module": stage_name(s)}
            for s, (C, reduction) in enumerate(zip(self.channels, self.strides))
        ]
        self.features_only = features_only
        if out_indices is not None and not features_only:
            raise ValueError(f"out_indices: expected None without features_only=True, got {out_indices!r}")
        count = len(depths)
        wanted = range(-out_indices, 0) if isinstance(out_indices, int) else out_indices
        self.out_indices = [*range(count)] if wanted is None else sorted({s + count if s < 0 else s for s in wanted})
        if not {*self.out_indices} <= {*range(count)} or not self.out_indices:
            raise ValueError(f"out_indices: expected some of {[*range(count)]}, got {out_indices!r}")
        self.channels = [self.channels[s] for s in self.out_indices]
        self.strides = [self.strides[s] for s in self.out_indices]
        self.reset_classifier((1000 if imagenet else 10) if num_classes is None else num_classes)
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(take_old_names)

    @property
    def stages(self) -> list[ResNetStage]:
        """The stages, which are the modules ``layer1``, ``layer2`` ..., as in torchvision."""
        return [getattr(self, stage_name(s)) for s in range(len(self.depths))]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place of the one that is there; with 0 classes there is none."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: expected 'avg', which these networks have, got {global_pool!r}")
        if num_classes < 0:
            raise ValueError(f"num_classes: expected a number of classes, or 0 for none, got {num_classes}")
        like = self.conv1.weight
        self.num_classes = 0 if self.features_only else num_classes
        self.fc: nn.Module | None = None
        if not self.features_only:
            self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
            self.fc.to(like.device, like.dtype)

    def get_classifier(self) -> nn.Module | None:
        return self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep, of what each layer computes, only its results for the backward pass, and compute the rest again there.
        As everywhere, norms then see each batch twice."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def reset_parameters(self) -> None:
        """Draw weights as the published networks do: those of convolutions, in layer attention too, normal by their
        fan-out; for ImageNet, branches begin at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for stage in self.stages:
            for block in stage.blocks if self.imagenet else ():
                nn.init.zeros_(block.last_norm.weight)
            if isinstance(stage.attention, StageAttention):
                for filters in (*(layer.v for layer in stage.attention.layers), getattr(stage.attention, "e", None)):
                    if filters is not None:
                        nn.init.kaiming_normal_(filters, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return scores [B, num_classes] of images [B, 3, H, W], or the maps of stages."""
        if self.features_only:
            maps = self._maps(x)
            return [maps[s] for s in self.out_indices]
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the map of the last stage, of ``num_features`` channels."""
        return self._maps(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return scores from the map of the last stage; its means with ``pre_logits``."""
        x = x.mean((2, 3))
        return x if pre_logits or self.fc is None else self.fc(x)

    def _maps(self, x: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(x)))
        if self.imagenet:
            x = self.maxpool(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
