"""Attention by name: inside the blocks of a stage, along them, or between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from ..backends import BackendName, check_backend
from ..cells import Cell, KindName
from ..nn import (
    CBAM,
    ECA,
    SE,
    SGE,
    SPA,
    SRM,
    CellModule,
    DLABase,
    DLABaseTokens,
    DLALight,
    DLALightTokens,
    InStages,
    LayerwiseIntegration,
    MRLABase,
    MRLABaseTokens,
    MRLALight,
    MRLALightTokens,
    Shared,
)
from ..nn.attention import StageAttention

InsideName = Literal["se", "eca", "cbam", "srm", "spa", "sge"]
BetweenName = Literal["mrla_light", "mrla_base", "dla_light", "dla_base"]
AttentionName = Literal[
    "none", "se", "eca", "cbam", "srm", "spa", "sge",
    "shared_se", "shared_eca", "shared_cbam", "shared_srm", "shared_spa", "shared_sge",
    "dia", "dia_light", "mrla_light", "mrla_base", "dla_light", "dla_base",
]  # fmt: skip
# Each block has its own, or a stage shares one along its blocks.
INSIDE: dict[str, type[nn.Module]] = {"se": SE, "eca": ECA, "cbam": CBAM, "srm": SRM, "spa": SPA, "sge": SGE}
SHARED = {f"shared_{name}": name for name in INSIDE}
# A cell along the blocks recalibrates their branches.
ALONG: dict[str, Cell] = {"dia": Cell("dia"), "dia_light": Cell("dia", projection="light")}
# What runs between whole blocks.
BETWEEN = {"dla_light": DLALight, "dla_base": DLABase, "mrla_light": MRLALight, "mrla_base": MRLABase}
# The same between tokens; base attention in stages of so many blocks.
TOKENS: dict[str, type[Any]] = {
    "dla_light": DLALightTokens,
    "dla_base": DLABaseTokens,
    "mrla_light": MRLALightTokens,
    "mrla_base": MRLABaseTokens,
}
BLOCKS_OF_A_STAGE = 4
ATTENTIONS = ("none", *INSIDE, *SHARED, *ALONG, "mrla_light", "mrla_base", "dla_light", "dla_base")
WITH_CELL: dict[str, Cell | str] = {**ALONG, "dla_light": "dsu", "dla_base": "dsu"}  # -> their usual one
SQUEEZING = ("se", "cbam", "spa")  # behind a bottleneck, of r = 16
D = 32  # channels per head, unless given or no divisor of C
D_OF_TOKENS = 16


def check_options(
    attentions: Sequence[str],
    cell: Cell | KindName | str | None,
    reduction: int | None,
    head_channels: int | None,
    drop_path: float,
    backend: BackendName | None,
    inside: str | None = None,
    start: str | None = None,
) -> None:
    """Raise an error on an option that is wrong or would have no effect in any of the stages."""
    for attention in attentions:
        if attention not in ATTENTIONS:
            raise ValueError(f"attention: expected one of {', '.join(ATTENTIONS)}, got {attention!r}")
    check_backend(backend)
    if inside is not None and inside not in INSIDE:
        raise ValueError(f"inside: expected one of {', '.join(INSIDE)}, got {inside!r}")
    if cell is not None and not isinstance(cell, (Cell, str)):
        raise TypeError(f"cell: expected a dla_kernels.Cell or the name of a kind, got {type(cell).__name__}")
    squeezing = [*SQUEEZING, *(f"shared_{name}" for name in SQUEEZING)]
    for name, given, allowed, lacking in (
        ("cell", cell, WITH_CELL, "cell"),
        ("start", start, ALONG, "cell along its blocks"),
        ("reduction", reduction, (*WITH_CELL, *squeezing), "bottleneck"),
        ("head_channels", head_channels, BETWEEN, "heads"),
        ("drop_path", drop_path or None, BETWEEN, "branch to drop"),
        ("inside", inside, [name for name in ATTENTIONS if name not in INSIDE], "room for another inside its blocks"),
    ):
        if given is not None and not any(attention in allowed for attention in attentions):
            told = ", ".join(map(repr, dict.fromkeys(attentions)))
            raise ValueError(f"{name}: expected None with attention={told}, got {given!r}; it has no {lacking}")


def block_attention(name: str | None, channels: int, reduction: int, backend: BackendName | None) -> nn.Module | None:
    """Return what scales the branch of one block; None where nothing does."""
    if name not in INSIDE:
        return None
    options = {"reduction": reduction} if name in SQUEEZING else {}
    return INSIDE[name](channels, backend=backend, **options)


def stage_attention(
    attention: str,
    channels: int,
    layers: int,
    cell: Cell | KindName | str | None,
    reduction: int,
    *,
    squeeze: int = 16,
    head_channels: int | None = None,
    drop_path: float = 0.0,
    start: str | None = None,
    backend: BackendName | None = None,
) -> StageAttention | LayerwiseIntegration | Shared | None:
    """Return what the layers of a stage have in common, or what runs between them; None where nothing does."""
    if attention in SHARED:
        module = block_attention(SHARED[attention], channels, squeeze, backend)
        assert module is not None
        return Shared(module, layers)
    made: Any = WITH_CELL.get(attention) if cell is None else cell
    if attention in ALONG:
        if made == "lstm":  # behind bottlenecks, as DIANet's own cell is
            made = Cell("lstm", projection="split")
        return LayerwiseIntegration(CellModule(channels, made, reduction, start=start or "zeros", backend=backend))
    if attention not in BETWEEN:
        return None
    options: dict[str, Any] = {"cell": made, "reduction": reduction} if attention in WITH_CELL else {}
    options["head_channels"] = usual_head_channels(channels, D) if head_channels is None else head_channels
    return BETWEEN[attention](channels, layers, drop_path=drop_path, backend=backend, **options)


def token_attention(
    attention: str,
    channels: int,
    layers: int,
    cell: Cell | KindName | str | None,
    reduction: int,
    *,
    head_channels: int | None,
    prefix: int,
    size: tuple[int, int] | None,
    backend: BackendName | None,
) -> nn.Module | None:
    """Return what runs after each block of a vision transformer; None where nothing does."""
    if attention == "none":
        return None
    if attention not in TOKENS:
        raise ValueError(f"attention: expected none or one of {', '.join(TOKENS)} between tokens, got {attention!r}")
    options: dict[str, Any] = {"prefix": prefix, "size": size, "backend": backend}
    if attention in WITH_CELL:
        options |= {"cell": WITH_CELL[attention] if cell is None else cell, "reduction": reduction}
    options["head_channels"] = usual_head_channels(channels, D_OF_TOKENS) if head_channels is None else head_channels
    if attention in ("dla_light", "mrla_light"):
        return TOKENS[attention](channels, layers, **options)
    starts = range(0, layers, BLOCKS_OF_A_STAGE)
    return InStages(TOKENS[attention](channels, min(BLOCKS_OF_A_STAGE, layers - t), **options) for t in starts)


def usual_head_channels(channels: int, most: int) -> int:
    """Return the channels per head unless given."""
    return next(divisor for divisor in range(min(most, channels), 0, -1) if channels % divisor == 0)
