"""Layer attention inside a stage, for networks whose layers come one by one.

One module serves a stage of T layers, since they share its cell; each layer has its own filters and norm. The network
calls it after each block with the layer's number t, the block's map, and what it returned for the layer before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..attention import Attention, BaseStage, filter_width
from ..backends import BackendName, check_backend
from ..cells import Cell, KindName, accumulate_dtype
from ..ops import base_step, light_step, norm_add
from .cells import CellModule, check_cell_module, make_cell
from .hooks import is_watched
from .leaf import leaf

State = tuple[Tensor, ...]


def heads_of(channels: int, head_channels: int) -> int:
    """Return G, the number of heads; fewer channels than a head has make one head."""
    if not isinstance(head_channels, int) or head_channels < 1 or channels % min(channels, head_channels):
        raise ValueError(f"head_channels: expected a divisor of the {channels} channels, got {head_channels!r}")
    return max(1, channels // head_channels)


class AttentionLayer(nn.Module):
    """The filters that one layer has, and the norm of its output."""

    def __init__(self, channels: int, with_lam: bool) -> None:
        super().__init__()
        K = filter_width(channels)
        self.q = nn.Parameter(torch.empty(K))
        self.k = nn.Parameter(torch.empty(K))
        self.v = nn.Parameter(torch.empty(channels, 1, 3, 3))
        self.lam = nn.Parameter(torch.empty(channels)) if with_lam else None
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filters as torch's convolutions do, and lam from a normal distribution."""
        for filters, taps in ((self.q, len(self.q)), (self.k, len(self.k)), (self.v, 9)):
            nn.init.uniform_(filters, -(taps**-0.5), taps**-0.5)
        if self.lam is not None:
            nn.init.normal_(self.lam)
        self.norm.reset_parameters()

    @property
    def filters(self) -> Attention:
        return Attention(self.q, self.k, self.v)


