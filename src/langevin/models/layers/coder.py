"""The two halves of autoencoders for pictures (Rombach et al., 2022, section G.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from langevin.models.layers.activation import activation
from langevin.models.layers.attention import Attend
from langevin.models.layers.blocks import DownStage, MidStage, UpStage
from langevin.models.layers.kinds import DOWN, MID, UP, Options, kind_of
from langevin.models.layers.map_attention import Call
from langevin.models.layers.normalization import SpatialNorm


class Encoder(nn.Module):
    """Pictures (batch, in_channels, h, w) -> maps (batch, out_channels, h / 2^(stages-1), w / 2^(stages-1))."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_types: Sequence[str],
        channels: Sequence[int],
        layers: int,
        options: Options,
        mid_attention: bool = True,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownStage(
                kind_of(DOWN, name, "down_block_types"),
                channels[max(i - 1, 0)],
                channels[i],
                layers=layers,
                downsample=i < len(channels) - 1,
                options=options,
            )
            for i, name in enumerate(block_types)
        )
        self.mid_block = MidStage(MID["UNetMidBlock2D"], channels[-1], options=options, attention=mid_attention)
        self.conv_norm_out = nn.GroupNorm(options.groups, channels[-1], eps=1e-6)
        self.conv_act = activation("silu")
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor, attention: Attend | None = None) -> Tensor:
        call = Call(attention=attention)
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x, _, _ = stage(x, call)
        x = self.mid_block(x, call)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents (batch, in_channels, h, w) -> pictures (batch, out_channels, h * 2^(stages-1), w * 2^(stages-1)).

    Where ``options`` say that its norms are ``spatial``, they are told a map of ``options.embedding_dim`` channels
    (MoVQ: Zheng et al., 2022).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_types: Sequence[str],
        channels: Sequence[int],
        layers: int,
        options: Options,
        mid_attention: bool = True,
    ) -> None:
        super().__init__()
        channels = list(channels)[::-1]
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.mid_block = MidStage(MID["UNetMidBlock2D"], channels[0], options=options, attention=mid_attention)
        self.up_blocks = nn.ModuleList(
            UpStage(
                kind_of(UP, name, "up_block_types"),
                channels[max(i - 1, 0)],
                channels[i],
                0,
                layers=layers + 1,
                upsample=i < len(channels) - 1,
                options=options,
            )
            for i, name in enumerate(block_types)
        )
        self.conv_norm_out: nn.Module
        if options.embedding_use == "spatial" and options.embedding_dim is not None:
            self.conv_norm_out = SpatialNorm(channels[-1], options.embedding_dim)
        else:
            self.conv_norm_out = nn.GroupNorm(options.groups, channels[-1], eps=1e-6)
        self.conv_act = activation("silu")
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor, attention: Attend | None = None, told: Tensor | None = None) -> Tensor:
        """``told``: what spatial norms are told, ``(batch, channels, h, w)``."""
        call = Call(emb=told, attention=attention)
        x = self.mid_block(self.conv_in(z), call)
        # The stages may have been left in float32 where the rest is float16 (SDXL's overflow).
        x = x.to(next(self.up_blocks.parameters()).dtype)
        for stage in self.up_blocks:
            x, _ = stage(x, [], call)
        x = self.conv_norm_out(x) if told is None else self.conv_norm_out(x, told)
        return self.conv_out(self.conv_act(x))
