"""Image to image with prompts in many languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langevin.guiders.image_start import ImageStart
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.alt_diffusion import AltDiffusionBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, middle
from langevin.pipelines.stable_diffusion.img2img import ImageToImageGiven


@dataclass(frozen=True, kw_only=True)
class AltDiffusionImg2ImgGiven(ImageToImageGiven):
    """Arguments of :class:`AltDiffusionImg2ImgPipeline`."""

    positional = (
        "prompt image strength num_inference_steps timesteps sigmas "
        f"{middle(without='latents ip_adapter_image_embeds')} cross_attention_kwargs clip_skip {CALLBACKS}"
    )


class AltDiffusionImg2ImgPipeline(AltDiffusionBase):
    """Pictures from a picture and a prompt in one of many languages (AltDiffusion: Chen et al. 2022, 2211.06679).

    Example:
        >>> from langevin import AltDiffusionImg2ImgPipeline
        >>> pipe = AltDiffusionImg2ImgPipeline.from_pretrained("BAAI/AltDiffusion-m9")
        >>> image = pipe("un cercle bleu", image=picture, strength=0.6, num_inference_steps=20, seed=7).images[0]
    """

    @takes(AltDiffusionImg2ImgGiven)
    def __call__(self, given: AltDiffusionImg2ImgGiven) -> Any:
        """Make pictures."""
        pixels = self.pixels(given.image, given.height, given.width)
        return self.generate(given, [ImageStart(pixels, given.strength)], self.size_of(pixels))
