"""Add layer attention to a ResNet that is there already, of torchvision, timm or one built like theirs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..cells import Cell
from .resnet import BETWEEN, ResNet, check_options, stage_attention

STAGES = ("layer1", "layer2", "layer3", "layer4")
COMPILED = 0  # stands for the thread's number where torch.compile traces


class Kept:
    """A forward hook that keeps what a block's ``downsample`` made for each thread, until the thread takes it."""

    def __init__(self) -> None:
        self.outputs: dict[int, Tensor] = {}

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.outputs[COMPILED if torch.compiler.is_compiling() else threading.get_ident()] = output

    def __getstate__(self) -> dict:
        """Return a state without outputs, so that a copy has none: a block called by itself has left one here."""
        return {"outputs": {}}

    def take(self) -> Tensor:
        if not torch.compiler.is_compiling() and threading.get_ident() in self.outputs:
            return self.outputs.pop(threading.get_ident())
        if COMPILED not in self.outputs:
            raise RuntimeError("a block did not call its downsample: convert cannot know its shortcut")
        return self.outputs.pop(COMPILED)


def take_old_names(stage: ConvertedStage, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Rename what a checkpoint of 0.1 has at ``layer1.layers.0``, where the blocks were then."""
    old = f"{prefix}layers."
    for name in [name for name in state_dict if name.startswith(old) and "layers" not in stage.names]:
        state_dict[prefix + name.removeprefix(old)] = state_dict.pop(name)


class ConvertedStage(nn.Module):
    """A stage that has attention after each of its blocks, which keep their names. Indexed, it is the sequence of
    blocks that it was; iterated, as by those who checkpoint a sequence of modules, it is one module."""

    def __init__(self, blocks: nn.Sequential, attention: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, _ in blocks.named_children()]
        for name, block in blocks.named_children():
            self.add_module(name, block)
        self.attention = attention
        self.training = blocks.training
        self.shortcuts = [None if block.downsample is None else Kept() for block in blocks]
        for block, kept in zip(blocks, self.shortcuts):
            if kept is not None:
                block.downsample.register_forward_hook(kept)
        self.register_load_state_dict_pre_hook(take_old_names)

    @property
    def blocks(self) -> list[nn.Module]:
        return [getattr(self, name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, t: int) -> nn.Module:
        return self.blocks[t]

    def __setitem__(self, t: int, block: nn.Module) -> None:
        setattr(self, self.names[t], block)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter((self,))

    def forward(self, x: Tensor) -> Tensor:
        memory = None
        for t, (block, kept) in enumerate(zip(self.blocks, self.shortcuts)):
            identity, x = x, block(x)
            x, memory = self.attention(t, x, identity if kept is None else kept.take(), memory)
        return x


def channels_of(block: nn.Module) -> int:
    """Return how many channels come out of a block's last convolution."""
    convolutions = [module for name, module in block.named_children() if name.startswith("conv")]
    return convolutions[-1].out_channels


def convert(
    model: nn.Module,
    attention: str = "dla_light",
    *,
    cell: Cell | str | None = None,
    reduction: int | None = None,
    head_channels: int | None = None,
    drop_path: float = 0.0,
    backend: str | None = None,
) -> nn.Module:
    """Add layer attention to a ResNet, in place, and return it; its own weights stay as they are.

    model: of torchvision or timm, or like theirs: ``layer1`` to ``layer4`` of blocks with ``downsample``.
    attention: ``dla_light``, ``dla_base``, ``mrla_light`` or ``mrla_base``.
    cell, reduction, head_channels, drop_path, backend: as for ``dla_kernels.models.ResNet`` for ImageNet.

    The new norms begin with weight zero, so that the converted network computes what it did until it is trained; with
    ``dla_base`` and ``mrla_base``, where no gradient would come through the relu at zero, they begin with 0.01, so that
    it nearly does. Blocks keep their names, ``layer1.0`` and so on; beside them there is ``layer1.attention``.
    """
    if attention not in BETWEEN:
        raise ValueError(f"attention: expected one of {', '.join(BETWEEN)}, got {attention!r}")
    check_options(attention, cell, reduction, head_channels, drop_path, backend)
    if isinstance(model, ResNet):
        raise TypeError("model: expected one of torchvision or timm; ours have attention by name: see create_model")
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
            16 if reduction is None else reduction,
            head_channels=head_channels,
            drop_path=drop_path,
            backend=backend,
        )
        for layer in between.layers:
            nn.init.constant_(layer.norm.weight, 0.01 if between.relu else 0.0)
        like = next(stage.parameters())
        made[name] = ConvertedStage(stage, between.to(like.device, like.dtype).train(stage.training))
    for name, stage in made.items():
        setattr(model, name, stage)
    return model