class StageAttention(nn.Module):
    """The part that light and base have in common."""

    relu: bool  # whether one stands between the norm and the sum
    with_lam: bool  # whether a layer weighs the one before
    first_refreshed: int  # the layer that is the first to use the cell, counted from 0

    def __init__(
        self,
        channels: int,
        layers: int,
        cell: CellModule | Cell | KindName | str | None = "dsu",
        *,
        reduction: int = 4,
        head_channels: int = 32,
        drop_path: float = 0.0,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path: expected a rate in [0, 1), got {drop_path}")
        check_backend(backend)
        heads = heads_of(channels, head_channels)
        if layers < 1:
            raise ValueError(f"layers: expected at least 1, got {layers}")
        if layers <= self.first_refreshed:
            cell = None
        if cell is not None:
            if not isinstance(cell, CellModule):
                cell = make_cell(cell, channels, reduction, backend=backend)
            if check_cell_module(cell).channels != channels:
                raise ValueError(f"cell: expected one of {channels} channels, got {cell.channels}")
        self.channels, self.heads, self.drop_path, self.backend = channels, heads, drop_path, backend
        self.cell = cell
        self.layers = nn.ModuleList(AttentionLayer(channels, self.with_lam) for _ in range(layers))

    def _layer(self, t: int, x: Tensor, memory: object, remembers: bool) -> AttentionLayer:
        """Return layer t; ``remembers`` says whether it needs what the layer before returned."""
        if not 0 <= t < len(self.layers):
            raise IndexError(f"t: expected one of {len(self.layers)} layers, counted from 0, got {t}")
        if x.dim() == 4 and x.shape[1] != self.channels:
            raise ValueError(f"x: expected [B, {self.channels}, H, W], got {list(x.shape)}")
        if remembers and memory is None and t > 0:
            raise ValueError(f"layer {t}: expected what layer {t - 1} returned beside its map, got None")
        return self.layers[t]

    def maps_of(self, layer: AttentionLayer, x: Tensor, o_prev: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the maps that the layer's ``step`` takes, of what ``forward`` is given."""
        return x, o_prev

    def _with_cell(self) -> dict[str, Any]:
        """Return heads, backend and cell as the steps take them."""
        own = {"heads": self.heads, "backend": self.backend}
        return own | ({"weights": self.cell.weights, "cell": self.cell.cell} if self.cell is not None else {})

    def _keep(self, x: Tensor) -> Tensor | None:
        """Return what drop path multiplies each sample's branch by, [B]; None where it drops nothing."""
        if not self.training or self.drop_path == 0:
            return None
        rate = 1 - self.drop_path
        return torch.empty(len(x), dtype=accumulate_dtype(x.dtype), device=x.device).bernoulli_(rate).div_(rate)

    @staticmethod
    def _fused(norm: nn.Module) -> bool:
        """Return whether norm_add can stand for this norm: torch's own BatchNorm2d, with a momentum and no hooks."""
        return (
            type(norm) is nn.BatchNorm2d
            and norm.affine
            and norm.momentum is not None
            and norm.track_running_stats == (norm.running_mean is not None)
            and not is_watched(norm)
        )

    @staticmethod
    def _wants_moments(norm: nn.Module) -> bool:
        return StageAttention._fused(norm) and (norm.training or norm.running_mean is None)

    def _add(self, x: Tensor, o: Tensor, norm: nn.Module, moments: Tensor | None) -> Tensor:
        """Return ``x + keep f(norm(o))``; move the norm's running statistics in training."""
        keep = self._keep(x)
        if not self._fused(norm):
            branch = norm(o).relu() if self.relu else norm(o)
            return x + (branch if keep is None else branch * keep.to(branch.dtype)[:, None, None, None])
        tracked = norm.running_mean is not None
        if tracked and norm.training:
            norm.num_batches_tracked.add_(1)
        return norm_add(
            x,
            o,
            norm.weight,
            norm.bias,
            (norm.running_mean, norm.running_var) if tracked else None,
            moments=moments,
            momentum=float(norm.momentum),
            eps=norm.eps,
            relu=self.relu,
            keep=keep,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        drop = f", drop_path={self.drop_path}" if self.drop_path else ""
        return f"{self.channels}, heads={self.heads}{drop}"


class DLALight(StageAttention):
    """DLA-L for a stage of T layers (Eq. 3): ``x + BN(o)``, where o attends to the layer before, refreshed by the cell.

    channels: C.
    layers: T.
    cell: a ``CellModule``, a ``dla_kernels.Cell`` or the name of a kind; the published networks have ``"dsu"``.
    reduction: r of a cell that is made here.
    head_channels: D, channels per head, a divisor of C; if C is less, there is one head.
    conv: with the refresh convolution of the published code; the paper has none.
    drop_path: the rate at which a sample's attention is dropped in training.
    backend: as for the ops.

    Any layer's ``norm`` may be replaced, as by ``SyncBatchNorm.convert_sync_batchnorm``.

    >>> attention = DLALight(64, layers=2)
    >>> x, state = torch.randn(8, 64, 16, 16), None
    >>> for t in range(2):
    ...     identity, x = x, torch.randn(8, 64, 16, 16)  # a block: its shortcut, its output
    ...     x, state = attention(t, x, identity, state)
    >>> x.shape
    torch.Size([8, 64, 16, 16])
    """

    relu, with_lam, first_refreshed = False, True, 0
    act: str | None = None  # behind the filter that makes the value

    def __init__(
        self,
        channels: int,
        layers: int,
        cell: CellModule | Cell | KindName | str | None = "dsu",
        *,
        reduction: int = 4,
        head_channels: int = 32,
        conv: bool = True,
        drop_path: float = 0.0,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__(
            channels,
            layers,
            cell,
            reduction=reduction,
            head_channels=head_channels,
            drop_path=drop_path,
            backend=backend,
        )
        self.e = nn.Parameter(torch.empty(channels, 1, 3, 3)) if conv else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the stage's own filter, as torch's convolutions do; cell and layers draw theirs."""
        if self.e is not None:
            nn.init.uniform_(self.e, -1 / 3, 1 / 3)

    @leaf
    def forward(
        self, t: int, x: Tensor, o_prev: Tensor | None, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        """Run layer t: x and the layer before, in networks the block's shortcut, [B, C, H, W] -> the map that the
        network goes on with, and the cell's state for layer t + 1. ``o_prev`` may be None for the first layer."""
        layer = self._layer(t, x, state, self.cell is not None)
        o, state, moments = self.step(layer, x, o_prev, state, moments=self._wants_moments(layer.norm))
        return self._add(x, o, layer.norm, moments), state

    def step(self, layer: AttentionLayer, x: Tensor, o_prev: Tensor | None, state: State | None, **asked: Any) -> Any:
        """Return what ``light_step`` does, before norm and sum; what is ``asked`` for are its moments and scores."""
        if self.cell is not None and state is None:
            state = self.cell.initial_state(x)
        own = {"lam": layer.lam, "state": state, "e": self.e, "act": self.act, **self._with_cell()}
        return light_step(x, o_prev, layer.filters, **own, **asked)


class MRLALight(DLALight):
    """MRLA-L, which is DLA-L without a cell, so that nothing is refreshed.

    >>> x, _ = MRLALight(64, layers=2)(0, torch.randn(8, 64, 16, 16), torch.randn(8, 64, 16, 16))
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        *,
        head_channels: int = 32,
        drop_path: float = 0.0,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__(
            channels, layers, None, head_channels=head_channels, conv=False, drop_path=drop_path, backend=backend
        )


class DLABase(StageAttention):
    """DLA-B for a stage of T layers (Eq. 2): ``x + relu(BN(o))``, where o attends to all layers so far, whose keys and
    values the cell refreshes at every layer. The parameters are those of ``DLALight``. In a stage of one layer there is
    nothing to refresh: it has no cell.

    >>> attention = DLABase(64, layers=3)
    >>> stage = None
    >>> for t in range(3):
    ...     x = torch.randn(8, 64, 16, 16)  # a block's output
    ...     x, stage = attention(t, x, None, stage)
    >>> len(stage.values)
    3
    """

    relu, with_lam, first_refreshed = True, False, 1

    @leaf
    def forward(
        self, t: int, x: Tensor, o_prev: Tensor | None = None, stage: BaseStage | None = None
    ) -> tuple[Tensor, BaseStage]:
        """Run layer t: x [B, C, H, W] -> the map that the network goes on with, and the stage for layer t + 1.
        ``o_prev`` is not looked at: it stands where ``DLALight`` has it."""
        layer = self._layer_of(t, x, stage)
        o, stage, moments = self.step(layer, x, o_prev, stage, moments=self._wants_moments(layer.norm))
        return self._add(x, o, layer.norm, moments), stage

    def _layer_of(self, t: int, x: Tensor, stage: BaseStage | None) -> AttentionLayer:
        """Return layer t, which is the one that comes after those in the stage."""
        layer = self._layer(t, x, stage, True)
        if stage is not None and len(stage.values) != t:
            raise ValueError(f"t: expected {len(stage.values)}, as the stage has gone through so many layers, got {t}")
        return layer

    def step(
        self, layer: AttentionLayer, x: Tensor, o_prev: Tensor | None, stage: BaseStage | None, **asked: Any
    ) -> Any:
        """Return what ``base_step`` does, before norm and sum; what is ``asked`` for are its moments and scores."""
        own = self._with_cell()
        if self.cell is not None and stage is None:
            own["state"] = self.cell.initial_state(x)
        return base_step(x, stage, layer.filters, **own, **asked)


class MRLABase(DLABase):
    """MRLA-B, which is DLA-B without a cell.

    >>> x, stage = MRLABase(64, layers=2)(0, torch.randn(8, 64, 16, 16))
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        *,
        head_channels: int = 32,
        drop_path: float = 0.0,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__(channels, layers, None, head_channels=head_channels, drop_path=drop_path, backend=backend)
