"""What a picture is about, told beside the text: Stable unCLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langevin.guiders.base import Guider, Setup
from langevin.models.layers.embeddings import sinusoid


@dataclass
class ImageEmbedding(Guider):
    """Tells the network a picture's CLIP vector, noised, and how much, in its class labels (Ramesh et al. 2022,
    2204.06125, section 2.1; Saharia et al. 2022, 2205.11487, section 4.4, for noise that the network knows of).

    The negative branch is told zeros.

    Args:
        embeds: vectors ``(n, dim)``; n is 1, one per prompt, or one per picture.
        level: how much noise, a timestep of the ``scheduler``; more makes pictures that differ more.
        normalizer: a :class:`langevin.StableUnCLIPImageNormalizer`.
        scheduler: adds the noise.

    Raises:
        ValueError: for a level that the scheduler does not have, or another number of vectors.
    """

    embeds: Tensor
    level: int
    normalizer: Any
    scheduler: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.scheduler.config.num_train_timesteps - 1
        if not 0 <= self.level <= most:
            raise ValueError(f"noise_level is {self.level}; it must be in 0..{most}")

    def prepare(self, setup: Setup) -> None:
        told = self.noised(setup)
        setup.told["class_labels"] = told
        if "negative" in setup.branches:
            negative = {**setup.branches["negative"], "class_labels": torch.zeros_like(told)}
            setup.branches["negative"] = negative

    def noised(self, setup: Setup) -> Tensor:
        """Noised vectors and the embedded level, ``(batch, 2 · dim)``. Each picture draws for itself where each has a
        generator of its own; else each vector.
        """
        embeds = self.embeds.to(setup.device, setup.dtype)
        batch = setup.shape[0]
        if len(embeds) not in (1, batch) and len(embeds) * setup.pictures != batch:
            prompts = batch // setup.pictures
            raise ValueError(f"{len(embeds)} image embeddings for {prompts} prompts; give one, or one each")
        if setup.noise.per_picture:
            embeds = embeds.repeat_interleave(batch // len(embeds), dim=0)
        noise = setup.noise.draw(tuple(embeds.shape), setup.dtype, setup.device)
        level = torch.full((len(embeds),), self.level, device=embeds.device)
        clean = self.normalizer.scale(embeds)
        noised = self.normalizer.unscale(self.scheduler.add_noise(clean, noise, level))
        told = torch.cat([noised, sinusoid(level, embeds.shape[1], cos_first=True).to(noised)], dim=1)
        return told.repeat_interleave(batch // len(told), dim=0)
