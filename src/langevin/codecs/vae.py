"""Pictures to latents and back, through an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from langevin.codecs.base import check_size
from langevin.randomness import Noise


class VaeCodec:
    """Pictures to scaled latents and back, through an autoencoder.

    The numbers come from the autoencoder's config: ``encode`` gives (z - shift) · scale, ``decode`` takes
    z / scale + shift (Rombach et al. 2022, 2112.10752, section G; shift is 0 where the config has none). The
    autoencoder works in its own dtype, whatever that of the latents is.

    Args:
        vae: an :class:`~langevin.AutoencoderKL`.
        scale: of the latents; the autoencoder's if None.
    """

    axes = 2

    def __init__(self, vae: Any, scale: float | None = None) -> None:
        self.vae = vae
        self.scale = scale or vae.config.scaling_factor
        self.shift = vae.config.get("shift_factor") or 0.0

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.vae.config.latent_channels

    @property
    def scale_factor(self) -> int:
        """Pixels per latent in each direction."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def shape(self, count: int, size: Sequence[int]) -> tuple[int, ...]:
        """``(count, channels, height / scale_factor, width / scale_factor)``."""
        check_size(size, self.scale_factor)
        return (count, self.channels, *(side // self.scale_factor for side in size))

    def encode(self, pixels: Tensor, noise: Noise | None = None) -> Tensor:
        """``(batch, 3, height, width)`` in [-1, 1] to latents: drawn with ``noise``, else the mode."""
        return (self.posterior(pixels, noise) - self.shift) * self.scale

    def posterior(self, pixels: Tensor, noise: Noise | None = None) -> Tensor:
        """Latents as the autoencoder gives them, not scaled: drawn with ``noise``, else the mode."""
        posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        return posterior.mode() if noise is None else posterior.mean + posterior.std * noise(posterior.mean)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to ``(batch, 3, height, width)``, about [-1, 1] (not clamped)."""
        latents = (latents / self.scale + self.shift).to(self.vae.dtype)
        return self.vae.decode(latents, return_dict=False)[0]
