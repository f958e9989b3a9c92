"""Text to image with Stable Diffusion: Rombach et al. 2022 (2112.10752)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from langevin.checks import Count
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, Side, TextGiven, middle


@dataclass(frozen=True, kw_only=True)
class TextToImageGiven(TextGiven):
    """Arguments of :class:`StableDiffusionPipeline`."""

    height: Side | None = field(default=None, kw_only=False)
    width: Side | None = field(default=None, kw_only=False)
    num_inference_steps: Count = field(default=50, kw_only=False)

    positional = (
        f"prompt height width num_inference_steps timesteps sigmas {middle()} "
        f"cross_attention_kwargs guidance_rescale clip_skip {CALLBACKS}"
    )


class StableDiffusionPipeline(StableDiffusionBase):
    """Text to image with Stable Diffusion 1.x and 2.x checkpoints.

    Example:
        >>> from langevin import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("langevin/shapes")
        >>> pipe("a red circle", num_inference_steps=20, seed=7).images[0].save("circle.png")
    """

    @takes(TextToImageGiven)
    def __call__(self, given: TextToImageGiven) -> Any:
        """Make pictures from prompts.

        Raises:
            ValueError: for arguments that do not fit together, in one line that says what is allowed.
            PromptSyntaxError: for a prompt that its grammar does not allow; a ValueError too.
        """
        return self.generate(given)
