"""Pictures to codes and back, through a vector-quantised autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from langevin.codecs.base import check_size
from langevin.randomness import Noise


class CodeCodec:
    """x is the numbers of a codebook's vectors, ``(batch, height · width)``, row by row.

    Args:
        vqvae: a :class:`langevin.VQModel`.
        height, width: in codes.
    """

    axes = 0
    scale_factor = 1

    def __init__(self, vqvae: Any, height: int, width: int) -> None:
        self.vqvae, self.height, self.width = vqvae, height, width
        self.channels = height * width

    def shape(self, count: int, size: Sequence[int]) -> tuple[int, ...]:
        """``(count, height · width)`` for pixels ``(height, width)``."""
        factor = 2 ** (len(self.vqvae.config.block_out_channels) - 1)
        check_size(size, factor)
        return (count, size[0] // factor * (size[1] // factor))

    def encode(self, pixels: Tensor, noise: Noise | None = None) -> Tensor:
        """``(batch, 3, height, width)`` in [-1, 1] to codes."""
        latents = self.vqvae.encode(pixels.to(self.vqvae.dtype)).latents
        return self.vqvae.quantize(latents)[2][2].view(len(pixels), -1)

    def decode(self, x: Tensor) -> Tensor:
        """Codes to ``(batch, 3, …)``, about [-1, 1]. The mask, where a run was ended early, becomes the book's mean."""
        device, book = x.device, self.vqvae.quantize.embedding
        count, dim = book.weight.shape
        x = x if book.weight.is_meta else x.to(book.weight.device)  # where it rests while it is offloaded
        masked = x >= count
        form = len(x), self.height, self.width, dim
        vectors = self.vqvae.quantize.get_codebook_entry(x.where(~masked, 0), form)
        if masked.any():
            mean = book(torch.arange(count, device=x.device)).mean(dim=0)[:, None, None]
            vectors = mean.where(masked.view(len(x), 1, self.height, self.width), vectors)
        return self.vqvae.decode(vectors.to(device), force_not_quantize=True).sample
