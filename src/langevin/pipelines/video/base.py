"""What the pipelines that make videos share: their parts, and the course of a call whose x is frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from langevin.checks import Count
from langevin.codecs.base import Codec
from langevin.codecs.frames import FramesCodec
from langevin.guiders.base import Setup
from langevin.media.images import VaeImageProcessor
from langevin.outputs import TextToVideoSDPipelineOutput
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import TextGiven

LAST = (
    "negative_prompt eta generator latents prompt_embeds negative_prompt_embeds output_type return_dict callback "
    "callback_steps cross_attention_kwargs clip_skip"
)


@dataclass(frozen=True, kw_only=True)
class VideoGiven(TextGiven):
    """What every pipeline of the family takes.

    Args:
        num_images_per_prompt: videos of each prompt.
        latents: start from this instead of noise, ``(videos, channels, frames, height / factor, width / factor)``.
        output_type: "np" ``(batch, frames, height, width, channels)`` or "pt" ``(batch, frames, channels, height,
            width)``, both in [0, 1]; "pil", a list of :class:`langevin.Video`, which know the settings that made them
            and save themselves; or "latent", the latents as they are.
        decode_chunk_size: how many frames the autoencoder sees at once; fewer take less memory. All if None.
    """

    output_type: Literal["pil", "np", "pt", "latent"] = "np"  # type: ignore[assignment]
    decode_chunk_size: Count | None = None


class VideoPipeline(StableDiffusionBase):
    """The parts of a text-to-video model, with the course of a call."""

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: list[str] = []
    _exclude_from_cpu_offload: list[str] = []
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here
    _guidance_scale: float  # where neither the call nor the checkpoint names one

    @takes_parts
    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any) -> None:
        config = self.image_processor.config
        self.video_processor = VaeImageProcessor(False, config.vae_scale_factor, config.vae_latent_channels)

    @property
    def codec(self) -> Codec:
        return FramesCodec(super().codec)

    def scaled(self, given: Any) -> Any:
        if given.guidance_scale is None:
            return given.changed(guidance_scale=self.call_default("guidance_scale", self._guidance_scale))
        return given

    def stage(self, *args: Any, **more: Any) -> Setup:
        setup = super().stage(*args, **more)
        _, given, *_ = args
        setup.codec.chunk = given.decode_chunk_size  # type: ignore[attr-defined]  # it is this call's own
        return setup

    def output(self, images: Any, flagged: list[bool] | None = None) -> Any:
        return TextToVideoSDPipelineOutput(images)
