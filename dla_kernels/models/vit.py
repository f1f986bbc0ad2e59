"""Vision transformers, as DeiT's, that have layer attention between their blocks. Parameters have timm's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends import BackendName
from ..cells import Cell, KindName
from ..nn.leaf import leaf
from .attentions import check_options, token_attention
from .stage import Stage

EPS = 1e-6  # of all LayerNorms


class SelfAttention(nn.Module):
    """Attention of tokens [B, L, C] to each other, by several heads."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, L, D]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps of each token, a GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """A block: attention between tokens, then an MLP, each behind a norm and added to what came in."""

    def __init__(self, channels: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.attn = SelfAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = MLP(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._kept(self.attn(self.norm1(x)))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, branch: Tensor) -> Tensor:
        """Return the branch [B, L, C], in training without that of some samples, and the others' the larger."""
        if not self.training or self.drop_path == 0:
            return branch
        rate = 1 - self.drop_path
        return branch * branch.new_empty(branch.shape[0], 1, 1).bernoulli_(rate).div_(rate)


class TransformerStage(Stage):
    """Blocks between tokens, and after each its attention, which sees the block's input."""

    def layer(self, t: int, x: Tensor, memory: Any) -> tuple[Tensor, Any]:
        before, x = x, self[t](x)
        return (x, None) if self.attention is None else self.attention(t, x, before, memory)


class PatchEmbed(nn.Module):
    """The convolution that makes a token of each patch of an image: [B, 3, H, W] -> [B, N, C]."""

    def __init__(self, in_channels: int, channels: int, patch_size: int, img_size: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch_size, patch_size)
        self.img_size = img_size

    @leaf
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[2:] != self.img_size:
            wanted = f"[B, {self.proj.in_channels}, {self.img_size[0]}, {self.img_size[1]}]"
            raise ValueError(f"x: expected images {wanted}, got {list(x.shape)}; img_size= makes a network for others")
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """A vision transformer whose layer attention may be chosen.

    channels, depth, heads: C, of how many blocks, each of how many heads.
    attention: ``"none"``, or ``dla_light``, ``dla_base``, ``mrla_light``, ``mrla_base`` after each block. To light
        attention the blocks are one stage; base attention has stages of four.
    num_classes: 1000 unless given; 0 for no classifier.
    in_channels, img_size, patch_size: of images, a side or (height, width), and a patch's side.
    cell, reduction: of ``dla_``; r is 16 unless given.
    head_channels: D of layer attention, 16 unless given.
    mlp_ratio: hidden channels of a block's MLP over C.
    drop_path: the rate at which the last block's own branches are dropped in training, not layer attention; from zero
        it grows along the blocks.
    """

    def __init__(
        self,
        channels: int,
        depth: int = 12,
        heads: int = 3,
        attention: Literal["none", "mrla_light", "mrla_base", "dla_light", "dla_base"] = "none",
        num_classes: int | None = None,
        in_channels: int = 3,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        cell: Cell | KindName | str | None = None,
        reduction: int | None = None,
        head_channels: int | None = None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__()
        check_options([attention], cell, reduction, head_channels, 0.0, backend)
        sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if len(sides) != 2 or not isinstance(patch_size, int) or patch_size < 1:
            raise ValueError(
                "img_size, patch_size: expected a side or (height, width), and a side of at least 1, got "
                f"{img_size}, {patch_size}"
            )
        height, width = sides
        if min(height, width) < patch_size or height % patch_size or width % patch_size:
            raise ValueError(f"img_size: expected multiples of the patch's {patch_size}, got {height} x {width}")
        if min(depth, in_channels) < 1 or heads < 1 or channels % heads:
            raise ValueError(
                f"depth, in_channels, heads: expected at least 1 each, and heads that divide the {channels} channels, "
                f"got {depth}, {in_channels}, {heads}"
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path: expected a rate in [0, 1), got {drop_path}")
        self.size = (height // patch_size, width // patch_size)
        self.num_features = self.embed_dim = channels
        self.patch_embed = PatchEmbed(in_channels, channels, patch_size, (height, width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.size[0] * self.size[1], channels))
        rates = [drop_path * t / max(depth - 1, 1) for t in range(depth)]
        between = token_attention(
            attention,
            channels,
            depth,
            cell,
            16 if reduction is None else reduction,
            head_channels=head_channels,
            prefix=1,
            size=self.size,
            backend=backend,
        )
        blocks = ((str(t), TransformerBlock(channels, heads, mlp_ratio, rate)) for t, rate in enumerate(rates))
        self.blocks = TransformerStage(blocks, between)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.reset_classifier(1000 if num_classes is None else num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as DeiT's code does: of linear maps, the class token and positions from a normal distribution of
        deviation 0.02, cut off; layer attention draws its own."""
        for x in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(x, std=0.02)
        linear = [m for block in self.blocks.blocks for m in block.modules() if isinstance(m, nn.Linear)]
        for module in (*linear, *([self.head] if isinstance(self.head, nn.Linear) else ())):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Return the names of what is usually trained without weight decay, as timm asks for them."""
        return {"cls_token", "pos_embed"}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place of the one that is there; with 0 classes there is none."""
        if global_pool not in (None, "token"):
            raise ValueError(f"global_pool: expected 'token', which these networks have, got {global_pool!r}")
        if num_classes < 0:
            raise ValueError(f"num_classes: expected a number of classes, or 0 for none, got {num_classes}")
        self.num_classes = num_classes
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(self.cls_token.device, self.cls_token.dtype)

    def get_classifier(self) -> nn.Module:
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep, of what each layer computes, only its results for the backward pass; the rest is computed again."""
        self.blocks.grad_checkpointing = enable

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [B, num_classes] of images [B, 3, H, W]."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last block's tokens, normed: [B, 1 + N, C]."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.norm(self.blocks(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return scores from tokens; the class token with ``pre_logits``."""
        return x[:, 0] if pre_logits else self.head(x[:, 0])
