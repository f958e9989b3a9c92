"""Pictures like a picture, with Stable Diffusion told CLIP's embedding of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langevin.checks import Count
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import LatentPipeline
from langevin.pipelines.stable_diffusion.given import FamilyGiven, Side
from langevin.prompts.readers.base import Reading
from langevin.prompts.readers.vision import VisionReader


@dataclass(frozen=True, kw_only=True)
class VariationGiven(FamilyGiven):
    """Arguments of :class:`StableDiffusionImageVariationPipeline`.

    Args:
        image: what the pictures shall be like: PIL, an array ``(height, width, 3)`` in [0, 1] or to 255, or a list of
            them; or a tensor as ``prepared`` says, ``(n, 3, height, width)``.
        guidance_scale: how strictly to keep to the picture; 1 is off. None: what the checkpoint names, else 7.5.
        num_images_per_prompt: variations of each picture.
        prepared: True takes a tensor to be in the form that the feature extractor gives, as the reference does; False
            to be a picture in [0, 1], which it has still to see.
    """

    image: Any = field(default=None, kw_only=False)
    height: Side | None = field(default=None, kw_only=False)
    width: Side | None = field(default=None, kw_only=False)
    num_inference_steps: Count = field(default=50, kw_only=False)
    prepared: bool = True

    positional = (
        "image height width num_inference_steps guidance_scale num_images_per_prompt eta generator latents "
        "output_type return_dict callback callback_steps"
    )


class StableDiffusionImageVariationPipeline(LatentPipeline):
    """Variations of a picture: Stable Diffusion (Rombach et al. 2022, 2112.10752) trained on to be told one token,
    CLIP's embedding of a picture (Radford et al. 2021, 2103.00020). The negative branch is told zeros.

    Example:
        >>> from langevin import StableDiffusionImageVariationPipeline
        >>> pipe = StableDiffusionImageVariationPipeline.from_pretrained("lambdalabs/sd-image-variations-diffusers")
        >>> images = pipe(picture, num_images_per_prompt=3, num_inference_steps=20, seed=7).images
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"
    _optional_components = ["safety_checker"]
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here

    @takes_parts
    def __init__(
        self,
        vae: Any,
        image_encoder: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        requires_safety_checker: bool = True,
    ) -> None:
        """``image_encoder`` is a ``CLIPVisionModelWithProjection`` of transformers."""

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {"image": True}

    def read(self, given: Any, steps: int) -> Reading:
        if given.image is None:
            raise ValueError("image is missing; give a PIL image or a list of them, or a tensor as prepared says")
        if self.image_encoder is None:
            raise ValueError("this pipeline has no image_encoder; give a CLIPVisionModelWithProjection")
        reader = VisionReader(
            self.image_encoder, self.feature_extractor, device=self._execution_device, dtype=self.image_encoder.dtype
        )
        return reader.read(
            given.image,
            pictures=given.num_images_per_prompt,
            with_negative=self.has_negative(given),
            prepared=given.prepared,
        )

    @takes(VariationGiven)
    def __call__(self, given: VariationGiven) -> Any:
        """Make pictures."""
        return self.generate(given)
