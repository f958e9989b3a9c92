"""Pictures like a picture with Versatile Diffusion: Xu, Wang, Zhang, Wang & Shi 2022 (2211.08332)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langevin.models.versatile import image_flow
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.image_variation import VariationGiven
from langevin.pipelines.versatile.base import AFTER, VersatileBase
from langevin.prompts.readers.base import Reading


@dataclass(frozen=True, kw_only=True)
class VersatileVariationGiven(VariationGiven):
    """Arguments of :class:`VersatileDiffusionImageVariationPipeline`.

    Args:
        image: what the pictures shall be like: PIL, an array ``(height, width, 3)`` or a tensor ``(3, height, width)``
            in [0, 1] or to 255, or several of them. (The reference divides tensors in [0, 1] by 255 once more.)
        negative_prompt: a picture to move away from, or one for each; None is one without anything in it.
        prepared: True takes a tensor to be in the form that the feature extractor gives.
        grey_negative: True makes the picture without anything in it grey, as is meant; False all but black, as it is in
            the reference with today's feature extractors.
    """

    negative_prompt: Any = None
    prepared: bool = False
    grey_negative: bool = False

    positional = f"image height width num_inference_steps {AFTER} callback callback_steps"

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = self.negative_prompt if isinstance(self.negative_prompt, (list, tuple)) else [self.negative_prompt]
        if any(isinstance(one, str) for one in listed):
            raise ValueError("negative_prompt is a text; this pipeline looks at pictures, so give one or None")


class VersatileDiffusionImageVariationPipeline(VersatileBase):
    """Variations of a picture with Versatile Diffusion (Xu, Wang, Zhang, Wang & Shi 2022, 2211.08332), which is told
    all places of CLIP's picture model.

    Example:
        >>> from langevin import VersatileDiffusionImageVariationPipeline
        >>> pipe = VersatileDiffusionImageVariationPipeline.from_pretrained("shi-labs/versatile-diffusion")
        >>> images = pipe(picture, num_images_per_prompt=3, num_inference_steps=20, seed=7).images
    """

    @takes_parts
    def __init__(
        self, image_feature_extractor: Any, image_encoder: Any, image_unet: Any, vae: Any, scheduler: Any
    ) -> None:
        """``image_encoder`` is a ``CLIPVisionModelWithProjection`` of transformers."""

    @property
    def network(self) -> Any:
        return image_flow(self.image_unet)

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {"image": True, "negative_prompt": True}

    def read(self, given: Any, steps: int) -> Reading:
        return self.read_pictures(given, given.negative_prompt, "encoder_hidden_states")

    @takes(VersatileVariationGiven)
    def __call__(self, given: VersatileVariationGiven) -> Any:
        """Make pictures.

        Raises:
            ValueError: for arguments that do not fit together, in one line that says what is allowed.
        """
        return self.generate(given)
