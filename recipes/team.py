"""The processes that train one network together, as torchrun starts them; without it there is one."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def place() -> tuple[int, int]:
    """Return this process's number, from 0 on, and how many there are."""
    alone = "RANK" not in os.environ
    return (0, 1) if alone else (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


class Team:
    """This process among those of a run.

    rank, world: its number, from 0 on, and how many there are.
    device: the one that is its own.
    """

    def __init__(self) -> None:
        self.rank, self.world = place()
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        self.began = False

    def __enter__(self) -> Team:
        if self.world > 1 and not dist.is_initialized():
            # The functions of this module keep the group that there is at its import for ever, and DDP imports it.
            # A group that outlives destroy_process_group has threads still at exit, which abort it now and then.
            import torch.distributed.nn  # noqa: F401

            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            self.began = True
        return self

    def __exit__(self, *_: object) -> None:
        if self.began:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether it is so for any process."""
        return (self.world == 1 and flag) or (self.world > 1 and bool(self.sum(torch.tensor(float(flag))) > 0))

    def all_of(self, value: Any) -> list[Any]:
        """Return the values of all processes, in their order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def same(self, tensors: list[Tensor]) -> None:
        """Give all processes the numbers of the first."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)
