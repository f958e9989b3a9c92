"""Stages over sequences, ``(batch, channels, length)``: of the paths that a robot takes (Janner et al. 2022,
2205.09991, figure A1). Residual blocks that are told the time, resampled by convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.models.layers.activation import activation
from langevin.models.layers.attention import Attend
from langevin.models.layers.waves import SequenceStage


class _NormedConv(nn.Module):
    """Convolution, norm in eight groups, Mish."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(in_channels, out_channels, 5, padding=2)
        self.group_norm = nn.GroupNorm(8, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.mish(self.group_norm(self.conv1d(x)))


class PathBlock(nn.Module):
    """Two convolutions, with the time between them, beside a shortcut (Janner et al. 2022, figure A1)."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.conv_in = _NormedConv(in_channels, out_channels)
        self.conv_out = _NormedConv(out_channels, out_channels)
        self.time_emb = nn.Linear(embedding_dim, out_channels)
        same = in_channels == out_channels
        self.residual_conv = nn.Identity() if same else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv_in(x) + self.time_emb(F.mish(emb))[:, :, None]
        return self.conv_out(h) + self.residual_conv(x)


class _Resample(nn.Module):
    """A convolution that halves the length, or one that doubles it."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def halving(channels: int) -> nn.Module:
    return _Resample(nn.Conv1d(channels, channels, 3, stride=2, padding=1))


def doubling(channels: int) -> nn.Module:
    return _Resample(nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1))


class PathStage(SequenceStage):
    """A stage of paths: ``layers + 1`` blocks, then a halving or doubling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        layers: int,
        *,
        halve: bool = False,
        double: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            PathBlock(out_channels if i else in_channels, out_channels, embedding_dim) for i in range(layers + 1)
        )
        self.downsample = halving(out_channels) if halve else None
        self.upsample = doubling(out_channels) if double else None

    def forward(
        self, x: Tensor, emb: Tensor, skip: Tensor | None = None, attention: Attend | None = None
    ) -> tuple[Tensor, Tensor]:
        run = self._runner()
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        for block in self.resnets:
            x = run(block, x, emb)
        sampler = self.downsample or self.upsample
        return x if sampler is None else sampler(x), x


class ValueMiddle(SequenceStage):
    """The middle of a network that judges a path: two blocks, each half as wide as what comes in, each then halved."""

    def __init__(self, channels: int, embedding_dim: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.res1, self.down1 = PathBlock(channels, half, embedding_dim), halving(half)
        self.res2, self.down2 = PathBlock(half, quarter, embedding_dim), halving(quarter)

    def forward(
        self, x: Tensor, emb: Tensor, skip: Tensor | None = None, attention: Attend | None = None
    ) -> tuple[Tensor, Tensor]:
        run = self._runner()
        x = self.down1(run(self.res1, x, emb))
        x = self.down2(run(self.res2, x, emb))
        return x, x


class PathOut(nn.Module):
    """The last two convolutions of a network of paths: (batch, channels, length) -> (batch, out_channels, length)."""

    def __init__(self, channels: int, out_channels: int, groups: int, act: str) -> None:
        super().__init__()
        self.final_conv1d_1 = nn.Conv1d(channels, channels, 5, padding=2)
        self.final_conv1d_gn = nn.GroupNorm(groups, channels)
        self.final_conv1d_act = activation(act)
        self.final_conv1d_2 = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.final_conv1d_2(self.final_conv1d_act(self.final_conv1d_gn(self.final_conv1d_1(x))))


class ValueOut(nn.Module):
    """One number for each path: (batch, channels, length), (batch, embedding_dim) -> (batch, 1).

    Args:
        width: channels times length.
    """

    def __init__(self, width: int, embedding_dim: int, act: str) -> None:
        super().__init__()
        self.width = width
        self.final_block = nn.ModuleList(
            [nn.Linear(width + embedding_dim, width // 2), activation(act), nn.Linear(width // 2, 1)]
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = x.flatten(1)
        if x.shape[1] != self.width:
            raise ValueError(
                f"{x.shape[1]} numbers are left of the sample at the end, where this network judges {self.width}; "
                "give samples as long as sample_size"
            )
        x = torch.cat([x, emb], dim=1)
        for layer in self.final_block:
            x = layer(x)
        return x
