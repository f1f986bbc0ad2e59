"""Find out what the blocks of a network's stages make, by one call of a copy that has sizes and no numbers."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .stage import OTHERS, Stage

SHORTCUTS = ("downsample", "proj", "shortcut")  # what the blocks of torchvision and timm call theirs


class Survey(NamedTuple):
    """What is to be known of a stage before attention is put between its blocks."""

    channels: int
    shortcuts: list[str]  # of each block, which of SHORTCUTS makes it; empty where it is the block's input
    overwritten: list[bool]  # of each block, whether it writes over its shortcut, so that a copy has to be kept
    starts_alone: bool  # the first block has no shortcut, and an input of another size
    tokens: tuple[int, int, int] | None = None  # of tokens [B, P + H W, C]: P, H, W


@dataclass
class Call:
    """One call of a module. Versions tell what is written in place later."""

    args: tuple
    kwargs: dict[str, Any]
    versions: list[int]  # of the first argument, and of what was made, when they were handed over
    made: Any = None

    @property
    def given(self) -> Any:
        return self.args[0] if self.args else None


def version(x: object) -> int:
    return x._version if isinstance(x, Tensor) else 0


def survey(model: nn.Module, stages: Sequence[str], example: Tensor | tuple | None) -> dict[str, Survey]:
    """Return what there is to know of each stage; raise where one is none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in sorted(stages, key=lambda name: name in modules):  # what is missing first
        if not name or name not in modules or not list(modules[name].children()):
            raise ValueError(
                f"stages: expected names of modules that run their own one after the other, but {type(model).__name__} "
                f"has no such {name!r}; it has {', '.join(sequences(model)) or 'none'}"
            )
        outer = [other for other in stages if name.startswith(f"{other}.")]
        again = [other for other in stages if modules[other] is modules[name]]
        if outer or len(again) > 1:
            raise ValueError(
                f"stages: expected each once and none inside of another, got {', '.join([*outer, *again])}"
            )
        check_own(name, modules[name])
    watched = {name: module for stage in stages for name, module in modules_of(stage, modules[stage])}
    calls = calls_of(model, list(watched), example)
    return {name: surveyed(model, name, modules[name], calls, image_of(model, example)) for name in stages}


def check_own(name: str, stage: nn.Module) -> None:
    """Raise an error unless a stage is no more than its blocks, whose names do not say something else of a stage."""
    own = [what for what, _ in (*stage.named_parameters(recurse=False), *stage.named_buffers(recurse=False))]
    if own:
        raise TypeError(f"stages: expected {name} to have blocks alone, got one with {', '.join(own)} of its own")
    taken = [block for block, _ in stage.named_children() if block in OTHERS or hasattr(Stage, block)]
    if taken:
        raise ValueError(
            f"stages: expected blocks of {name} with other names than {', '.join(taken)}; perhaps the stage is inside, "
            f"as {name}.{taken[0]}"
        )


def sequences(model: nn.Module) -> list[str]:
    """Return the names of what may be a stage: sequences of modules of one type."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Sequential) and len(module) > 1 and len({type(block) for block in module}) == 1
    ]


def modules_of(name: str, stage: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return a stage, its blocks, and what may be a shortcut of one, with their names."""
    found = [(name, stage)]
    for own, block in stage.named_children():
        found.append((f"{name}.{own}", block))
        found += [(f"{name}.{own}.{at}", part) for at, part in block.named_children() if at in SHORTCUTS]
    return found


def empty_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation that is on the meta device, and has no hooks."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [x for module in model.modules() for x in vars(module).values() if isinstance(x, Tensor)]
    # Who copies finds these in the place of tensors: nothing is copied that has numbers.
    empty: dict[int, Any] = {id(x): x.detach().to("meta") for x in tensors}
    copied = copy.deepcopy(model, empty).eval()
    for module in copied.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copied


def image_of(model: nn.Module, example: Tensor | tuple | None) -> torch.Size | None:
    """Return the shape of the image [B, 3, H, W] with which a model is called; None where it is called otherwise."""
    if example is None:
        # timm's and torchvision's words for the only size that a vision transformer takes.
        side: Any = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(model, "image_size", 224)
        H, W = (side, side) if isinstance(side, int) else side
        return torch.Size((1, 3, H, W))
    args = example if isinstance(example, tuple) else (example,)
    return args[0].shape if len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() == 4 else None


def calls_of(model: nn.Module, watched: Sequence[str], example: Tensor | tuple | None) -> dict[str, list[Call]]:
    """Return the calls of modules during one of the model."""
    copied, calls = empty_copy(model), defaultdict(list)
    for name in watched:

        def begin(module: nn.Module, args: tuple, kwargs: dict[str, Any], name: str = name) -> None:
            calls[name].append(Call(args, kwargs, [version(args[0] if args else None)]))

        def end(module: nn.Module, args: tuple, made: object, name: str = name) -> None:
            calls[name][-1].made = made
            calls[name][-1].versions.append(version(made))

        copied.get_submodule(name).register_forward_pre_hook(begin, with_kwargs=True)
        copied.get_submodule(name).register_forward_hook(end)
    if example is None:
        like = next(model.parameters(), torch.empty(0))
        example = torch.empty(image_of(model, None) or (), dtype=like.dtype)
    args = example if isinstance(example, tuple) else (example,)
    try:
        with torch.no_grad():
            copied(*(a.to("meta") if isinstance(a, Tensor) else a for a in args))
    except Exception as error:
        sizes = [list(a.shape) if isinstance(a, Tensor) else a for a in args]
        raise ValueError(
            f"example: expected what {type(model).__name__} can be called with on the meta device, where tensors have "
            f"sizes and no numbers, but with {sizes} it fails, {error}"
        ) from error
    return calls


