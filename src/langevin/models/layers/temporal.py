"""Layers and stages that look along time: those of a UNet for videos (ModelScope: Wang et al., 2023, 2308.06571).

A video goes through as its frames, (videos · frames, channels, height, width), those of one video one after the other.
Each layer of a picture's UNet has one behind it that reads every place's frames: a residual block one of convolutions,
a transformer one of attention (section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from langevin.models.layers.activation import dropout
from langevin.models.layers.attention import Attend
from langevin.models.layers.blocks import DownStage, MidStage, UpStage
from langevin.models.layers.kinds import Kind, Options
from langevin.models.layers.map_attention import Call
from langevin.models.layers.transformer import TransformerBlock

DOWN = {"CrossAttnDownBlock3D": Kind("cross"), "DownBlock3D": Kind()}
UP = {"CrossAttnUpBlock3D": Kind("cross", freeu=True), "UpBlock3D": Kind(freeu=True)}
MID = Kind("cross")


class FrameConvolution(nn.Conv3d):
    """A convolution over three frames at each place, ``(videos, channels, frames, places)``: one of pictures, which
    libraries compute faster than one of volumes.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.flatten(3), self.bias, padding=(1, 0))


class TemporalConvolutions(nn.Module):
    """Four convolutions over three frames each, added to what they read. The last one's weights start at zero, so that
    an untrained one changes nothing.
    """

    def __init__(self, channels: int, groups: int = 32, dropout_p: float = 0.1) -> None:
        super().__init__()

        def convolution(*between: nn.Module) -> nn.Sequential:
            return nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), *between, FrameConvolution(channels))

        self.conv1 = convolution()
        self.conv2, self.conv3, self.conv4 = (convolution(dropout(dropout_p)) for _ in range(3))
        for parameter in self.conv4[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """``x`` (videos · frames, channels, height, width); its shape is kept."""
        h = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(3)
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = convolution(h)
        return x + h.transpose(1, 2).reshape(x.shape)


class TemporalTransformer(nn.Module):
    """A transformer block over the frames of each place, added to what it reads. Both of its attentions look at the
    frames themselves.
    """

    def __init__(self, channels: int, *, heads: int, head_dim: int, groups: int = 32) -> None:
        super().__init__()
        inner = heads * head_dim
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        block = TransformerBlock(inner, heads=heads, head_dim=head_dim, context_dim=None)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, frames: int, attention: Attend | None = None) -> Tensor:
        """``x`` (videos · frames, channels, height, width); its shape is kept."""
        h = self.norm(x.unflatten(0, (-1, frames)).transpose(1, 2))
        videos, channels, _, height, width = h.shape
        h = self.proj_in(h.permute(0, 3, 4, 2, 1).reshape(-1, frames, channels))
        for block in self.transformer_blocks:
            h = block(h, attention=attention)
        h = self.proj_out(h).reshape(videos, height, width, frames, channels)
        return x + h.permute(0, 3, 4, 1, 2).flatten(0, 1)


class _OverFrames:
    """Gives a stage's layers those along time behind them."""

    resnets: Any
    attentions: Any
    _run_attention: Any

    def _add_time(self, o: Options) -> None:
        """Build them; the stage's own are there."""
        channels = self.resnets[-1].conv2.out_channels
        self.temp_convs = nn.ModuleList(TemporalConvolutions(channels, o.groups) for _ in self.resnets)
        self.temp_attentions: Any = None
        if self.attentions is not None:
            assert o.heads is not None
            shape = {"heads": o.heads, "head_dim": channels // o.heads, "groups": o.groups}
            self.temp_attentions = nn.ModuleList(TemporalTransformer(channels, **shape) for _ in self.attentions)
            self._run_attention = _then_over_time(self._run_attention)

    def _residuals(self) -> Iterable[Any]:
        return list(zip(self.resnets, self.temp_convs, strict=True))

    def _attentions(self) -> Iterable[Any]:
        if self.attentions is None:
            return repeat(None)
        return zip(self.attentions, self.temp_attentions, strict=True)

    def _run_residual(self, residual: Any, x: Tensor, call: Call) -> Tensor:
        resnet, over_time = residual
        return over_time(resnet(x, call.emb), call.frames)


def _then_over_time(run: Callable[[nn.Module, Tensor, Call], Tensor]) -> Callable[[Any, Tensor, Call], Tensor]:
    def both(attention: Any, x: Tensor, call: Call) -> Tensor:
        within, over_time = attention
        return over_time(run(within, x, call), call.frames, call.attention)

    return both


class VideoDownStage(_OverFrames, DownStage):
    """:class:`~langevin.models.layers.blocks.DownStage` of a video's frames."""

    def __init__(self, *args: Any, options: Options, **more: Any) -> None:
        super().__init__(*args, options=options, **more)
        self._add_time(options)


class VideoMidStage(_OverFrames, MidStage):
    """:class:`~langevin.models.layers.blocks.MidStage` of a video's frames."""

    def __init__(self, *args: Any, options: Options, **more: Any) -> None:
        super().__init__(*args, options=options, **more)
        self._add_time(options)


class VideoUpStage(_OverFrames, UpStage):
    """:class:`~langevin.models.layers.blocks.UpStage` of a video's frames."""

    def __init__(self, *args: Any, options: Options, **more: Any) -> None:
        super().__init__(*args, options=options, **more)
        self._add_time(options)
