"""Find out what the blocks of a network's stages make, by one call of a copy that has sizes and no numbers."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SHORTCUTS = ("downsample", "proj", "shortcut")  # what the blocks of torchvision and timm call theirs


class Survey(NamedTuple):
    """What is to be known of a stage before attention is put between its blocks."""

    channels: int
    shortcuts: list[str]  # of each block, which of SHORTCUTS makes it; empty where it is the block's input
    starts_alone: bool  # the first block has no shortcut, and an input of another size


class Call(NamedTuple):
    """One call of a module."""

    given: object
    made: object


def survey(model: nn.Module, stages: Sequence[str], example: Tensor | tuple | None) -> dict[str, Survey]:
    """Return what there is to know of each stage; raise where one is none."""
    if isinstance(stages, str):
        raise TypeError(f"stages: expected a sequence of names, got {stages!r}; [{stages!r}] is one")
    modules = dict(model.named_modules())
    for name in stages:
        if name not in modules or not list(modules[name].children()):
            raise ValueError(
                f"stages: expected names of modules that run their own one after the other, but {type(model).__name__} "
                f"has no such {name!r}; it has {', '.join(sequences(model)) or 'none'}"
            )
    watched = {name: module for stage in stages for name, module in modules_of(stage, modules[stage])}
    calls = calls_of(model, list(watched), example)
    return {name: surveyed(name, modules[name], calls) for name in stages}


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


def calls_of(model: nn.Module, watched: Sequence[str], example: Tensor | tuple | None) -> dict[str, list[Call]]:
    """Return the calls of modules during one of the model, on the meta device."""
    # Who copies finds these in the place of parameters and buffers: nothing is copied that has numbers.
    empty: dict[int, Any] = {id(t): t.detach().to("meta") for t in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, empty).eval()
    calls = defaultdict(list)
    for name in watched:

        def keep(module: nn.Module, args: tuple, made: object, name: str = name) -> None:
            calls[name].append(Call(args[0] if args else None, made))

        copied.get_submodule(name).register_forward_hook(keep)
    if example is None:
        like = next(model.parameters())
        example = torch.empty(1, 3, 224, 224, dtype=like.dtype)
    args = example if isinstance(example, tuple) else (example,)
    try:
        with torch.no_grad():
            copied(*(a.to("meta") if isinstance(a, Tensor) else a for a in args))
    except Exception as error:
        sizes = [list(a.shape) if isinstance(a, Tensor) else a for a in args]
        raise ValueError(
            f"example: expected what {type(model).__name__} can be called with, but with {sizes} it fails, {error}"
        ) from error
    return calls


def surveyed(name: str, stage: nn.Module, calls: dict[str, list[Call]]) -> Survey:
    """Return what there is to know of a stage; raise where its blocks are no sequence or their maps differ in size."""
    blocks = [f"{name}.{own}" for own, _ in stage.named_children()]
    if any(len(calls[at]) != 1 for at in (name, *blocks)):
        raise TypeError(f"stages: expected {name} and each of its blocks to be called once, not so in this network")
    x = given = calls[name][0].given
    for (at,) in (calls[at] for at in blocks):
        if at.given is not x:
            raise TypeError(f"stages: expected each block of {name} to be given what the one before made, not so here")
        x = at.made
    if calls[name][0].made is not x:
        raise TypeError(f"stages: expected {name} to return what its last block made, not so here")
    maps = [calls[at][0].made for at in blocks]
    shape = getattr(maps[0], "shape", None)
    if not all(isinstance(m, Tensor) and m.dim() == 4 and m.shape == shape for m in maps):
        found = ", ".join(str(list(m.shape)) if isinstance(m, Tensor) else type(m).__name__ for m in maps)
        raise ValueError(f"stages: expected all blocks of {name} to make maps [B, C, H, W] of one size, got {found}")
    assert isinstance(given, Tensor) and shape is not None
    shortcuts = [
        next((own for own in SHORTCUTS if makes_another(calls[f"{block}.{own}"], calls[block][0].given, shape)), "")
        for block in blocks
    ]
    return Survey(shape[1], shortcuts, starts_alone=not shortcuts[0] and given.shape != shape)


def makes_another(calls: list[Call], given: object, shape: torch.Size) -> bool:
    """Return whether a module was called once and made a map of this shape, other than the block was given."""
    return [getattr(call.made, "shape", None) for call in calls] == [shape] and calls[0].made is not given