def surveyed(
    model: nn.Module, name: str, stage: nn.Module, calls: dict[str, list[Call]], image: torch.Size | None
) -> Survey:
    """Return what there is to know of a stage; raise where its blocks are no sequence or their maps differ in size."""
    blocks = [f"{name}.{own}" for own, _ in stage.named_children()]
    if any(len(calls[at]) != 1 for at in (name, *blocks)):
        raise TypeError(f"stages: expected {name} and each of its blocks to be called once, not so in this network")
    if any(len(calls[at][0].args) != 1 or calls[at][0].kwargs for at in (name, *blocks)):
        raise TypeError(f"stages: expected {name} and its blocks to be called with a map and nothing else, not so here")
    x = given = calls[name][0].given
    for (call,) in (calls[at] for at in blocks):
        if call.given is not x:
            raise TypeError(f"stages: expected each block of {name} to be given what the one before made, not so here")
        x = call.made
    if calls[name][0].made is not x:
        raise TypeError(f"stages: expected {name} to return what its last block made, not so here")
    maps = [calls[at][0].made for at in blocks]
    shape = getattr(maps[0], "shape", None)
    if not all(isinstance(m, Tensor) and m.dim() in (3, 4) and m.shape == shape for m in maps):
        found = ", ".join(str(list(m.shape)) if isinstance(m, Tensor) else type(m).__name__ for m in maps)
        raise ValueError(
            f"stages: expected all blocks of {name} to make maps [B, C, H, W] of one size, or tokens [B, P + N, C], "
            f"got {found}"
        )
    assert isinstance(given, Tensor) and shape is not None
    sizes = {n for p in stage.parameters() for n in p.shape}
    if len(shape) == 3:
        if shape[2] not in sizes:
            raise ValueError(
                f"stages: expected tokens [B, P + N, C] from {name}, got {list(shape)}, which has no such C"
            )
        overwritten = [version(calls[at][0].given) != calls[at][0].versions[0] for at in blocks]
        places = prefix_and_size(model, name, shape, image)
        return Survey(shape[2], [""] * len(blocks), overwritten, starts_alone=given.shape != shape, tokens=places)
    # Where channels come first, convolutions or norms of maps have as many.
    wide = {getattr(m, "num_features", None) or getattr(m, "num_channels", None) for m in stage.modules()}
    wide |= {m.out_channels for m in stage.modules() if isinstance(m, nn.Conv2d)}
    if shape[1] not in wide and shape[3] in sizes:
        raise ValueError(f"stages: expected maps [B, C, H, W] from {name}, got {list(shape)}, whose channels seem last")
    shortcuts, overwritten = [], []
    for at in blocks:
        block = calls[at][0]
        made = {own: calls[f"{at}.{own}"] for own in SHORTCUTS}
        own = next((own for own, found in made.items() if makes_another(found, block.given, shape)), "")
        x, before = (made[own][0].made, made[own][0].versions[1]) if own else (block.given, block.versions[0])
        shortcuts.append(own)
        overwritten.append(version(x) != before)
    return Survey(shape[1], shortcuts, overwritten, starts_alone=not shortcuts[0] and given.shape != shape)


def makes_another(calls: list[Call], given: object, shape: torch.Size) -> bool:
    """Return whether a module was called once and made a map of this shape, other than the block was given."""
    return [getattr(call.made, "shape", None) for call in calls] == [shape] and calls[0].made is not given


def prefix_and_size(model: nn.Module, name: str, shape: torch.Size, image: torch.Size | None) -> tuple[int, int, int]:
    """Return P, H, W of tokens [B, P + H W, C]: H and W from the image and its patches, in timm's words, or from their
    grid; where a model has neither, from a square image, behind P of 2 at most."""
    embed, told = getattr(model, "patch_embed", None), getattr(model, "num_prefix_tokens", None)
    patch, size = getattr(embed, "patch_size", None), getattr(embed, "grid_size", None)
    if image is not None and patch is not None:
        ph, pw = (patch, patch) if isinstance(patch, int) else patch
        size = (image[2] // ph, image[3] // pw)
    L, known = shape[1], size is not None
    if size is None and image is not None and image[2] == image[3]:
        size = (isqrt(max(L - (told or 0), 0)),) * 2
    H, W = size or (0, 0)
    prefix = L - H * W
    # Some transformers add their class token after these blocks.
    fits = prefix in (0, told) if told is not None else prefix >= 0 if known else 0 <= prefix <= 2
    if min(H, W) < 1 or not fits or shape[0] != (image or shape)[0]:
        raise ValueError(
            f"stages: expected tokens of {name} to be a map's pixels behind those that stand for no place, "
            "[B, P + H W, C], by num_prefix_tokens and patch_embed, or as a square image has them, got "
            f"{list(shape)}"
        )
    if not isinstance(getattr(model, "patch_drop", nn.Identity()), nn.Identity):
        raise ValueError("model: expected all tokens in training too, got one with patch_drop, which drops some")
    return prefix, H, W
