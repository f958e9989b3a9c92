"""Mean and spread of CLIP's picture vectors, as Stable unCLIP was trained with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin


class StableUnCLIPImageNormalizer(ModelMixin):
    """Brings CLIP's picture vectors to mean 0 and spread 1, and back.

    Args:
        embedding_dim: width of the vectors.
    """

    library_name = "stable_diffusion"

    @register_to_config
    def __init__(self, embedding_dim: int = 768) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1, embedding_dim))
        self.std = nn.Parameter(torch.ones(1, embedding_dim))

    def scale(self, embeds: Tensor) -> Tensor:
        """``(n, dim)`` as CLIP gives them, to mean 0 and spread 1."""
        return (embeds - self.mean.to(embeds)) / self.std.to(embeds)

    def unscale(self, embeds: Tensor) -> Tensor:
        """And back."""
        return embeds * self.std.to(embeds) + self.mean.to(embeds)
