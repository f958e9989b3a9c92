"""Stages over sequences, ``(batch, channels, length)``: of raw sound, and what sets the published kinds apart.

As in Dance Diffusion (Crowson's v-diffusion for audio): three blocks a stage, resampled by a fixed filter, told the
time as further channels of x. The other family is in :mod:`langevin.models.layers.paths`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from langevin.models.layers.attention import Attend


@dataclass(frozen=True)
class WaveKind:
    """What sets one published kind of stage apart.

    Args:
        paths: of the family of paths, else of sound.
        attention: behind each block.
        resample: whether it halves or doubles the length; paths do so but for their last stage.
        joins_time: the time is joined to x as channels.
        bare: the last block ends in its convolution.
    """

    paths: bool = False
    attention: bool = False
    resample: bool = True
    joins_time: bool = False
    bare: bool = False


DOWN = {
    "DownBlock1DNoSkip": WaveKind(resample=False, joins_time=True),
    "DownBlock1D": WaveKind(),
    "AttnDownBlock1D": WaveKind(attention=True),
    "DownResnetBlock1D": WaveKind(paths=True),
}
UP = {
    "UpBlock1DNoSkip": WaveKind(resample=False, bare=True),
    "UpBlock1D": WaveKind(),
    "AttnUpBlock1D": WaveKind(attention=True),
    "UpResnetBlock1D": WaveKind(paths=True),
}


def cubic_filter() -> Tensor:
    """The eight taps that halve a sequence: Keys' cubic kernel with a = -1/2 (1981, equation 4), at half its rate."""
    x = (torch.arange(8) - 3.5).abs() / 2
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, far) / 2


class Halve(nn.Module):
    """The filter at every second place, the sequence mirrored at its ends: (batch, channels, n) -> (…, n / 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", cubic_filter())

    def forward(self, x: Tensor) -> Tensor:
        kernel: Any = self.kernel
        weight = kernel.to(x.dtype).expand(x.shape[1], 1, -1)
        return F.conv1d(F.pad(x, (3, 3), mode="reflect"), weight, stride=2, groups=x.shape[1])


class Double(nn.Module):
    """The way back: zeros between the places, then the filter, twice as strong: (batch, channels, n) -> (…, 2n)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", 2 * cubic_filter())

    def forward(self, x: Tensor) -> Tensor:
        kernel: Any = self.kernel
        weight = kernel.to(x.dtype).expand(x.shape[1], 1, -1)
        return F.conv_transpose1d(F.pad(x, (2, 2), mode="reflect"), weight, stride=2, padding=7, groups=x.shape[1])


class WaveBlock(nn.Module):
    """Convolution, norm over everything, GELU, twice, beside a shortcut; ``bare``: then a convolution alone."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, bare: bool = False) -> None:
        super().__init__()
        self.conv_skip = None
        if in_channels != out_channels:
            self.conv_skip = nn.Conv1d(in_channels, out_channels, 1, bias=False)
        self.conv_1 = nn.Conv1d(in_channels, inner, 5, padding=2)
        self.group_norm_1 = nn.GroupNorm(1, inner)
        self.conv_2 = nn.Conv1d(inner, out_channels, 5, padding=2)
        self.group_norm_2 = None if bare else nn.GroupNorm(1, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_2(F.gelu(self.group_norm_1(self.conv_1(x))))
        if self.group_norm_2 is not None:
            h = F.gelu(self.group_norm_2(h))
        return h + (x if self.conv_skip is None else self.conv_skip(x))


class WaveAttention(nn.Module):
    """Self-attention over the places of a sequence, 32 channels a head, added to it: (batch, channels, length)."""

    is_cross_attention = upcast = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // 32, 1)
        if channels % self.heads:
            raise ValueError(f"a stage with attention has {channels} channels; give fewer than 64, or a multiple of 32")
        self.head_dim = channels // self.heads
        self.group_norm = nn.GroupNorm(1, channels)
        self.query, self.key, self.value, self.proj_attn = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, attention: Attend | None = None) -> Tensor:
        h = self.group_norm(x).transpose(1, 2)
        q, k, v = (
            project(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        if attention is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = attention(q, k, v, None, self)  # type: ignore[arg-type]  # has what functions read of a layer
        return x + self.proj_attn(out.transpose(1, 2).flatten(2)).transpose(1, 2)


class SequenceStage(nn.Module):
    """What both families share. ``forward(x, emb, skip, attention)`` gives x, and what is handed to the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def _runner(self) -> Callable[..., Tensor]:
        """Calls a function, or calls it again in the backward pass instead of keeping its inner maps."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return partial(checkpoint, use_reentrant=False)
        return lambda function, *args: function(*args)


class WaveStage(SequenceStage):
    """A stage of sound: halving first, or doubling last, or in the middle both.

    Args:
        widths: of x before the first block and behind each.
        inner: of each block, between its convolutions.
    """

    def __init__(self, kind: WaveKind, widths: list[int], inner: list[int], *, halve: bool, double: bool) -> None:
        super().__init__()
        self.kind = kind
        self.down = Halve() if halve else None
        self.up = Double() if double else None
        last = len(inner) - 1
        self.resnets = nn.ModuleList(
            WaveBlock(widths[i], inner[i], widths[i + 1], bare=kind.bare and i == last) for i in range(last + 1)
        )
        self.attentions: Any = nn.ModuleList(map(WaveAttention, widths[1:])) if kind.attention else [None] * (last + 1)

    @classmethod
    def going_down(cls, kind: WaveKind, in_channels: int, out_channels: int) -> WaveStage:
        return cls(kind, [in_channels, *[out_channels] * 3], [out_channels] * 3, halve=kind.resample, double=False)

    @classmethod
    def middle(cls, channels: int) -> WaveStage:
        return cls(WaveKind(attention=True), [channels] * 7, [channels] * 6, halve=True, double=True)

    @classmethod
    def going_up(cls, kind: WaveKind, in_channels: int, out_channels: int) -> WaveStage:
        """x and what is handed over have ``in_channels`` each."""
        inner = out_channels if kind.attention else in_channels
        widths = [2 * in_channels, inner, inner, out_channels]
        return cls(kind, widths, [inner] * 3, halve=False, double=kind.resample)

    def forward(
        self, x: Tensor, emb: Tensor, skip: Tensor | None = None, attention: Attend | None = None
    ) -> tuple[Tensor, Tensor]:
        run = self._runner()
        if self.down is not None:
            x = self.down(x)
        if self.kind.joins_time:
            x = torch.cat([x, emb[:, :, None].expand(-1, -1, x.shape[2])], dim=1)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        for block, attend in zip(self.resnets, self.attentions, strict=True):
            x = run(block, x)
            if attend is not None:
                x = run(attend, x, attention)
        return x if self.up is None else self.up(x), x
