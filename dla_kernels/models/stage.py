"""A stage of a network: blocks that have names, and attention after each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

OTHERS = ("attention", "names", "grad_checkpointing", "found", "shortcuts")  # names of what stages have beside blocks


class Stage(nn.Module):
    """A stage that runs its blocks one after the other and, after each, its attention. Blocks have the names that they
    would have in a sequence, ``0`` and so on; the stage can be indexed as one."""

    def __init__(self, blocks: Iterable[tuple[str, nn.Module]], attention: nn.Module | None) -> None:
        super().__init__()
        self.names = []
        for name, block in blocks:
            self.add_module(name, block)
            self.names.append(name)
        self.attention = attention
        self.grad_checkpointing = False
        self.register_load_state_dict_pre_hook(take_old_names)

    @property
    def blocks(self) -> list[nn.Module]:
        return [getattr(self, name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, t: int) -> nn.Module:
        return self.blocks[t] if isinstance(t, slice) else getattr(self, self.names[t])

    def __setitem__(self, t: int, block: nn.Module) -> None:
        setattr(self, self.names[t], block)

    def forward(self, x: Tensor) -> Tensor:
        memory = None  # what the attention remembers from layer to layer
        for t in range(len(self)):
            if self.grad_checkpointing and torch.is_grad_enabled():
                done = checkpoint(self.layer, t, x, memory, use_reentrant=False)
            else:
                done = self.layer(t, x, memory)
            memory, x = done[1], done[0]  # in a trace, the last value of a stage is taken for its map
        return x

    def layer(self, t: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Run block t and its attention: the map before it -> the one after it, and what layer t + 1 has to know."""
        raise NotImplementedError


def take_old_names(stage: Stage, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Rename what a checkpoint of 0.1 has at ``layers.0``, where the blocks were then."""
    old = f"{prefix}layers."
    for name in [name for name in state_dict if name.startswith(old) and "layers" not in stage.names]:
        state_dict[prefix + name.removeprefix(old)] = state_dict.pop(name)
