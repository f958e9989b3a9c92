"""Text to image with Stable Diffusion, steered away from what a concept names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from langevin.guiders.safe import SafeGuidance
from langevin.media.picture import Picture
from langevin.outputs import StableDiffusionSafePipelineOutput
from langevin.pipelines.stable_diffusion import StableDiffusionPipeline
from langevin.pipelines.stable_diffusion_base import StableDiffusionBase
from langevin.signatures import also_takes

SAFETY_CONCEPT = (
    "an image showing hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily "
    "fluids, blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, "
    "cruelty"
)
"""What Schramowski et al. 2023 (2211.05105) steer away from, section 5."""


def _setting(steps: int, scale: float, threshold: float, momentum: float, beta: float) -> dict[str, float]:
    names = ("sld_warmup_steps", "sld_guidance_scale", "sld_threshold", "sld_momentum_scale", "sld_mom_beta")
    return dict(zip(names, (steps, scale, threshold, momentum, beta), strict=True))


class SafetyConfig:
    """The paper's four settings (section 6): ``pipe(prompt, **SafetyConfig.STRONG)``."""

    WEAK = _setting(15, 20, 0.0, 0.0, 0.0)
    MEDIUM = _setting(10, 1000, 0.01, 0.3, 0.4)
    STRONG = _setting(7, 2000, 0.025, 0.5, 0.7)
    MAX = _setting(0, 5000, 1.0, 0.5, 0.7)


class StableDiffusionPipelineSafe(StableDiffusionBase):
    """Text to image with Safe Latent Diffusion (Schramowski et al. 2023, 2211.05105).

    ``safety_concept`` is what its calls steer away from; it may be set, and is not saved.

    Example:
        >>> from langevin import SafetyConfig, StableDiffusionPipelineSafe
        >>> pipe = StableDiffusionPipelineSafe.from_pretrained("langevin/shapes")
        >>> pipe.safety_concept = "red"
        >>> image = pipe("a circle", num_inference_steps=20, seed=7, **SafetyConfig.MAX).images[0]
    """

    safety_concept: str = SAFETY_CONCEPT

    @torch.no_grad()
    @also_takes(StableDiffusionPipeline.__call__)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        *,
        sld_guidance_scale: float = 1000,
        sld_warmup_steps: int = 10,
        sld_threshold: float = 0.01,
        sld_momentum_scale: float = 0.3,
        sld_mom_beta: float = 0.4,
        safety_concept: str | None = None,
        safety_action: Literal["blackout", "flag"] = "blackout",
        return_dict: bool = True,
        **common: Any,
    ) -> StableDiffusionSafePipelineOutput | tuple:
        """Make pictures.

        Args:
            sld_guidance_scale: 1 or less is off, as is a ``guidance_scale`` of 1 or less.
            sld_warmup_steps, sld_threshold, sld_momentum_scale, sld_mom_beta: see :class:`langevin.SafeGuidance`.
            safety_concept: what this call steers away from; the pipeline's own ``safety_concept`` if None.
            return_dict: if False, a tuple of images, flags, concept and flagged images.

        The other arguments are those of :class:`~langevin.StableDiffusionPipeline`.
        """
        arguments = {name: value for name, value in locals().items() if name not in ("self", "common")}
        concept = arguments["safety_concept"] = safety_concept or self.safety_concept
        scale = self.call_default("guidance_scale", 7.5) if guidance_scale is None else guidance_scale
        guider = SafeGuidance(
            concept, sld_guidance_scale, sld_warmup_steps, sld_threshold, sld_momentum_scale, sld_mom_beta
        )
        # what is flagged is shown below, so it must not be blacked out there
        made = self._generate({**arguments, **common, "safety_action": "flag", "return_dict": True}, [guider])
        images, flags, unsafe = made.images, made.nsfw_content_detected, None
        for image in images if isinstance(images[0], Picture) else ():
            image.settings["safety_action"] = safety_action
        if flags is not None and any(flags):
            unsafe = blacked_out(images, [not flagged for flagged in flags])
            images = images if safety_action == "flag" else blacked_out(images, flags)
        applied = concept if sld_guidance_scale > 1 and scale > 1 else None
        if not return_dict:
            return images, flags, applied, unsafe
        return StableDiffusionSafePipelineOutput(images, flags, unsafe, applied)


def blacked_out(images: Any, which: Sequence[bool]) -> Any:
    """Delivered pictures, with some of them black: a list of :class:`langevin.Picture`, an array or a tensor."""
    if isinstance(images, list):
        pairs = zip(images, which, strict=True)
        return [
            Picture.from_array(np.zeros_like(np.asarray(image)), image.settings) if black else image
            for image, black in pairs
        ]
    images = images.copy() if isinstance(images, np.ndarray) else images.clone()
    images[np.flatnonzero(which)] = 0
    return images
