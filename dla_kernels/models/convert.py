"""Add layer attention to a network that is there already: a ResNet, or any other that has sequences of blocks."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy, Tracer

from ..backends import BackendName
from ..cells import Cell, KindName
from .attentions import BETWEEN, BetweenName, check_options, stage_attention, token_attention
from .resnet import ResNet
from .stage import Stage
from .survey import Survey, survey
from .vit import VisionTransformer

# Where networks have their stages, and what else tells such a network.
LAYOUTS: dict[tuple[str, ...], str] = {
    ("layer1", "layer2", "layer3", "layer4"): "",  # ResNets of torchvision and timm
    ("s1", "s2", "s3", "s4"): "",  # timm's RegNet
    tuple(f"trunk_output.block{s}" for s in (1, 2, 3, 4)): "",  # torchvision's
    tuple(f"stages.{s}.blocks" for s in range(4)): "",  # timm's ConvNeXt, ResNetV2
    tuple(f"stages.{s}" for s in range(4)): "",  # timm's ResNeXt-TS, RepVGG, NFNet
    tuple(f"features.{s}" for s in (1, 3, 5, 7)): "classifier.0.weight",  # torchvision's ConvNeXt
    ("blocks",): "patch_embed.proj.weight",  # timm's vision transformers
    ("encoder.layers",): "class_token",  # torchvision's
}
# What a module has of hooks.
HOOKS = [f"_{when}_hooks{how}" for when in ("forward", "forward_pre") for how in ("", "_with_kwargs")]
HOOKS += ["_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks"]
COMPILED = 0  # stands for the thread's number where torch.compile traces


class Kept:
    """A forward hook that keeps what a block's shortcut made for each thread, until the thread takes it; a copy where
    the block writes over it."""

    def __init__(self, copies: bool) -> None:
        self.copies = copies
        self.outputs: dict[int, Tensor] = {}

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        at = COMPILED if torch.compiler.is_compiling() else threading.get_ident()
        self.outputs[at] = output.clone() if self.copies else output

    def __getstate__(self) -> dict:
        """Return a state without outputs, so that a copy has none: a block called by itself has left one here."""
        return {"outputs": {}, "copies": self.copies}

    def forget(self) -> None:
        """Drop what a block has left that was called by itself."""
        if not torch.compiler.is_compiling():
            self.outputs.pop(threading.get_ident(), None)
            self.outputs.pop(COMPILED, None)

    def take(self) -> Tensor:
        if not torch.compiler.is_compiling() and threading.get_ident() in self.outputs:
            return self.outputs.pop(threading.get_ident())
        if COMPILED not in self.outputs:
            raise RuntimeError("a block did not call its downsample, proj or shortcut, which convert saw it call")
        return self.outputs.pop(COMPILED)


class Walk:
    """One pass of somebody else over a stage's layers, as by timm, which takes maps between blocks or checkpoints
    them: what each layer has to know, as the one before it has left it."""

    def __init__(self, layers: int) -> None:
        self.memory: list[Any] = [None] * (layers + 1)
        self.with_grad = torch.is_grad_enabled()


class ConvertedStage(Stage):
    """A stage whose blocks add their shortcuts themselves, so that these are looked for. Iterated, it is the calls of
    its layers, attention included, one after the other; its first blocks, ``stage[:n]``, are a stage again."""

    attention: nn.Module

    def __init__(self, blocks: nn.Module, attention: nn.Module, found: Survey) -> None:
        super().__init__(blocks.named_children(), attention)
        self.training = blocks.training
        self.found = found
        for hooks in HOOKS:
            getattr(self, hooks).update(getattr(blocks, hooks))
        self.shortcuts = [Kept(copies) if name else None for name, copies in zip(found.shortcuts, found.overwritten)]
        for block, name, kept in zip(self.blocks, found.shortcuts, self.shortcuts):
            if kept is not None:
                block.get_submodule(name).register_forward_hook(kept)

    def __iter__(self) -> Iterator[Callable[..., Tensor]]:
        walk = Walk(len(self))
        return iter([partial(self._step, walk, t) for t in range(len(self))])

    def _step(self, walk: Walk, t: int, x: Tensor, *others: Any, **how: Any) -> Tensor:
        """Run layer t of a walk; what else is given is the block's."""
        if walk.with_grad and not torch.is_grad_enabled():
            raise RuntimeError(
                "a converted stage whose layers are called one by one hands on more than maps: expected "
                "checkpoints with use_reentrant=False, got layers called without gradients"
            )
        x, walk.memory[t + 1] = self.layer(t, x, walk.memory[t], *others, **how)
        return x

    def __getitem__(self, t: int) -> nn.Module:
        if not isinstance(t, slice) or t.start not in (None, 0) or t.step not in (None, 1):
            return super().__getitem__(t)
        names = self.names[t]
        first = copy.copy(self)
        first.__dict__ = {**self.__dict__, "names": names, "shortcuts": self.shortcuts[t]}
        first._modules = {name: self._modules[name] for name in (*names, "attention")}
        return first

    def layer(self, t: int, x: Tensor, memory: Any, *others: Any, **how: Any) -> tuple[Tensor, Any]:
        kept, before = self.shortcuts[t], None
        if kept is not None:
            kept.forget()
        elif t > 0 or not self.found.starts_alone:
            before = x.clone() if self.found.overwritten[t] else x
        x = self[t](x, *others, **how)
        return self.attention(t, x, before if kept is None else self.shortcut(t, x), memory)

    def shortcut(self, t: int, x: Tensor | Proxy) -> Tensor | Proxy:
        """Return what the shortcut of block t made on the way to x."""
        if isinstance(x, Proxy):  # where a module of torch's own is one node, and its hook is not called
            path = cast(Tracer, x.tracer).path_of_module(self[t].get_submodule(self.found.shortcuts[t]))
            if nodes := x.tracer.graph.find_nodes(op="call_module", target=path):
                return Proxy(nodes[-1], x.tracer)
        return self.shortcuts[t].take()


