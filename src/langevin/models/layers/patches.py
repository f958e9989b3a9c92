"""Transformers over a picture's patches, told time and class by their norms: DiT (Peebles & Xie, 2023, 2212.09748)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.models.layers.attention import Attend, Attention
from langevin.models.layers.embeddings import TimestepEmbedding, sinusoid
from langevin.models.layers.transformer import FeedForward

_TIME = 256  # width of the time's sines


class PatchEmbedding(nn.Module):
    """Square patches as tokens that know their place: (batch, channels, h, w) -> (batch, h/size · w/size, dim).

    ``side``: height and width that the network was made for, in patches. Other sizes are spread over the same places.
    """

    def __init__(self, channels: int, dim: int, size: int, side: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, size, stride=size)
        self.dim, self.side = dim, side

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        tokens = x.flatten(2).transpose(1, 2).contiguous()  # once, and not in each block
        return tokens + self._places(x.shape[2], x.shape[3], x.device).to(x.dtype)

    def _places(self, height: int, width: int, device: torch.device) -> Tensor:
        """Sines and cosines of column and row, (height · width, dim), row by row."""
        rows, columns = (
            sinusoid(torch.arange(count, device=device) * (self.side / count), self.dim // 2)
            for count in (height, width)
        )
        grid = columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)
        return torch.cat(grid, dim=-1).flatten(0, 1)


class ClassTable(nn.Module):
    """A vector for each class: (batch,) -> (batch, dim)."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes, dim)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class TimeAndClass(nn.Module):
    """One vector for timestep and class, (batch,), (batch,) -> (batch, dim). The class behind the last is no class."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(_TIME, dim)
        self.class_embedder = ClassTable(classes + 1, dim)

    def forward(self, time: Tensor, labels: Tensor) -> Tensor:
        waves = sinusoid(time, _TIME, cos_first=True, freq_shift=1)
        told = self.class_embedder(labels)
        return self.timestep_embedder(waves.to(told.dtype)) + told


class ZeroNorm(nn.Module):
    """What a block's norms and gates are told (adaLN-Zero, section 3.2): six vectors, (batch, 1, dim) each."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.emb = TimeAndClass(classes, dim)
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, time: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(self.emb(time, labels)))[:, None].chunk(6, dim=-1)


class PatchBlock(nn.Module):
    """Self-attention and a feed-forward, each normed, scaled, shifted, and let in by a gate."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        head_dim: int,
        classes: int,
        bias: bool,
        act: str,
        eps: float,
        affine: bool,
        upcast: bool,
        dropout_p: float,
    ) -> None:
        super().__init__()
        self.norm1 = ZeroNorm(classes, dim)
        self.attn1 = Attention(dim, heads=heads, head_dim=head_dim, bias=bias, upcast=upcast, dropout_p=dropout_p)
        self.norm3 = nn.LayerNorm(dim, eps, affine)
        self.ff = FeedForward(dim, dropout_p, act)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor, attention: Attend | None = None) -> Tensor:
        """``x`` (batch, tokens, dim), ``time`` and ``labels`` (batch,)."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.norm1(time, labels)
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        x = x + gate * self.attn1(h, attention=attention)
        return x + gate_ff * self.ff(self.norm3(x) * (1 + scale_ff) + shift_ff)
