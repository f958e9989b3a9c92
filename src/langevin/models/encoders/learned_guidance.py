"""What stands for no text at all in VQ-Diffusion, learned: Tang, Gu, Bao, Chen & Wen 2022 (2205.16007)."""

from __future__ import annotations

import torch
from torch import nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin


class LearnedClassifierFreeSamplingEmbeddings(ModelMixin):
    """Embeddings that the negative branch is told, ``(length, hidden_size)``.

    Args:
        learnable: False is without any: the negative branch is told the empty text.
        hidden_size: width of the text encoder's tokens.
        length: how many tokens; the text encoder's window.

    Raises:
        ValueError: there are to be embeddings, of no size.
    """

    #: published folders say "vq_diffusion"; the reference finds it under this name alone
    library_name = "diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion"

    @register_to_config
    def __init__(self, learnable: bool, hidden_size: int | None = None, length: int | None = None) -> None:
        super().__init__()
        if learnable and (hidden_size is None or length is None):
            raise ValueError("learnable embeddings need a hidden_size and a length")
        sizes = (length, hidden_size) if learnable else (0,)
        self.embeddings = nn.Parameter(torch.zeros(sizes))  # type: ignore[arg-type]
