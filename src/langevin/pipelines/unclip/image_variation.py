"""Pictures like a picture, with unCLIP's decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from langevin.pipelines.call import Call
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.unclip.base import DecoderGiven, UnCLIPDecoding
from langevin.pipelines.unclip.prior import clip_reader
from langevin.prompts.readers.vision import vectors


@dataclass(frozen=True, kw_only=True)
class UnCLIPVariationGiven(DecoderGiven):
    """Arguments of :class:`UnCLIPImageVariationPipeline`.

    Args:
        image: what the pictures shall be like: PIL, an array ``(height, width, 3)`` in [0, 1] or to 255, or a list of
            them; or a tensor as ``prepared`` says, ``(n, 3, height, width)``.
        image_embeddings: CLIP's vectors in the image's place, ``(n, dim)``.
        prepared: True takes a tensor to be in the form that the feature extractor gives, as the reference does; False
            to be a picture in [0, 1], which it has still to see.
    """

    image: Any = field(default=None, kw_only=False)
    image_embeddings: Tensor | None = None
    prepared: bool = True

    positional = (
        "image num_images_per_prompt decoder_num_inference_steps super_res_num_inference_steps generator "
        "decoder_latents super_res_latents image_embeddings decoder_guidance_scale output_type return_dict"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.image is None) == (self.image_embeddings is None):
            given = "neither" if self.image is None else "both"
            raise ValueError(f"{given} of image and image_embeddings given; give exactly one")


class UnCLIPImageVariationPipeline(UnCLIPDecoding):
    """Variations of a picture: its CLIP vector takes the place of a prior's, and the text is empty (unCLIP: Ramesh et
    al. 2022, 2204.06125, section 3.1).

    Example:
        >>> from langevin import UnCLIPImageVariationPipeline
        >>> pipe = UnCLIPImageVariationPipeline.from_pretrained("kakaobrain/karlo-v1-alpha-image-variations")
        >>> images = pipe(picture, num_images_per_prompt=3, seed=7).images
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->text_proj->decoder->super_res_first->super_res_last"
    _exclude_from_cpu_offload = ["text_proj"]

    @takes_parts
    def __init__(
        self,
        decoder: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_proj: Any,
        feature_extractor: Any,
        image_encoder: Any,
        super_res_first: Any,
        super_res_last: Any,
        decoder_scheduler: Any,
        super_res_scheduler: Any,
    ) -> None:
        """``image_encoder``: a ``CLIPVisionModelWithProjection`` of transformers."""

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {"image": True}

    @takes(UnCLIPVariationGiven)
    def __call__(self, given: UnCLIPVariationGiven) -> Any:
        """Make pictures."""
        embeds = given.image_embeddings
        if embeds is None:
            device = self._execution_device
            embeds = vectors(self.image_encoder, self.feature_extractor, given.image, given.prepared, device)
        texts = clip_reader(self.tokenizer, self.text_encoder, self._execution_device, self.decoder.dtype)
        text = texts.read(
            [""] * len(embeds),
            pictures=given.num_images_per_prompt,
            with_negative=given.decoder_guidance_scale > 1 or bool(given.guiders),
            long_prompts="cut",
        )
        return self.generate(Call(self, given, text.batch), given, text, embeds)
