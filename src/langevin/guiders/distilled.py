"""Guidance that a network has learned: Meng et al. 2023, "On Distillation of Guided Diffusion Models" (2210.03142)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from langevin.guiders.base import Guider, Setup
from langevin.models.layers.embeddings import sinusoid


@dataclass
class DistilledGuidance(Guider):
    """Tell a network how strongly to guide itself, where it was made to be told (section 3.1).

    Such networks have a ``time_cond_proj_dim`` in their config; they need no negative branch.

    Args:
        scale: as of :class:`~langevin.ClassifierFreeGuidance`; the network is told w = scale - 1.

    Raises:
        ValueError: when the call begins, the network is not told such a thing.
    """

    scale: float = 7.5

    def prepare(self, setup: Setup) -> None:
        width = setup.network.config.get("time_cond_proj_dim")
        if width is None:
            raise ValueError(
                f"this {type(setup.network).__name__} has not learned to guide itself; give ClassifierFreeGuidance"
            )
        code = sinusoid(torch.tensor([(self.scale - 1) * 1000]), width, freq_shift=1)
        setup.told["timestep_cond"] = code.to(setup.device, setup.dtype).expand(setup.shape[0], -1)
