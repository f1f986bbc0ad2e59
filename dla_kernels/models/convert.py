"""Add layer attention to a network that is there already: a ResNet, or any other that has sequences of blocks."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..cells import Cell
from .resnet import BETWEEN, ResNet, check_options, stage_attention
from .survey import Survey, survey

STAGES = ("layer1", "layer2", "layer3", "layer4")
COMPILED = 0  # stands for the thread's number where torch.compile traces


class Kept:
    """A forward hook that keeps what a block's shortcut made for each thread, until the thread takes it."""

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
            raise RuntimeError("a block did not call its downsample, proj or shortcut, which convert saw it call")
        return self.outputs.pop(COMPILED)


def take_old_names(stage: ConvertedStage, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Rename what a checkpoint of 0.1 has at ``layer1.layers.0``, where the blocks were then."""
    old = f"{prefix}layers."
    for name in [name for name in state_dict if name.startswith(old) and "layers" not in stage.names]:
        state_dict[prefix + name.removeprefix(old)] = state_dict.pop(name)


class ConvertedStage(nn.Module):
    """A stage that has attention after each of its blocks, which keep their names. Indexed, it is the sequence of
    blocks that it was; iterated, as by those who checkpoint a sequence of modules, it is one module."""

    def __init__(self, blocks: nn.Module, attention: nn.Module, found: Survey) -> None:
        super().__init__()
        self.names = [name for name, _ in blocks.named_children()]
        for name, block in blocks.named_children():
            self.add_module(name, block)
        self.attention = attention
        self.training = blocks.training
        self.starts_alone = found.starts_alone
        self.shortcuts = [Kept() if name else None for name in found.shortcuts]
        for block, name, kept in zip(blocks.children(), found.shortcuts, self.shortcuts):
            if kept is not None:
                block.get_submodule(name).register_forward_hook(kept)
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
            identity, x = None if t == 0 and self.starts_alone else x, block(x)
            x, memory = self.attention(t, x, identity if kept is None else kept.take(), memory)
        return x


def convert(
    model: nn.Module,
    attention: str = "dla_light",
    *,
    stages: Sequence[str] = STAGES,
    example: Tensor | tuple | None = None,
    cell: Cell | str | None = None,
    reduction: int | None = None,
    head_channels: int | None = None,
    drop_path: float = 0.0,
    backend: str | None = None,
) -> nn.Module:
    """Add layer attention to a network, in place, and return it; its own weights stay as they are.

    model: a ResNet of torchvision or timm or one like theirs, or with ``stages`` any network.
    attention: ``dla_light``, ``dla_base``, ``mrla_light`` or ``mrla_base``.
    stages: the names of its stages: modules such as ``stages.0.blocks`` that run their own modules, the blocks, one
        after the other. All blocks of a stage make maps [B, C, H, W] of one size. As the layer before the first, and as
        each block's shortcut, light attention takes what the block's ``downsample``, ``proj`` or ``shortcut`` makes;
        where it has none, the block's input, and nothing where a first block's input has another size.
    example: what the model is called with, a tensor or a tuple of arguments; an image [1, 3, 224, 224] unless given.
        Its sizes go once through a copy of the model that has no numbers.
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
    for name, module in model.named_modules():
        if isinstance(module, ConvertedStage):
            raise ValueError(f"model: expected one without layer attention, got one whose {name} was converted before")
    made = {}
    for name, found in survey(model, stages, example).items():
        stage = model.get_submodule(name)
        between = stage_attention(
            attention,
            found.channels,
            len(found.shortcuts),
            cell,
            16 if reduction is None else reduction,
            head_channels=head_channels,
            drop_path=drop_path,
            backend=backend,
        )
        for layer in between.layers:
            nn.init.constant_(layer.norm.weight, 0.01 if between.relu else 0.0)
        like = next(stage.parameters())
        made[name] = ConvertedStage(stage, between.to(like.device, like.dtype).train(stage.training), found)
    for name, stage in made.items():
        model.set_submodule(name, stage)
    return model
