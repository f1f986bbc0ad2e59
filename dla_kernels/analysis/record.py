"""Collect what the layers of a network attend to, while it runs as it always does."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..nn import DLABase, DLALight, LayerwiseIntegration
from ..nn.attention import StageAttention
from .unrolled import square_of, unrolled

RECORDED = (DLALight, DLABase, LayerwiseIntegration)  # and what derives from them


class Layer(NamedTuple):
    """What one layer has shown in one call; the batch is the last axis but one."""

    shares: Tensor | None = None  # light [B, G], base [t + 1, B, G]
    d: Tensor | None = None  # light [B, C], base [2, t, B, C]
    kept: Tensor | None = None  # light: what o_prev was multiplied by, lam d, [B, C]
    h: Tensor | None = None  # what the cell showed, [B, C]


@dataclass(frozen=True)
class StageRecord:
    """What a stage of T layers has shown, all calls of it put together into one batch of B samples.

    name: of the module that holds the attention, such as ``layer1``.
    kind: ``light``, ``base`` or ``dia``.
    scores: what layer t has of layer m, zero for m > t. Base: the softmax of each head, [T, T, B, G]. Light: the gate
        of layer m times all ``lam d`` since, in each channel, [T, T, B, C]; lam may be negative. Of DIA none.
    d: of each layer the gates it refreshed those before it by; None where it refreshed nothing. Light: [B, C], of all
        layers before. Base: [2, t, B, C], of their keys, then of their values.
    refresh: the product of all d that layer t finds layer m's value multiplied by, [T, T, B, C]: 1 for m = t, 0 for
        m > t; None where no layer refreshes.
    h: what the cell shows after each layer, [T, B, C]: of DIA the gates of channels; None without a cell.
    """

    name: str
    kind: str
    scores: Tensor | None
    d: tuple[Tensor | None, ...]
    refresh: Tensor | None
    h: Tensor | None

    @property
    def mean_scores(self) -> Tensor:
        """The mean magnitude of the scores over samples and heads or channels, [T, T]."""
        if self.scores is None:
            raise ValueError(f"{self.name}: expected layer attention, got {self.kind}, which has gates h and no scores")
        return self.scores.abs().mean((2, 3))


class Recorded:
    """What ``record`` has collected so far."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners

    @property
    def stages(self) -> Mapping[str, StageRecord]:
        """The stages by name, in the network's order."""
        found = {listener.name: listener.read() for listener in self._listeners}
        made = {name: stage for name, stage in found.items() if stage is not None}
        if not made:
            raise RuntimeError(
                "record: expected a call of the network inside the with block, got none that ended; what torch.compile "
                "has compiled before does not look for hooks"
            )
        return made


@contextmanager
def record(net: nn.Module) -> Iterator[Recorded]:
    """Collect scores, gates and refresh factors of every stage that has layer attention or DIA, as long as the block
    lasts. Nothing that the network computes changes, in training neither: forward hooks look on, and run each step of
    layer attention once more, with ``scores=True``. Threads may share the network; each call is put together by itself.

    net: any network with ``DLALight``, ``DLABase``, ``MRLALight``, ``MRLABase`` or ``LayerwiseIntegration`` in it, also
        inside of DistributedDataParallel, or converted. It is not to be compiled: compiled code passes hooks over.

    >>> net = dla_kernels.create_model("mrla_base_resnet20").eval()
    >>> with torch.no_grad(), record(net) as recorded:
    ...     scores = net(torch.randn(8, 3, 32, 32))
    >>> recorded.stages["layer3"].scores.shape  # 2 layers, 8 samples, 8 heads
    torch.Size([2, 2, 8, 8])
    """
    listeners = []
    for name, module in net.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise TypeError(
                f"net: expected a network that is not compiled, got a compiled {name or 'one'}, which passes hooks "
                "over; build it again without compile, or record what torch.compile was given"
            )
        if isinstance(module, RECORDED):
            listeners.append(Listener(name.removesuffix(".attention"), module))
    if not listeners:
        raise ValueError(
            f"net: expected layer attention or DIA in it, such as dla_light_resnet20 has, got a {type(net).__name__} "
            "without"
        )
    handles = [listener.module.register_forward_hook(listener, with_kwargs=True) for listener in listeners]
    if all(listener.module is not net for listener in listeners):
        for listener in listeners:
            handles += [net.register_forward_pre_hook(listener.begin), net.register_forward_hook(listener.end)]
    try:
        yield Recorded(listeners)
    finally:
        for handle in handles:
            handle.remove()


