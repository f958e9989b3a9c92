"""Image to image with Stable Diffusion."""

from __future__ import annotations

from typing import Any

import torch

from langevin.guiders.image_start import ImageStart
from langevin.pipelines.stable_diffusion import StableDiffusionPipeline
from langevin.pipelines.stable_diffusion_base import StableDiffusionBase
from langevin.signatures import also_takes


class StableDiffusionImg2ImgPipeline(StableDiffusionBase):
    """Pictures from a picture and a prompt (SDEdit: Meng et al. 2022, 2108.01073).

    Example:
        >>> from langevin import StableDiffusionImg2ImgPipeline
        >>> pipe = StableDiffusionImg2ImgPipeline.from_pretrained("langevin/shapes")
        >>> image = pipe("a blue circle", image=picture, strength=0.6, num_inference_steps=20, seed=7).images[0]
    """

    @torch.no_grad()
    @also_takes(StableDiffusionPipeline.__call__)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        **common: Any,
    ) -> Any:
        """Make pictures.

        Args:
            image: PIL, numpy or tensor in [0, 1], or a list of them; or latents. The result has its size, unless
                ``height`` and ``width`` say another.
            strength: how far to go from it, 0 to 1: the share of the steps that are done.
            num_inference_steps: of a whole run; ``strength`` of them are done.

        The other arguments are those of :class:`~langevin.StableDiffusionPipeline`.
        """
        pixels = self._pixels(image, common["height"], common["width"])
        size = self._size_of(pixels)
        arguments = {**common, **size, "prompt": prompt, "image": image, "strength": strength}
        arguments["num_inference_steps"] = num_inference_steps
        return self._generate(arguments, [ImageStart(pixels, strength)])
