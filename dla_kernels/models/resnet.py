"""Residual networks for CIFAR and ImageNet that have attention in their blocks, along them or between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..backends import BackendName
from ..cells import Cell, KindName
from ..nn import LayerwiseIntegration, Shared
from ..nn.attention import StageAttention
from ..nn.hooks import is_watched
from ..nn.recalibration import Recalibration, ended
from .attentions import ALONG, AttentionName, InsideName, block_attention, check_options, stage_attention
from .blocks import Block, Bottleneck, Norm, Options, conv
from .stage import Stage


class ResNetStage(Stage):
    """A stage of blocks that hand over branch and shortcut: what recalibrates the branch comes first, then their sum,
    then what runs between blocks. Without ``skip`` nothing is added."""

    skip = True

    def layer(self, t: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        a, identity = self[t](x)
        own, relu = getattr(self[t], "recalibrate", None), getattr(self[t], "ends_in_relu", True)
        added, attention = identity if self.skip else None, self.attention
        along = isinstance(attention, (LayerwiseIntegration, Shared))
        if own is not None and (along or not isinstance(own, Recalibration)):
            a, own = own(a), None
        if isinstance(attention, LayerwiseIntegration):
            # From the second block on the shortcut is the stage's own, but where hooks or traces look on.
            unseen = t > 0 and isinstance(a, Tensor) and not is_watched(attention, *self[t].modules())
            return attention(added, a, memory, relu=relu, inplace=unseen)
        if isinstance(attention, Shared):
            x = attention(t, a, added, relu=relu)
        elif own is not None:
            x = own(a, added, relu=relu)
        else:
            x = ended(a, added, relu)
        return attention(t, x, identity, memory) if isinstance(attention, StageAttention) else (x, None)


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
    block: ``BasicBlock``, ``Bottleneck``, or of those that begin with a norm ``PreBottleneck`` or ``WideBlock``.
    imagenet: whether it begins at a quarter of the image, or with all of it.
    width: of the blocks of the first stage, 64 for ImageNet and 16 for CIFAR; each next stage has twice as many.
    stem: channels of the first convolution, as many unless given.
    attention: one of ``dla_kernels.models.ATTENTIONS``, or one for each stage.
    inside: attention inside each block, beside that: ``se``, ``eca``, ``cbam``, ``srm``, ``spa`` or ``sge``.
    cell: of attention that has one, a ``dla_kernels.Cell`` or the name of a kind. The default is the published one:
        the released DSU, or DIANet's cell.
    reduction: r of the cell; 4, and 16 for ImageNet, where the paper says 20. Of ``se``, ``cbam`` and ``spa``, 16.
    start: where a DIA cell starts: ``zeros``, ``random`` as its paper says, or ``learned``.
    head_channels: D of layer attention, a divisor of its channels; 32.
    drop_path: of layer attention, the rate at which a sample skips it in training.
    skip: whether there are shortcuts.
    norm: ``batch``, or ``none`` for no norm at all.
    norm_layer: what makes the norms in place of BatchNorm2d, of a number of channels.
    groups, width_per_group: of the 3x3 convolutions of bottlenecks, as in ResNeXt.
    replace_stride_with_dilation: of each stage but the first, whether it dilates its convolutions and keeps its size.
    deep_stem: for ImageNet, whether it begins with three 3x3 convolutions in place of one 7x7.
    dropout: in ``WideBlock``.
    num_classes: with 0 there is no classifier, and the network returns the means of its last maps.
    features_only: returns the maps of stages, of ``channels`` at ``strides``, in place of class scores.
    out_indices: of ``features_only``, of which stages, counted from 0, or of how many of the last; else of all.
    frozen_stages: how many stages are not trained, and what comes before them; with 0 the stem alone, None for none.
    norm_eval: whether BatchNorm keeps its statistics in training, as detectors with few images on a GPU want it.
    backend: of all ops, as for them.

    >>> net = ResNet((2, 2, 2), Bottleneck, attention="dla_light", num_classes=10)
    >>> net(torch.randn(4, 3, 32, 32)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        depths: Sequence[int],
        block: type[Block] = Bottleneck,
        *,
        imagenet: bool = False,
        num_classes: int | None = None,
        in_channels: int = 3,
        width: int | None = None,
        stem: int | None = None,
        attention: AttentionName | Sequence[AttentionName] = "none",
        inside: InsideName | None = None,
        cell: Cell | KindName | str | None = None,
        reduction: int | None = None,
        start: str | None = None,
        head_channels: int | None = None,
        drop_path: float = 0.0,
        skip: bool = True,
        norm: str = "batch",
        norm_layer: Norm | None = None,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        deep_stem: bool = False,
        dropout: float = 0.0,
        features_only: bool = False,
        out_indices: Sequence[int] | int | None = None,
        frozen_stages: int | None = None,
        norm_eval: bool = False,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__()
        attentions = [attention] * len(depths) if isinstance(attention, str) else [*attention]
        check_options(attentions, cell, reduction, head_channels, drop_path, backend, inside, start)
        if not depths or min(in_channels, *depths) < 1:
            raise ValueError(f"depths, in_channels: expected at least 1 each, got {tuple(depths)}, {in_channels}")
        if len(attentions) != len(depths):
            raise ValueError(f"attention: expected one, or one for each of {len(depths)} stages, got {len(attentions)}")
        dilates = [False, *(replace_stride_with_dilation or [False] * (len(depths) - 1))]
        if len(dilates) != len(depths):
            raise ValueError(f"replace_stride_with_dilation: expected {len(depths) - 1} flags, got {len(dilates) - 1}")
        squeeze = 16 if reduction is None else reduction
        if reduction is None:
            reduction = 16 if imagenet else 4
        width = (64 if imagenet else 16) if width is None else width
        channels, stride = width if stem is None else stem, 4 if imagenet else 1
        if min(width, channels) < 1:
            raise ValueError(f"width, stem: expected at least 1 channel each, got {width}, {channels}")
        make_norm = norm_of(norm, norm_layer)
        if deep_stem and not imagenet:
            raise ValueError("deep_stem: expected False but for ImageNet; for CIFAR one 3x3 convolution is the stem")
        self.conv1 = stem_of(in_channels, channels, make_norm, imagenet, deep_stem)
        self.bn1: nn.Module | None = make_norm(channels) if block.ends_in_relu else None
        self.relu = nn.ReLU(inplace=True)
        if imagenet:
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.imagenet, self.depths, self.groups, self.deep_stem = imagenet, tuple(depths), groups, deep_stem
        self.channels, self.strides = [], []
        dilation = 1
        for s, (depth, attends) in enumerate(zip(depths, attentions)):
            steps = 2 if s > 0 else 1
            before = dilation
            if dilates[s]:
                steps, dilation = 1, dilation * 2
            stride *= steps
            options = Options(make_norm, groups, width_per_group, dropout, ends_in_norm=attends in ALONG)
            outputs, blocks = width * block.expansion, []
            for t in range(depth):
                own = block_attention(attends if inside is None else inside, outputs, squeeze, backend)
                first = t == 0
                blocks.append(
                    block(channels, width, steps if first else 1, own, options, before if first else dilation)
                )
                channels = outputs
            between = stage_attention(
                attends,
                channels,
                depth,
                cell,
                reduction,
                squeeze=squeeze,
                head_channels=head_channels,
                drop_path=drop_path,
                start=start,
                backend=backend,
            )
            stage = ResNetStage(((str(t), block) for t, block in enumerate(blocks)), between)
            stage.skip = skip
            self.add_module(stage_name(s), stage)
            self.channels.append(channels)
            self.strides.append(stride)
            width *= 2
        self.last_bn = None if block.ends_in_relu else make_norm(channels)
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
        if frozen_stages is not None and not 0 <= frozen_stages <= count:
            raise ValueError(f"frozen_stages: expected None or from 0 to {count}, got {frozen_stages}")
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        for module in self.frozen:
            module.requires_grad_(False)
        self.register_load_state_dict_pre_hook(take_old_names)
        self.train()

    @property
    def stages(self) -> list[ResNetStage]:
        """The stages, which are the modules ``layer1``, ``layer2`` ..., as in torchvision."""
        return [getattr(self, stage_name(s)) for s in range(len(self.depths))]

    @property
    def frozen(self) -> list[nn.Module]:
        """The modules that are not trained."""
        if self.frozen_stages is None:
            return []
        stem = [module for module in (self.conv1, self.bn1) if module is not None]
        return [*stem, *self.stages[: self.frozen_stages]]

    def train(self, mode: bool = True) -> ResNet:
        """Set training, but for what is frozen and, with ``norm_eval``, for norms; or evaluation."""
        super().train(mode)
        norms = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if self.norm_eval else []
        for module in (*self.frozen, *norms):
            module.eval()
        return self

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place of the one that is there; with 0 classes there is none."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: expected 'avg', which these networks have, got {global_pool!r}")
        if num_classes < 0:
            raise ValueError(f"num_classes: expected a number of classes, or 0 for none, got {num_classes}")
        like = next(self.conv1.parameters())
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
                if (last := getattr(block.last_norm, "weight", None)) is not None:
                    nn.init.zeros_(last)
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
        x = self.conv1(x)
        if self.bn1 is not None:
            x = self.relu(self.bn1(x))
        if self.imagenet:
            x = self.maxpool(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        if self.last_bn is not None:  # of blocks that begin with norms
            maps[-1] = self.relu(self.last_bn(x))
        return maps


def stem_of(inputs: int, channels: int, norm: Norm, imagenet: bool, deep: bool) -> nn.Module:
    """Return the first convolution, or the first three with what is between them."""
    if not imagenet:
        return conv(inputs, channels, 3)
    if not deep:
        return conv(inputs, channels, 7, 2)
    half = channels // 2
    first, second = [conv(inputs, half, 3, 2), norm(half)], [conv(half, half, 3), norm(half)]
    return nn.Sequential(*first, nn.ReLU(inplace=True), *second, nn.ReLU(inplace=True), conv(half, channels, 3))


def norm_of(norm: str, norm_layer: Norm | None) -> Norm:
    """Return what makes the norms."""
    if norm not in ("batch", "none"):
        raise ValueError(f"norm: expected batch or none, got {norm!r}; norm_layer takes others")
    if norm == "none":
        if norm_layer is not None:
            raise ValueError("norm_layer: expected None with norm='none', which has none")
        return lambda channels: nn.Identity()
    return nn.BatchNorm2d if norm_layer is None else norm_layer