def stages_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a network's stages where it has them as others do; else those of a ResNet."""
    names = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    for stages, other in LAYOUTS.items():
        if names.issuperset(stages) and (not other or other in names):
            return stages
    return next(iter(LAYOUTS))


def convert(
    model: nn.Module,
    attention: BetweenName = "dla_light",
    *,
    stages: Sequence[str] | None = None,
    example: Tensor | tuple | None = None,
    cell: Cell | KindName | str | None = None,
    reduction: int | None = None,
    head_channels: int | None = None,
    drop_path: float = 0.0,
    backend: BackendName | None = None,
) -> nn.Module:
    """Add layer attention to a network, in place, and return it; its own weights stay as they are.

    model: a ResNet, RegNet, ConvNeXt or vision transformer of torchvision or timm or one like theirs, or with
        ``stages`` any network.
    attention: ``dla_light``, ``dla_base``, ``mrla_light`` or ``mrla_base``.
    stages: the names of its stages: modules such as ``stages.0.blocks`` that run their own modules, the blocks, one
        after the other. All blocks of a stage make maps [B, C, H, W] of one size, or tokens [B, P + H W, C]. As the
        layer before the first, and as each block's shortcut, light attention takes what the block's ``downsample``,
        ``proj`` or ``shortcut`` makes; where it has none, the block's input, and nothing where a first block's input
        has another size.
    example: what the model is called with, a tensor or a tuple of arguments; an image [1, 3, 224, 224] unless given, or
        of the size that a transformer takes. Its sizes go once through a copy of the model that has no numbers.
    cell, reduction, head_channels, drop_path, backend: as for ``dla_kernels.models.ResNet`` for ImageNet; between
        tokens nothing is dropped.

    The new norms begin with weight zero, so that the converted network computes what it did until it is trained; with
    ``dla_base`` and ``mrla_base`` between maps, where no gradient would come through the relu at zero, they begin with
    0.01, so that it nearly does. Between tokens base attention has stages of four blocks. Blocks keep their names,
    ``layer1.0`` and so on; beside them there is ``layer1.attention``.
    """
    if attention not in BETWEEN:
        raise ValueError(f"attention: expected one of {', '.join(BETWEEN)}, got {attention!r}")
    check_options([attention], cell, reduction, head_channels, drop_path, backend)
    if isinstance(model, (ResNet, VisionTransformer)):
        raise TypeError("model: expected one of torchvision or timm; ours have attention by name: see create_model")
    for name, module in model.named_modules():
        if isinstance(module, ConvertedStage):
            raise ValueError(f"model: expected one without layer attention, got one whose {name} was converted before")
    if isinstance(stages, str):
        raise TypeError(f"stages: expected a sequence of names, got {stages!r}; [{stages!r}] is one")
    stages = stages_of(model) if stages is None else tuple(stages)
    if not stages:
        raise ValueError("stages: expected at least one name, got none")
    made = []
    for name, found in survey(model, stages, example).items():
        blocks = model.get_submodule(name)
        r = 16 if reduction is None else reduction
        own: dict[str, Any] = {"head_channels": head_channels, "backend": backend}
        if found.tokens is None:
            own["drop_path"] = drop_path
            between: Any = stage_attention(attention, found.channels, len(found.shortcuts), cell, r, **own)
        else:
            if drop_path:
                raise ValueError(f"drop_path: expected 0 between tokens, where nothing is dropped, got {drop_path}")
            own |= {"prefix": found.tokens[0], "size": found.tokens[1:]}
            between = token_attention(attention, found.channels, len(found.shortcuts), cell, r, **own)
        for norm in between.modules():
            if isinstance(norm, (nn.BatchNorm2d, nn.LayerNorm)):
                nn.init.constant_(norm.weight, 0.01 if getattr(between, "relu", False) else 0.0)
        like = next(blocks.parameters(), torch.empty(0))
        made.append((blocks, between.to(like.device, like.dtype).train(blocks.training), found))
    for blocks, between, found in made:  # now that nothing can fail any more
        stage = ConvertedStage(blocks, between, found)
        for path in [path for path, module in model.named_modules(remove_duplicate=False) if module is blocks]:
            model.set_submodule(path, stage)
    return model
