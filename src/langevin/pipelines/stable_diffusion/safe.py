"""Text to image with Stable Diffusion, steered away from what a concept names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from langevin.checks import Range, Share
from langevin.guiders.safe import SafeGuidance
from langevin.outputs import StableDiffusionSafePipelineOutput
from langevin.pipelines.call import Call
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase, blacked_out
from langevin.pipelines.stable_diffusion.text_to_image import TextToImageGiven

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


@dataclass(frozen=True, kw_only=True)
class SafeGiven(TextToImageGiven):
    """Arguments of :class:`StableDiffusionPipelineSafe`.

    Args:
        return_dict: if False, a tuple of images, flags, concept and flagged images.
        sld_guidance_scale: 1 or less is off, as is a ``guidance_scale`` of 1 or less.
        sld_warmup_steps, sld_threshold, sld_momentum_scale, sld_mom_beta: see :class:`langevin.SafeGuidance`.
        safety_concept: what this call steers away from; the pipeline's own ``safety_concept`` if None.
    """

    sld_guidance_scale: Annotated[float, Range(0)] = 1000
    sld_warmup_steps: Annotated[int, Range(0)] = 10
    sld_threshold: float = 0.01
    sld_momentum_scale: Annotated[float, Range(0)] = 0.3
    sld_mom_beta: Share = 0.4
    safety_concept: str | list[str] | None = None

    positional = (
        "prompt height width num_inference_steps guidance_scale negative_prompt num_images_per_prompt eta generator "
        "latents ip_adapter_image output_type return_dict callback callback_steps sld_guidance_scale sld_warmup_steps "
        "sld_threshold sld_momentum_scale sld_mom_beta"
    )


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

    @takes(SafeGiven)
    def __call__(self, given: SafeGiven) -> Any:
        """Make pictures."""
        concept = given.safety_concept or self.safety_concept
        guider = SafeGuidance(
            concept,
            given.sld_guidance_scale,
            given.sld_warmup_steps,
            given.sld_threshold,
            given.sld_momentum_scale,
            given.sld_mom_beta,
        )
        return self.generate(given.changed(safety_concept=concept), [guider])

    def hand_out(self, call: Call, pixels: Tensor) -> StableDiffusionSafePipelineOutput:
        given: Any = call.given
        flags, unsafe = self.flagged(pixels), None
        if flags is not None and any(flags):
            unsafe = call.deliver(blacked_out(pixels, [not flagged for flagged in flags]))
            pixels = pixels if given.safety_action == "flag" else blacked_out(pixels, flags)
        applied = given.safety_concept if given.sld_guidance_scale > 1 and given.guidance_scale > 1 else None
        return StableDiffusionSafePipelineOutput(call.deliver(pixels), flags, unsafe, applied)