class Listener:
    """A forward hook that puts the layers of each call of a stage together."""

    def __init__(self, name: str, module: StageAttention | LayerwiseIntegration) -> None:
        self.name, self.module = name, module
        self.calls: list[list[Layer]] = []
        # By the number of a thread: the stage's call that goes on, and those of the network's call that does.
        self.current: dict[int, list[Layer]] = {}
        self.unended: dict[int, list[list[Layer]]] = {}

    def begin(self, *_: object) -> None:
        """Begin a call of the network; what one has left that failed is forgotten."""
        self.current.pop(threading.get_ident(), None)
        self.unended[threading.get_ident()] = []

    def end(self, *_: object) -> None:
        """Keep what a call of the network has shown."""
        self.calls += self.unended.pop(threading.get_ident(), [])

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple) -> None:
        if torch.compiler.is_compiling():
            raise RuntimeError("record: expected a network that is not compiled, got one that torch.compile traces")
        if torch._C._current_graph_task_id() != -1:  # inside of backward: checkpointing runs a layer again
            return
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        thread = threading.get_ident()
        done = len(self.current.get(thread, ()))
        # A cell along a stage is not told which layer it runs for; of the first there is no state to go on from.
        t = given["t"] if "t" in given else 0 if given.get("state") is None else done
        if t == 0:
            self.current[thread] = []
            self.unended.get(thread, self.calls).append(self.current[thread])
        elif t != done:  # out of turn: this is no call of the stage, nor is what follows until its next first layer
            self.current.pop(thread, None)
            return
        with torch.no_grad():
            self.current[thread].append(shown(module, given, output))

    def read(self) -> StageRecord | None:
        """Return what all calls have shown that went through all layers; None where there was none."""
        of_a_call = list(map(len, self.calls))
        T = len(self.module.layers) if isinstance(self.module, StageAttention) else max(of_a_call, default=0)
        whole = [call for call in self.calls if len(call) == T]
        if not whole:
            return None
        return as_record(self.name, self.module, [joined(layers) for layers in zip(*whole)])


def shown(module: nn.Module, given: Mapping[str, Any], output: tuple) -> Layer:
    """Return what a layer shows, of the arguments and results of its call."""
    if isinstance(module, LayerwiseIntegration):
        return Layer(h=module.cell.output(output[1]).detach())
    assert isinstance(module, (DLALight, DLABase))
    layer, memory = module.layers[given["t"]], "state" if isinstance(module, DLALight) else "stage"
    maps = module.maps_of(layer, given["x"], given.get("o_prev"))
    *_, scores = module.step(layer, *maps, given.get(memory), scores=True)
    if isinstance(module, DLABase):
        return Layer(scores.shares, scores.d, h=cell_output(module, output[1].state))
    lam = layer.lam.detach().to(scores.shares.dtype)
    kept = lam.expand(len(scores.shares), -1) if scores.d is None else lam * scores.d
    return Layer(scores.shares, scores.d, kept, cell_output(module, output[1]))


def cell_output(module: StageAttention, state: tuple[Tensor, ...] | None) -> Tensor | None:
    return None if module.cell is None or state is None else module.cell.output(state).detach()


def joined(layers: Sequence[Layer]) -> Layer:
    """Return what a layer has shown in several calls as if in one."""
    return Layer(*(None if parts[0] is None else torch.cat(parts, -2) for parts in zip(*layers)))


def as_record(name: str, module: StageAttention | LayerwiseIntegration, layers: Sequence[Layer]) -> StageRecord:
    h = None if layers[0].h is None else torch.stack([one.h for one in layers if one.h is not None])
    if isinstance(module, LayerwiseIntegration):
        return StageRecord(name, "dia", None, (None,) * len(layers), None, h)
    shares, d = [one.shares for one in layers if one.shares is not None], tuple(one.d for one in layers)
    if not isinstance(module, DLALight):
        scores, of_values = square_of(shares), [None if gates is None else gates[1] for gates in d]
    else:
        D = module.channels // module.heads
        own = [share.repeat_interleave(D, -1) for share in shares]
        scores, of_values = unrolled(own, [one.kept for one in layers if one.kept is not None]), list(d)
    refresh = None
    if any(gates is not None for gates in of_values):
        like = next(gates for gates in of_values if gates is not None)
        ones = like.new_ones(like.shape[-2:])
        refresh = unrolled([ones] * len(layers), [ones if gates is None else gates for gates in of_values])
    return StageRecord(name, "light" if isinstance(module, DLALight) else "base", scores, d, refresh, h)
