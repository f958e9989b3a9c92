"""Text to image with prompts in many languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langevin.outputs import AltDiffusionPipelineOutput
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, middle
from langevin.pipelines.stable_diffusion.text_to_image import TextToImageGiven
from langevin.prompts.readers.xlm_r import XLMRReader


@dataclass(frozen=True, kw_only=True)
class AltDiffusionGiven(TextToImageGiven):
    """Arguments of :class:`AltDiffusionPipeline`."""

    positional = (
        f"prompt height width num_inference_steps timesteps sigmas {middle(without='ip_adapter_image_embeds')} "
        f"cross_attention_kwargs guidance_rescale clip_skip {CALLBACKS}"
    )


class AltDiffusionBase(StableDiffusionBase):
    """Stable Diffusion that is told what XLM-R reads, by a
    :class:`~langevin.RobertaSeriesModelWithTransformation`, instead of CLIP (Chen et al. 2022, 2211.06679).
    """

    _reader_class = XLMRReader

    def output(self, images: Any, flagged: list[bool] | None = None) -> Any:
        return AltDiffusionPipelineOutput(images, flagged)


class AltDiffusionPipeline(AltDiffusionBase):
    """Text to image with prompts in many languages (AltDiffusion: Chen et al. 2022, 2211.06679; Ye et al. 2023,
    2308.09991).

    Example:
        >>> from langevin import AltDiffusionPipeline
        >>> pipe = AltDiffusionPipeline.from_pretrained("BAAI/AltDiffusion-m9")
        >>> image = pipe("一个红色的圆", num_inference_steps=20, seed=7).images[0]
    """

    @takes(AltDiffusionGiven)
    def __call__(self, given: AltDiffusionGiven) -> Any:
        """Make pictures from prompts."""
        return self.generate(given)
