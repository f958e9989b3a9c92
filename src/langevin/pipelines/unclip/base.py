"""What unCLIP's pipelines share: the decoder's stage, and that of super-resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from langevin.checks import Count
from langevin.codecs.pixels import PixelCodec
from langevin.guiders.base import Guider
from langevin.guiders.projected_embedding import ProjectedEmbedding
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call, compose_guiders
from langevin.pipelines.given import Given
from langevin.pipelines.unclip.prior import guidance_of
from langevin.prompts.readers.base import Reading


@dataclass(frozen=True, kw_only=True)
class DecoderGiven(Given):
    """What calls of unCLIP's pipelines take.

    Args:
        num_images_per_prompt: pictures of each prompt, or of each picture given.
        decoder_num_inference_steps: of the decoder's run, which makes a small picture.
        super_res_num_inference_steps: of the run that enlarges it. The last step has a network of its own.
        decoder_latents: the noise that the decoder begins with, ``(pictures, channels, side, side)``.
        super_res_latents: the noise that the larger picture begins with.
        decoder_guidance_scale: how strictly the decoder follows what it is told; 1 is off.
        guiders: see :mod:`langevin.guiders`; they act on the decoder, which makes what the picture shows, and stack on
            its guidance.
    """

    num_images_per_prompt: Count = 1
    decoder_num_inference_steps: Count = 25
    super_res_num_inference_steps: Count = 7
    decoder_latents: Tensor | None = None
    super_res_latents: Tensor | None = None
    decoder_guidance_scale: float = 8.0


class UnCLIPDecoding(DiffusionPipeline):
    """From a picture's vector and a text to a picture, by a decoder and two networks that enlarge: the course behind
    the vector.
    """

    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def generate(self, call: Call, given: DecoderGiven, text: Reading, embeds: Tensor) -> Any:
        """The pictures of a call: decode, enlarge, deliver."""
        large = self.enlarged(call, given, self.small(call, given, text, embeds))
        return ImagePipelineOutput(call.deliver(large, num_images_per_prompt=None))

    def small(self, call: Call, given: DecoderGiven, text: Reading, embeds: Tensor) -> Tensor:
        """The decoder's stage: pictures ``(pictures, channels, height, width)`` in about [-1, 1]."""
        codec = PixelCodec(self.decoder.config.in_channels)
        edits: list[Guider] = [] if text.guider is None else [text.guider]
        told, scale = ProjectedEmbedding(embeds, self.text_proj), given.decoder_guidance_scale
        stage = call.stage(
            self.decoder,
            self.decoder_scheduler,
            codec.shape(text.batch, sides(self.decoder)),
            text.branches,
            [*edits, told, *compose_guiders(scale, 0.0, [guidance_of(text, scale), *given.guiders])],
            steps=given.decoder_num_inference_steps,
            codec=codec,
            latents=given.decoder_latents,
            name="decoder",
            encode_text=text.again,
            pictures=given.num_images_per_prompt,
        )
        return call.decode(stage, call.denoise(stage))

    def enlarged(self, call: Call, given: DecoderGiven, pixels: Tensor) -> Tensor:
        """The last stage: the same pictures in more pixels. The networks see the small ones, made as large, beside x
        (Ramesh et al. 2022, 2204.06125, section 2.1; Ho et al. 2021, 2106.15282).
        """
        first, last = self.super_res_first, self.super_res_last
        size = sides(first)
        pixels = pixels.clamp(-1, 1).to(first.dtype)
        shown = F.interpolate(pixels, size=list(size), mode="bicubic", antialias=True)
        run = self.super_res_scheduler.plan(given.super_res_num_inference_steps)

        def network(x: Tensor, timestep: Any, **told: Any) -> Any:
            return (last if timestep == run.timesteps[-1] else first)(x, timestep, **told)

        codec = PixelCodec(first.config.in_channels - shown.shape[1])
        stage = call.stage(
            network,
            self.super_res_scheduler,
            codec.shape(len(shown), size),
            run=run,
            steps=given.super_res_num_inference_steps,
            codec=codec,
            told={"channels": {"small": shown}},
            dtype=first.dtype,
            latents=given.super_res_latents,
            name="super-resolution",
        )
        return call.decode(stage, call.denoise(stage))


def sides(network: Any) -> tuple[int, int]:
    """Height and width that a network was made for."""
    size = network.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)
