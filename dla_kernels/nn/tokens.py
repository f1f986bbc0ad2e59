"""Layer attention inside vision transformers, whose layers hand on tokens [B, P + N, C]: P that stand for no place, as
the class token does, and N = H W that are the pixels of a map. These the ops take as they lie in memory: they are a
channels-last map [B, C, H, W]."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import BaseStage
from ..backends import BackendName
from ..cells import Cell, KindName
from .attention import AttentionLayer, DLABase, DLALight, State
from .cells import CellModule
from .leaf import leaf


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return tokens [B, N, C] as a map [B, C, H, W], without a copy."""
    return tokens.transpose(1, 2).unflatten(2, size)


def to_tokens(x: Tensor) -> Tensor:
    """Return a map [B, C, H, W] as tokens [B, N, C]; without a copy where channels are last in memory."""
    return x.flatten(2).transpose(1, 2)


class TokenLayer(AttentionLayer):
    """The filters of one layer, and LayerNorms in front of its attention: of what the block made, and in light
    attention of what came before it."""

    def __init__(self, channels: int, with_lam: bool, eps: float) -> None:
        super().__init__(channels, with_lam)
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.norm_before = nn.LayerNorm(channels, eps=eps) if with_lam else None

    def reset_parameters(self) -> None:
        """Draw the filters and lam as between maps; norms begin as torch's do."""
        super().reset_parameters()
        if (before := getattr(self, "norm_before", None)) is not None:
            before.reset_parameters()


