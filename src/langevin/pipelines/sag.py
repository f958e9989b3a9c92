"""Text to image with Stable Diffusion and self-attention guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from langevin.guiders.self_attention import SelfAttentionGuidance
from langevin.pipelines.stable_diffusion import StableDiffusionPipeline
from langevin.pipelines.stable_diffusion_base import StableDiffusionBase
from langevin.signatures import also_takes


class StableDiffusionSAGPipeline(StableDiffusionBase):
    """Pictures from a prompt with self-attention guidance (Hong et al. 2023, 2210.00939).

    Example:
        >>> from langevin import StableDiffusionSAGPipeline
        >>> pipe = StableDiffusionSAGPipeline.from_pretrained("langevin/shapes")
        >>> image = pipe("a red circle", sag_scale=0.75, num_inference_steps=20, seed=7).images[0]
    """

    _scheduler_needs: Mapping[str, Any] = {}

    @torch.no_grad()
    @also_takes(StableDiffusionPipeline.__call__)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        sag_scale: float = 0.75,
        **common: Any,
    ) -> Any:
        """Make pictures.

        Args:
            sag_scale: how strongly to move away from what the network says of a picture that is blurred where it looks
                most; 0 is off, and more than 1 is seldom better.

        The other arguments are those of :class:`~langevin.StableDiffusionPipeline`.
        """
        arguments = {name: value for name, value in locals().items() if name not in ("self", "common")}
        return self._generate({**common, **arguments}, [SelfAttentionGuidance(sag_scale)])
