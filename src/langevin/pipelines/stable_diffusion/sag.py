"""Text to image with Stable Diffusion and self-attention guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from langevin.checks import Range
from langevin.guiders.self_attention import SelfAttentionGuidance
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import middle
from langevin.pipelines.stable_diffusion.text_to_image import TextToImageGiven


@dataclass(frozen=True, kw_only=True)
class SelfAttentionGiven(TextToImageGiven):
    """Arguments of :class:`StableDiffusionSAGPipeline`.

    Args:
        sag_scale: how strongly to move away from what the network says of a picture that is blurred where it looks
            most; 0 is off, and more than 1 is seldom better.
    """

    sag_scale: Annotated[float, Range(0)] = 0.75

    positional = (
        f"prompt height width num_inference_steps {middle('sag_scale')} "
        "callback callback_steps cross_attention_kwargs clip_skip"
    )


class StableDiffusionSAGPipeline(StableDiffusionBase):
    """Pictures from a prompt with self-attention guidance (Hong et al. 2023, 2210.00939).

    Example:
        >>> from langevin import StableDiffusionSAGPipeline
        >>> pipe = StableDiffusionSAGPipeline.from_pretrained("langevin/shapes")
        >>> image = pipe("a red circle", sag_scale=0.75, num_inference_steps=20, seed=7).images[0]
    """

    _scheduler_needs: Mapping[str, Any] = {}

    @takes(SelfAttentionGiven)
    def __call__(self, given: SelfAttentionGiven) -> Any:
        """Make pictures."""
        return self.generate(given, [SelfAttentionGuidance(given.sag_scale)])
