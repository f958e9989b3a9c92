"""Text to image with latent diffusion, as it was before Stable Diffusion: Rombach et al. 2022 (2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langevin.checks import Count
from langevin.codecs.base import Codec
from langevin.codecs.vq import latent_codec
from langevin.guiders.classifier_free import AnyGuidance
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import FamilyGiven, Side, TextGiven
from langevin.prompts.readers.base import TextReader
from langevin.prompts.readers.bert import BertReader


@dataclass(frozen=True, kw_only=True)
class LDMTextGiven(TextGiven):
    """Arguments of :class:`LDMTextToImagePipeline`.

    Args:
        guidance_scale: how strictly to follow the prompt; 1 is off, 0 follows the negative prompt alone. None: what the
            checkpoint names, else 1.
    """

    height: Side | None = field(default=None, kw_only=False)
    width: Side | None = field(default=None, kw_only=False)
    num_inference_steps: Count = field(default=50, kw_only=False)

    positional = "prompt height width num_inference_steps guidance_scale eta generator latents output_type return_dict"


class LDMTextToImagePipeline(StableDiffusionBase):
    """Text to image with latent diffusion: a text encoder over BERT's tokens, trained with the UNet.

    ``bert`` is a :class:`~langevin.LDMBertModel`, or any text encoder of transformers, such as CLIP's; ``vqvae`` an
    :class:`~langevin.AutoencoderKL`, as in the published model, or a :class:`~langevin.VQModel`. Schedulers that count
    in noise levels (Euler's, LMS) work here; the reference does not scale for them.

    Example:
        >>> from langevin import LDMTextToImagePipeline
        >>> pipe = LDMTextToImagePipeline.from_pretrained("CompVis/ldm-text2im-large-256")
        >>> image = pipe("a painting of a squirrel eating a burger", eta=0.3, guidance_scale=6, seed=7).images[0]
    """

    model_cpu_offload_seq = "bert->unet->vqvae"
    _optional_components: list[str] = []
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here
    _least_side = 0

    @takes_parts
    def __init__(self, vqvae: Any, bert: Any, tokenizer: Any, unet: Any, scheduler: Any) -> None:
        pass

    @property
    def vae(self) -> Any:
        """The autoencoder, by the name that the family has for it."""
        return self.vqvae

    @property
    def text_encoder(self) -> Any:
        """The text encoder, by the name that the family has for it."""
        return self.bert

    @property
    def codec(self) -> Codec:
        return latent_codec(self.vqvae)

    @property
    def reader(self) -> TextReader:
        """What turns texts into branches of conditions."""
        return BertReader(
            self.tokenizer,
            self.bert,
            window=min(BertReader.window, getattr(self.tokenizer, "model_max_length", BertReader.window)),
            device=self._execution_device,
            dtype=self.unet.dtype,
        )

    def has_negative(self, given: FamilyGiven) -> bool:
        return given.guidance_scale != 1 or super().has_negative(given)

    def output(self, images: Any, flagged: list[bool] | None = None) -> Any:
        return ImagePipelineOutput(images)

    @takes(LDMTextGiven)
    def __call__(self, given: LDMTextGiven) -> Any:
        """Make pictures from prompts."""
        scale = given.guidance_scale
        scale = self.call_default("guidance_scale", 1.0) if scale is None else scale
        return self.generate(given.changed(guidance_scale=scale), [AnyGuidance(scale)])
