"""Layer attention for a ResNet that is there already, of torchvision, timm or one built like theirs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..cells import Cell
from ..nn import LayerwiseIntegration
from .resnet import stage_attention

STAGES = ("layer1", "layer2", "layer3", "layer4")


class _WithShortcut:
    """A block whose shortcut is known: its own ``downsample`` is not asked again."""

    def __init__(self, block: nn.Module, identity: Tensor) -> None:
        self._block, self._identity = block, identity

    def downsample(self, x: Tensor) -> Tensor:
        return self._identity

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


class ConvertedStage(nn.Module):
    """The blocks of a stage, with attention after each."""

    def __init__(self, blocks: nn.Sequential, attention: nn.Module) -> None:
        super().__init__()
        self.layers, self.attention = blocks, attention
        self.training = blocks.training

    def forward(self, x: Tensor) -> Tensor:
        memory = None
        for t, block in enumerate(self.layers):
            identity = x if block.downsample is None else block.downsample(x)
            x = block(x) if block.downsample is None else type(block).forward(_WithShortcut(block, identity), x)
            x, memory = self.attention(t, x, identity, memory)
        return x


def channels_of(block: nn.Module) -> int:
    """What comes out of its last convolution."""
    convolutions = [module for name, module in block.named_children() if name.startswith("conv")]
    return convolutions[-1].out_channels


def convert(
    model: nn.Module,
    attention: str = "dla_light",
    *,
    cell: Cell | str | None = None,
    reduction: int = 16,
    head_channels: int = 32,
    drop_path: float = 0.0,
    backend: str | None = None,
) -> nn.Module:
    """Adds layer attention to a ResNet, in place, and returns it; its own weights stay as they are.

    model: of torchvision or timm, or like theirs: ``layer1`` to ``layer4`` of blocks with ``downsample``.
    attention: ``dla_light``, ``dla_base``, ``mrla_light`` or ``mrla_base``.
    cell, reduction, head_channels, drop_path, backend: as for ``dla_kernels.models.ResNet``.

    The new norms begin with weight zero, so that the converted network computes what it did until it is trained. A
    stage that was ``layer1`` has its blocks in ``layer1.layers``.
    """
    stages = {name: getattr(model, name, None) for name in STAGES}
    for name, stage in stages.items():
        if isinstance(stage, ConvertedStage):
            raise ValueError(f"model: expected one without layer attention, got one whose {name} was converted before")
        if not isinstance(stage, nn.Sequential) or not all(hasattr(block, "downsample") for block in stage):
            raise TypeError(
                f"model: expected a ResNet whose {name} is a sequence of blocks with downsample, "
                f"got {type(model).__name__}"
            )
    made = {}
    for name, stage in stages.items():
        between = stage_attention(
            attention,
            channels_of(stage[0]),
            len(stage),
            cell,
            reduction,
            head_channels=head_channels,
            drop_path=drop_path,
            backend=backend,
        )
        if between is None or isinstance(between, LayerwiseIntegration):
            raise ValueError(
                f"attention: expected dla_light, dla_base, mrla_light or mrla_base, got {attention!r}, "
                "which works inside the blocks"
            )
        for layer in between.layers:
            nn.init.zeros_(layer.norm.weight)
        like = next(stage.parameters())
        made[name] = ConvertedStage(stage, between.to(like.device, like.dtype).train(stage.training))
    for name, stage in made.items():
        setattr(model, name, stage)
    return model
