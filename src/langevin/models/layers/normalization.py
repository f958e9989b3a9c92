"""Normalisation whose scale and shift are predicted from something else."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class AdaGroupNorm(nn.Module):
    """Group norm scaled and shifted per channel by an embedding (Dhariwal & Nichol, 2021, section 3).

    ``x`` is (batch, channels, height, width), ``emb`` is (batch, embedding_dim); returns the shape of ``x``.
    """

    def __init__(self, embedding_dim: int, channels: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.linear = nn.Linear(embedding_dim, 2 * channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.linear(emb)[:, :, None, None].chunk(2, dim=1)
        return shift + F.group_norm(x, self.groups, eps=self.eps) * (1 + scale)


class AdaLayerNorm(nn.Module):
    """Layer norm of tokens, scaled and shifted by a table of timesteps (VQ-Diffusion: Gu et al., 2022).

    ``x`` is (batch, tokens, dim), ``time`` (batch,), whole numbers below ``timesteps``; returns the shape of ``x``.
    """

    def __init__(self, dim: int, timesteps: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(timesteps, dim)
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(self.emb(time)))[:, None].chunk(2, dim=-1)
        return shift + F.layer_norm(x, x.shape[-1:]) * (1 + scale)


class SpatialNorm(nn.Module):
    """Group norm scaled and shifted per position by a map ``z`` (MoVQ: Zheng et al., 2022, section 3.2).

    ``x`` is (batch, channels, height, width); ``z``, (batch, z_channels, h, w), is brought to its size.
    """

    def __init__(self, channels: int, z_channels: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv_y = nn.Conv2d(z_channels, channels, 1)
        self.conv_b = nn.Conv2d(z_channels, channels, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        z = F.interpolate(z, size=x.shape[-2:], mode="nearest")
        return self.conv_b(z) + self.norm_layer(x) * self.conv_y(z)
