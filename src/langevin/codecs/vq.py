"""Pictures to latents and back, through an autoencoder with a codebook; and the codec of any autoencoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from langevin.codecs.vae import VaeCodec
from langevin.randomness import Noise


class VqCodec(VaeCodec):
    """The same with latents that are brought to the nearest words of a codebook when they are decoded (Rombach et al.
    2022, 2112.10752, section 3.1). Encoding draws nothing, and leaves them as they are.

    Args:
        vae: a :class:`~langevin.VQModel`.
        scale: of the latents; the autoencoder's if None.
    """

    @property
    def channels(self) -> int:
        """Of the latents: the width of the codebook's vectors."""
        config = self.vae.config
        return config.get("vq_embed_dim") or config.latent_channels

    def posterior(self, pixels: Tensor, noise: Noise | None = None) -> Tensor:
        """Latents as the autoencoder gives them, not scaled."""
        return self.vae.encode(pixels.to(self.vae.dtype)).latents


def latent_codec(vae: Any, scale: float | None = None) -> VaeCodec:
    """The codec of an autoencoder, with a codebook or without one; see :class:`VqCodec` for ``scale``."""
    return (VqCodec if "num_vq_embeddings" in vae.config else VaeCodec)(vae, scale)
