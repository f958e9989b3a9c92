"""A picture changed from what one prompt says to what another does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langevin.checks import Share
from langevin.guiders.cycle import CycleNoise
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import TextGiven, check_texts


@dataclass(frozen=True, kw_only=True)
class CycleGiven(TextGiven):
    """Arguments of :class:`CycleDiffusionPipeline`.

    Args:
        prompt: what the new picture shows.
        source_prompt: what the given one shows; a text, or one for each prompt.
        image: PIL, numpy or tensor in [0, 1], or a list of them; or latents. The result has its size, unless
            ``height`` and ``width`` say another.
        strength: how far to go from it, 0 to 1: the share of the steps that are done.
        source_guidance_scale: how strictly the given picture follows its prompt on the way; 1 is off.
        eta: share of fresh noise in each step, above 0: it is what carries the picture over.
        source_as_noise: see :class:`langevin.CycleNoise`; the reference's True matters to networks that predict v.
    """

    source_prompt: str | Sequence[str] | None = field(default=None, kw_only=False)
    image: Any = field(default=None, kw_only=False)
    strength: Share = field(default=0.8, kw_only=False)
    source_guidance_scale: float = 1
    eta: Share = 0.1
    source_as_noise: bool = True

    positional = (
        "prompt source_prompt image strength num_inference_steps guidance_scale source_guidance_scale "
        "num_images_per_prompt eta generator prompt_embeds output_type return_dict callback callback_steps "
        "cross_attention_kwargs clip_skip"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_texts("source_prompt", self.source_prompt)
        if self.source_prompt is None:
            raise ValueError("source_prompt is missing; say what the given picture shows")


class CycleDiffusionPipeline(StableDiffusionBase):
    """Pictures changed by two prompts (CycleDiffusion: Wu & De la Torre 2022, 2210.05559), with DDIM.

    Each of several pictures is what it is when made alone; the reference mixes them up.

    Example:
        >>> from langevin import CycleDiffusionPipeline, DDIMScheduler
        >>> pipe = CycleDiffusionPipeline.from_pretrained("langevin/shapes")
        >>> pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        >>> call = dict(num_inference_steps=20, seed=7, source_as_noise=False)  # this network predicts v
        >>> image = pipe("a blue circle", "a red circle", picture, 0.8, **call).images[0]
    """

    _scheduler_needs: Mapping[str, Any] = {"steps_offset": 1}

    @takes(CycleGiven)
    def __call__(self, given: CycleGiven) -> Any:
        """Change pictures."""
        pixels = self.pixels(given.image, given.height, given.width)
        guider = CycleNoise(
            pixels, given.strength, given.source_prompt or "", given.source_guidance_scale, given.source_as_noise
        )
        return self.generate(given, [guider], self.size_of(pixels))
