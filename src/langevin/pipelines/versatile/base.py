"""What Versatile Diffusion's pipelines share: parts under names of their own, and pictures that are looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import LatentPipeline, StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import middle
from langevin.prompts.readers.base import Reading
from langevin.prompts.readers.pooled import AlignedReader
from langevin.prompts.readers.vision import VisionReader

AFTER = middle(without="prompt_embeds negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds")
"""The reference's arguments from ``guidance_scale`` to ``return_dict``."""


class VersatileBase(LatentPipeline):
    """A pipeline whose UNet is called ``image_unet``. No call changes any part."""

    model_cpu_offload_seq = "text_encoder->image_encoder->image_unet->vae"
    _exclude_from_cpu_offload: list[str] = []
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here
    _usual_side = 64

    @property
    def unet(self) -> Any:
        """The image UNet, by the name that the family has for it."""
        return self.image_unet

    def output(self, images: Any, flagged: list[bool] | None = None) -> Any:
        return ImagePipelineOutput(images)

    def read_pictures(self, given: Any, negative: Any, name: str) -> Reading:
        """The pictures of a call as branches of conditions, under the ``name`` of the network's argument.

        Args:
            given: the call's arguments.
            negative: pictures for the negative branch; one without anything in it where None.
        """
        if given.image is None:
            raise ValueError("image is missing; give a PIL image or a list of them, or a tensor in [0, 1]")
        place = dict(device=self._execution_device, dtype=self.unet.dtype)
        reader = VisionReader(self.image_encoder, self.image_feature_extractor, outputs={name: "aligned"}, **place)
        return reader.read(
            given.image,
            empty_picture(self.image_feature_extractor, given.grey_negative) if negative is None else negative,
            pictures=given.num_images_per_prompt,
            with_negative=self.has_negative(given),
            prepared=given.prepared,
            negative_prepared=True if negative is None else None,
        )


class AllParts(VersatileBase, StableDiffusionBase):
    """A pipeline with all parts of Versatile Diffusion."""

    _reader_class = AlignedReader
    _optional_components: list[str] = []

    @takes_parts
    def __init__(
        self,
        tokenizer: Any,
        image_feature_extractor: Any,
        text_encoder: Any,
        image_encoder: Any,
        image_unet: Any,
        text_unet: Any,
        vae: Any,
        scheduler: Any,
    ) -> None:
        """``text_encoder`` and ``image_encoder`` are a ``CLIPTextModelWithProjection`` and a
        ``CLIPVisionModelWithProjection`` of transformers.
        """


def empty_picture(feature_extractor: Any, grey: bool) -> Any:
    """A picture without anything in it, in the image encoder's form: grey, or all but black.

    The reference means grey, the middle of [0, 1]. Today's feature extractors take it for the middle of whole numbers
    to 255, and divide it by 255 once more.
    """
    middle = np.full((512, 512, 3), 127, dtype=np.uint8)
    factor = getattr(feature_extractor, "rescale_factor", 1 / 255) * (1 if grey else 1 / 255)
    return feature_extractor(images=middle, rescale_factor=factor, return_tensors="pt").pixel_values
