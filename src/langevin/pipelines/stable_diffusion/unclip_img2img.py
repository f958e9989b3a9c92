"""Pictures that show what another picture shows, with Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.given import Side, middle
from langevin.pipelines.stable_diffusion.unclip import NO_ADAPTERS, UnCLIPBase, UnCLIPGiven
from langevin.prompts.readers.vision import vectors


@dataclass(frozen=True, kw_only=True)
class StableUnCLIPImg2ImgGiven(UnCLIPGiven):
    """Arguments of :class:`StableUnCLIPImg2ImgPipeline`.

    Args:
        image: what the pictures are about: PIL, numpy in [0, 1], a tensor as the feature extractor leaves it, or a list
            with one for each prompt.
        prompt: a text, or one per picture; an empty one for each image if there is none.
        height, width: pixels, multiples of ``vae_scale_factor``; the model's own size if None.
        image_embeds: CLIP's vectors in the image's place, ``(n, dim)``.
    """

    image: Any = field(default=None, kw_only=False)
    prompt: Any = field(default=None, kw_only=False)
    height: Side | None = field(default=None, kw_only=False)
    width: Side | None = field(default=None, kw_only=False)
    image_embeds: Tensor | None = None

    positional = (
        f"image prompt height width num_inference_steps {middle(without=NO_ADAPTERS)} callback callback_steps "
        "cross_attention_kwargs noise_level image_embeds clip_skip"
    )

    def _check_told(self) -> None:
        if (self.image is None) == (self.image_embeds is None):
            given = "neither" if self.image is None else "both"
            raise ValueError(f"{given} of image and image_embeds given; give exactly one")
        if self.prompt is None and self.prompt_embeds is None:
            pictures = self.image if self.image_embeds is None else self.image_embeds
            several = isinstance(pictures, (list, tuple)) or getattr(pictures, "ndim", 0) in (2, 4)
            object.__setattr__(self, "prompt", [""] * len(pictures) if several else "")
        super()._check_told()


class StableUnCLIPImg2ImgPipeline(UnCLIPBase):
    """Variations of a picture, and of a prompt with it (Stable unCLIP, after Ramesh et al. 2022, 2204.06125).

    Example:
        >>> from langevin import StableUnCLIPImg2ImgPipeline
        >>> pipe = StableUnCLIPImg2ImgPipeline.from_pretrained("stabilityai/stable-diffusion-2-1-unclip")
        >>> image = pipe(picture, "on a beach", num_inference_steps=20, seed=7).images[0]
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"

    @takes_parts
    def __init__(
        self,
        feature_extractor: Any,
        image_encoder: Any,
        image_normalizer: Any,
        image_noising_scheduler: Any,
        tokenizer: Any,
        text_encoder: Any,
        unet: Any,
        scheduler: Any,
        vae: Any,
    ) -> None:
        """``image_encoder``: a ``CLIPVisionModelWithProjection`` of transformers."""

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {"image": True}

    @takes(StableUnCLIPImg2ImgGiven)
    def __call__(self, given: StableUnCLIPImg2ImgGiven) -> Any:
        """Make pictures."""
        if given.guidance_scale is None:
            given = given.changed(guidance_scale=self.call_default("guidance_scale", 10.0))
        embeds = given.image_embeds
        if embeds is None:
            prepared = True if isinstance(given.image, Tensor) else None
            device = self._execution_device
            embeds = vectors(self.image_encoder, self.feature_extractor, given.image, prepared, device)
        return self.generate(given, [self.about(embeds, given)])
