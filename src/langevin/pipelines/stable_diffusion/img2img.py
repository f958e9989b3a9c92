"""Image to image with Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from langevin.checks import Share
from langevin.guiders.image_start import ImageStart
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, TextGiven, middle


@dataclass(frozen=True, kw_only=True)
class ImageToImageGiven(TextGiven):
    """Arguments of :class:`StableDiffusionImg2ImgPipeline`.

    Args:
        image: PIL, numpy or tensor in [0, 1], or a list of them; or latents. The result has its size, unless
            ``height`` and ``width`` say another.
        strength: how far to go from it, 0 to 1: the share of the steps that are done.
        num_inference_steps: of a whole run; ``strength`` of them are done.
    """

    image: Any = field(default=None, kw_only=False)
    strength: Share = field(default=0.8, kw_only=False)

    positional = (
        f"prompt image strength num_inference_steps timesteps sigmas {middle(without='latents')} "
        f"cross_attention_kwargs clip_skip {CALLBACKS}"
    )


class StableDiffusionImg2ImgPipeline(StableDiffusionBase):
    """Pictures from a picture and a prompt (SDEdit: Meng et al. 2022, 2108.01073).

    Example:
        >>> from langevin import StableDiffusionImg2ImgPipeline
        >>> pipe = StableDiffusionImg2ImgPipeline.from_pretrained("langevin/shapes")
        >>> image = pipe("a blue circle", image=picture, strength=0.6, num_inference_steps=20, seed=7).images[0]
    """

    @takes(ImageToImageGiven)
    def __call__(self, given: ImageToImageGiven) -> Any:
        """Make pictures."""
        pixels = self.pixels(given.image, given.height, given.width)
        return self.generate(given, [ImageStart(pixels, given.strength)], self.size_of(pixels))