class Tokens(nn.Module):
    """The part that light and base attention have in common: mixed into attention between maps, it puts layers for
    tokens in the place of those for maps."""

    relu = False
    layers: nn.ModuleList
    prefix: int
    size: tuple[int, int] | None
    eps: float

    def _take_tokens(self, prefix: int, size: tuple[int, int] | None, eps: float) -> None:
        """Put layers for tokens in the place of those for maps."""
        if prefix < 0 or (size is not None and (len(size) != 2 or min(size) < 1)):
            raise ValueError(f"prefix, size: expected a number of tokens, and (H, W) or None, got {prefix}, {size}")
        self.prefix, self.size, self.eps = prefix, None if size is None else (size[0], size[1]), eps
        self.layers = nn.ModuleList(TokenLayer(self.channels, self.with_lam, eps) for _ in self.layers)

    def _size_of(self, x: Tensor) -> tuple[int, int]:
        """Return (H, W) of the map that is in tokens x [B, P + N, C]."""
        N = x.shape[1] - self.prefix if x.dim() == 3 else -1
        side = torch.sym_int(torch.sym_sqrt(N)) if N > 0 else 0
        size = self.size or (side, side)
        if x.dim() != 3 or x.shape[2] != self.channels or N < 1 or size[0] * size[1] != N:
            pixels = "a square number" if self.size is None else " x ".join(map(str, size))
            raise ValueError(
                f"x: expected tokens [B, {self.prefix} + N, {self.channels}], N {pixels}, got {list(x.shape)}"
            )
        return size

    def maps_of(self, layer: Any, x: Tensor, o_prev: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the maps of normed tokens that the layer's ``step`` takes."""
        _, own, before = self._normed(layer, x, o_prev, self._size_of(x))
        return own, before

    def _normed(
        self, layer: Any, x: Tensor, o_prev: Tensor | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x behind its norm, as tokens and the map of its pixels, and the map of what came before it, where the
        layer looks at that."""
        normed, before = layer.norm(x), None
        if o_prev is not None and layer.norm_before is not None:
            before = to_map(layer.norm_before(o_prev)[:, self.prefix :], size)
        return normed, to_map(normed[:, self.prefix :], size), before

    def _added(self, x: Tensor, normed: Tensor, o: Tensor) -> Tensor:
        """Return x plus, for the pixels, what they attend to, and for other tokens these themselves, normed."""
        return x + torch.cat([normed[:, : self.prefix], to_tokens(o)], 1)

    def extra_repr(self) -> str:
        size = "" if self.size is None else f", size={self.size}"
        return f"{super().extra_repr()}, prefix={self.prefix}{size}"


class DLALightTokens(Tokens, DLALight):
    """DLA-L for T blocks of a vision transformer: ``x + o``, where o attends to the block's input, refreshed by the
    cell. Of the pixels ``o = lam LN'(input)' + gate(LN(x)) gelu(dwconv(LN(x)))``; of other tokens ``o = LN(x)``.

    channels, layers, cell, reduction, backend: as of ``DLALight``.
    conv: with the refresh convolution of the published code for maps; the paper has none.
    head_channels: D, channels per head, a divisor of C.
    prefix: P, how many tokens stand for no place, at the beginning.
    size: (H, W) of the map that the others are; None for a square one.
    eps: of the norms.

    >>> attention = DLALightTokens(64, layers=2)
    >>> x, state = torch.randn(8, 1 + 14 * 14, 64), None
    >>> for t in range(2):
    ...     before, x = x, torch.randn(8, 1 + 14 * 14, 64)  # a block: its input, its output
    ...     x, state = attention(t, x, before, state)
    >>> x.shape
    torch.Size([8, 197, 64])
    """

    act = "gelu"

    def __init__(
        self,
        channels: int,
        layers: int,
        cell: CellModule | Cell | KindName | str | None = "dsu",
        *,
        reduction: int = 4,
        head_channels: int = 16,
        conv: bool = False,
        prefix: int = 1,
        size: tuple[int, int] | None = None,
        eps: float = 1e-6,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__(
            channels, layers, cell, reduction=reduction, head_channels=head_channels, conv=conv, backend=backend
        )
        self._take_tokens(prefix, size, eps)

    @leaf
    def forward(
        self, t: int, x: Tensor, o_prev: Tensor | None, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        """Run layer t: x and the block's input, tokens [B, P + N, C] -> those that the network goes on with, and the
        cell's state for layer t + 1."""
        size, layer = self._size_of(x), self._layer(t, x, state, self.cell is not None)
        normed, own, before = self._normed(layer, x, o_prev, size)
        o, state, _ = self.step(layer, own, before, state)
        return self._added(x, normed, o), state


class MRLALightTokens(DLALightTokens):
    """MRLA-L for vision transformers, which is DLA-L without a cell.

    >>> x, _ = MRLALightTokens(64, layers=2)(0, torch.randn(8, 197, 64), torch.randn(8, 197, 64))
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        *,
        head_channels: int = 16,
        prefix: int = 1,
        size: tuple[int, int] | None = None,
        eps: float = 1e-6,
        backend: BackendName | None = None,
    ) -> None:
        own: dict[str, Any] = {"prefix": prefix, "size": size, "eps": eps}
        super().__init__(channels, layers, None, head_channels=head_channels, conv=False, backend=backend, **own)


class DLABaseTokens(Tokens, DLABase):
    """DLA-B for T blocks of a vision transformer: ``x + o``, where the pixels of o attend to all layers so far, and
    other tokens are ``LN(x)``. The parameters are those of ``DLALightTokens``.

    >>> attention = DLABaseTokens(64, layers=3)
    >>> stage = None
    >>> for t in range(3):
    ...     x, stage = attention(t, torch.randn(8, 197, 64), None, stage)
    >>> len(stage.values)
    3
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        cell: CellModule | Cell | KindName | str | None = "dsu",
        *,
        reduction: int = 4,
        head_channels: int = 16,
        prefix: int = 1,
        size: tuple[int, int] | None = None,
        eps: float = 1e-6,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__(channels, layers, cell, reduction=reduction, head_channels=head_channels, backend=backend)
        self._take_tokens(prefix, size, eps)

    @leaf
    def forward(
        self, t: int, x: Tensor, o_prev: Tensor | None = None, stage: BaseStage | None = None
    ) -> tuple[Tensor, BaseStage]:
        """Run layer t: tokens x [B, P + N, C] -> those that the network goes on with, and the stage for layer t + 1.
        ``o_prev`` is not looked at."""
        size, layer = self._size_of(x), self._layer_of(t, x, stage)
        normed, own, before = self._normed(layer, x, o_prev, size)
        o, stage, _ = self.step(layer, own, before, stage)
        return self._added(x, normed, o), stage


class MRLABaseTokens(DLABaseTokens):
    """MRLA-B for vision transformers, which is DLA-B without a cell.

    >>> x, stage = MRLABaseTokens(64, layers=2)(0, torch.randn(8, 197, 64))
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        *,
        head_channels: int = 16,
        prefix: int = 1,
        size: tuple[int, int] | None = None,
        eps: float = 1e-6,
        backend: BackendName | None = None,
    ) -> None:
        own: dict[str, Any] = {"prefix": prefix, "size": size, "eps": eps}
        super().__init__(channels, layers, None, head_channels=head_channels, backend=backend, **own)


class InStages(nn.ModuleList):
    """Attention of several stages along blocks that are numbered through: each begins anew.

    >>> attention = InStages(MRLABaseTokens(64, layers=2) for _ in range(3))
    >>> x, memory = torch.randn(2, 17, 64), None
    >>> for t in range(6):
    ...     x, memory = attention(t, x, None, memory)
    """

    def __init__(self, stages: Iterable[nn.Module]) -> None:
        super().__init__(stages)

    @leaf
    def forward(self, t: int, x: Tensor, before: Tensor | None, memory: Any = None) -> tuple[Tensor, Any]:
        """Run layer t, counted along all stages, as the module of its stage does."""
        stages: list[Any] = list(self)
        for stage in stages:
            if t < len(stage.layers):
                return stage(t, x, before, memory if t > 0 else None)
            t -= len(stage.layers)
        layers = sum(len(stage.layers) for stage in stages)
        raise IndexError(f"t: expected one of {layers} layers, counted from 0, got {t + layers}")
