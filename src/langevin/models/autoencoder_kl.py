"""The autoencoder that turns pictures into latents and back (Rombach et al., 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
from langevin.models.distributions import DiagonalGaussianDistribution
from langevin.models.layers.attention import Attend
from langevin.models.layers.coder import Decoder, Encoder
from langevin.models.layers.conditioning import check_sample
from langevin.models.layers.kinds import Options, check_stages
from langevin.models.layers.legacy import rename_old_attention
from langevin.outputs import AutoencoderKLOutput, DecoderOutput


class AutoencoderKL(ModelMixin):
    """A variational autoencoder for pictures.

    Args:
        in_channels, out_channels: of the pictures.
        down_block_types, up_block_types, block_out_channels, layers_per_block: the stages.
        latent_channels: of the latents.
        sample_size: height and width that it was made for; pictures beyond it are tiled when tiling is on.
        scaling_factor, shift_factor: pipelines use z = (latents - shift_factor) * scaling_factor.
        latents_mean, latents_std: per channel, where a checkpoint gives them.
        force_upcast: the weights overflow float16: decode in float32 or bfloat16.
        use_quant_conv, use_post_quant_conv: 1x1 convolutions around the latents.
        mid_block_add_attention: attention in the middle.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 4,
        out_channels: int = 3,
        # the stages
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        mid_block_add_attention: bool = True,
        norm_num_groups: int = 32,
        act_fn: str = "silu",
        # the latents
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        # how it is run
        sample_size: int = 32,
        force_upcast: bool = True,
    ) -> None:
        super().__init__()
        channels = tuple(block_out_channels)
        check_stages(down_block_types=down_block_types, up_block_types=up_block_types, block_out_channels=channels)
        options = Options(eps=1e-6, act=act_fn, groups=norm_num_groups, padding=0)
        rest = (channels, layers_per_block, options, mid_block_add_attention)
        self.encoder = Encoder(in_channels, 2 * latent_channels, down_block_types, *rest)
        self.decoder = Decoder(latent_channels, out_channels, up_block_types, *rest)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None

        side = sample_size if isinstance(sample_size, int) else sample_size[0]
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_size = side
        self.tile_latent_min_size = int(side / 2 ** (len(channels) - 1))
        self.tile_overlap_factor = 0.25

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the names that old files use, under the present ones."""
        return rename_old_attention(state_dict)

    def enable_slicing(self) -> None:
        """Encode and decode one picture of a batch at a time: less memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode a batch at once."""
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Encode and decode large pictures in overlapping, blended tiles: less memory, and slightly other colours."""
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Encode and decode pictures whole."""
        self.use_tiling = False

    def encode(
        self, x: Tensor, return_dict: bool = True, *, attention: Attend | None = None
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Pictures (batch, in_channels, height, width) in [-1, 1] -> a distribution over latents, not yet scaled."""
        check_sample(x, self.config["in_channels"])
        posterior = DiagonalGaussianDistribution(self._sliced(self._moments, x, attention))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        *,
        attention: Attend | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (batch, latent_channels, height, width), no longer scaled -> pictures in about [-1, 1].

        ``generator`` is taken for the sake of the call's form; nothing is drawn.
        """
        check_sample(z, self.config["latent_channels"])
        pictures = self._sliced(self._pictures, z, attention)
        return DecoderOutput(sample=pictures) if return_dict else (pictures,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        *,
        attention: Attend | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """There and back: pictures -> latents (drawn with ``sample_posterior``, else the mode) -> pictures."""
        posterior = self.encode(sample, return_dict=False, attention=attention)[0]
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict, attention=attention)

    def _encode_whole(self, x: Tensor, attention: Attend | None) -> Tensor:
        h = self.encoder(x, attention)
        return h if self.quant_conv is None else self.quant_conv(h)

    def _decode_whole(self, z: Tensor, attention: Attend | None) -> Tensor:
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z), attention)

    def _moments(self, x: Tensor, attention: Attend | None) -> Tensor:
        if not self.use_tiling or max(x.shape[-2:]) <= self.tile_sample_min_size:
            return self._encode_whole(x, attention)
        large, small = self.tile_sample_min_size, self.tile_latent_min_size
        return self._tiled(self._encode_whole, x, attention, large, small)

    def _pictures(self, z: Tensor, attention: Attend | None) -> Tensor:
        if not self.use_tiling or max(z.shape[-2:]) <= self.tile_latent_min_size:
            return self._decode_whole(z, attention)
        small, large = self.tile_latent_min_size, self.tile_sample_min_size
        return self._tiled(self._decode_whole, z, attention, small, large)

    def _sliced(self, function: Callable[..., Tensor], x: Tensor, attention: Attend | None) -> Tensor:
        if not self.use_slicing or x.shape[0] == 1:
            return function(x, attention)
        return torch.cat([function(one, attention) for one in x.split(1)])

    def _tiled(
        self, function: Callable[..., Tensor], x: Tensor, attention: Attend | None, size_in: int, size_out: int
    ) -> Tensor:
        """``function`` over squares of ``size_in`` that overlap, blended linearly where they do.

        A tile's first ``blend`` rows and columns go over from its upper and left neighbours; of each tile,
        ``size_out - blend`` rows and columns are kept.
        """
        stride = int(size_in * (1 - self.tile_overlap_factor))
        blend = int(size_out * self.tile_overlap_factor)
        keep = size_out - blend
        rows: list[Tensor] = []
        above: list[Tensor] = []
        for top in range(0, x.shape[2], stride):
            tiles: list[Tensor] = []
            for left in range(0, x.shape[3], stride):
                tile = function(x[:, :, top : top + size_in, left : left + size_in], attention)
                if above:
                    tile = _blend(above[len(tiles)], tile, blend, dim=2)
                if tiles:
                    tile = _blend(tiles[-1], tile, blend, dim=3)
                tiles.append(tile)
            rows.append(torch.cat([tile[:, :, :keep, :keep] for tile in tiles], dim=3))
            above = tiles
        return torch.cat(rows, dim=2)


def _blend(before: Tensor, tile: Tensor, extent: int, dim: int) -> Tensor:
    """``tile`` whose start along ``dim`` goes over linearly from the end of ``before``."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if not extent:
        return tile
    weight = torch.arange(extent, device=tile.device, dtype=torch.float32) / extent
    weight = weight.to(tile.dtype).view(-1, *(1,) * (3 - dim))
    start, rest = tile.split([extent, tile.shape[dim] - extent], dim=dim)
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    return torch.cat([end * (1 - weight) + start * weight, rest], dim=dim)
