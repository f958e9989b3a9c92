"""Text to image with Versatile Diffusion: Xu, Wang, Zhang, Wang & Shi 2022 (2211.08332)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langevin.models.versatile import text_flow
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.text_to_image import TextToImageGiven
from langevin.pipelines.versatile.base import AFTER, VersatileBase
from langevin.prompts.readers.pooled import AlignedReader


@dataclass(frozen=True, kw_only=True)
class VersatileTextGiven(TextToImageGiven):
    """Arguments of :class:`VersatileDiffusionTextToImagePipeline`."""

    positional = f"prompt height width num_inference_steps {AFTER} callback callback_steps"


class VersatileDiffusionTextToImagePipeline(VersatileBase, StableDiffusionBase):
    """Text to image with Versatile Diffusion (Xu, Wang, Zhang, Wang & Shi 2022, 2211.08332): the image UNet with the
    text UNet's attention, told every token of the text where CLIP has pictures too.

    Example:
        >>> from langevin import VersatileDiffusionTextToImagePipeline
        >>> pipe = VersatileDiffusionTextToImagePipeline.from_pretrained("shi-labs/versatile-diffusion")
        >>> pipe.remove_unused_weights()
        >>> image = pipe("an astronaut riding a horse on mars", num_inference_steps=20, seed=7).images[0]
    """

    _optional_components = ["text_unet"]
    _reader_class = AlignedReader

    @takes_parts
    def __init__(
        self, tokenizer: Any, text_encoder: Any, image_unet: Any, text_unet: Any, vae: Any, scheduler: Any
    ) -> None:
        """``text_encoder`` is a ``CLIPTextModelWithProjection``. Without ``text_unet``, the image UNet's own attention
        is taken to look at texts.
        """

    @property
    def network(self) -> Any:
        return text_flow(self.image_unet, self.text_unet)

    def remove_unused_weights(self) -> None:
        """Keep only what this pipeline needs: the image UNet gives up its own attention for the text UNet's. Other
        pipelines that share the two keep them as they are.
        """
        self.image_unet = self.network
        self.text_unet = None

    @takes(VersatileTextGiven)
    def __call__(self, given: VersatileTextGiven) -> Any:
        """Make pictures from prompts.

        Raises:
            ValueError: for arguments that do not fit together, in one line that says what is allowed.
        """
        return self.generate(given)
