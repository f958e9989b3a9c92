"""Preconditioning: Karras, Aittala, Aila & Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative
Models" (2206.00364), section 5.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class LatentUpscalerNetwork:
    """A UNet that sees x / √(σ² + 1) and is told log(σ) / 4, as a network that predicts the clean x: equation 7 with
    the weights of table 1 at σ_data = 1,

    ``D(x; σ) = x / (σ² + 1) + σ / √(σ² + 1) · F(x / √(σ² + 1); log(σ) / 4)``.

    Beside the time the UNet is told how much noise was added to the picture that it enlarges, which is none, and a
    vector for the prompt as a whole. Channels of its output beyond x's, an estimate of its own error, are left out. All
    else (config, device, layers) is the UNet's.

    Args:
        unet: a :class:`~langevin.UNet2DConditionModel` with a ``time_cond_proj_dim``.
    """

    def __init__(self, unet: Any) -> None:
        self.unet = unet

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unet, name)

    def __call__(
        self, x: Tensor, timestep: Any, *, sigma: float, pooled: Tensor, return_dict: bool = False, **told: Any
    ) -> tuple[Tensor]:
        """The clean x, ``(rows, channels, height, width)``.

        Args:
            x: ``(rows, channels + more, height, width)``: x / √(σ² + 1), and what is joined to it.
            timestep: is not looked at.
            sigma: the noise level, above 0.
            pooled: of the prompt, ``(rows, dim)``.
            return_dict: a tuple is returned whatever it says.
            told: further arguments of the UNet.
        """
        half = (self.unet.config.time_cond_proj_dim - pooled.shape[1]) // 2
        no_noise = pooled.new_ones(len(pooled), half), pooled.new_zeros(len(pooled), half)  # cosines and sines of 0
        told["timestep_cond"] = torch.cat([*no_noise, pooled], dim=1)
        said = self.unet(x, math.log(sigma) / 4, **told, return_dict=False)[0]
        channels = self.unet.config.in_channels // 2
        size = math.hypot(sigma, 1.0)
        return (x[:, :channels] / size + said[:, :channels] * (sigma / size),)
