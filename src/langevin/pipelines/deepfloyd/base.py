"""What DeepFloyd IF's pipelines share: their parts, their prompts, and what is done with pictures at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from langevin.codecs.base import Codec
from langevin.codecs.pixels import PixelCodec
from langevin.guiders.base import Guider, Setup
from langevin.outputs import IFPipelineOutput
from langevin.pipelines.call import Call
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase, blacked_out
from langevin.prompts.captions import clean_caption as cleaned
from langevin.prompts.captions import plain_caption
from langevin.prompts.readers.t5 import T5Reader


class IFBase(StableDiffusionBase):
    """A T5 that reads, and a UNet that denoises pixels and says how much it varies."""

    model_cpu_offload_seq = "text_encoder->unet"
    _optional_components = ["tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker"]
    _exclude_from_cpu_offload = ["watermarker"]
    _scheduler_needs: Mapping[str, Any] = {}

    vae: Any = None  # there is none

    @takes_parts
    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        watermarker: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        """``watermarker.apply_watermark(images, side)`` marks PIL images. Every part but ``unet`` and ``scheduler`` may
        be None; ``unet`` too where only :meth:`encode_prompt` is wanted.
        """

    @property
    def codec(self) -> Codec:
        return PixelCodec(self._channels)

    @property
    def _channels(self) -> int:
        """Of the pictures."""
        return self.unet.config.in_channels

    @property
    def vae_scale_factor(self) -> int:
        return 1

    def generate(self, given: Any, parts: Sequence[Guider] = (), size: Sequence[int] | None = None) -> Any:
        if given.output_type == "pt":  # what the next stage takes is x as it is
            given = given.changed(output_type="latent")
        return super().generate(given, parts, size)

    # -- texts

    def reads(self, given: Any) -> T5Reader:
        return self._reader(given.clean_caption)

    @property
    def reader(self) -> T5Reader:
        return self._reader(False)

    def _reader(self, clean_caption: bool) -> T5Reader:
        clean = cleaned if clean_caption else plain_caption
        dtype = (self.unet or self.text_encoder).dtype
        return T5Reader(self.tokenizer, self.text_encoder, clean=clean, device=self._execution_device, dtype=dtype)

    def encode_prompt(  # type: ignore[override]
        self,
        prompt: str | list[str] | None,
        do_classifier_free_guidance: bool = True,
        num_images_per_prompt: int = 1,
        device: torch.device | str | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        clean_caption: bool = False,
        prompt_weighting: str = "compel",
        long_prompts: Literal["chunk", "cut"] = "chunk",
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings of prompt and negative prompt, ``(prompts · pictures, 77, dim)`` each, which every stage takes."""
        return super().encode_prompt(
            prompt,
            device,
            num_images_per_prompt,
            do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_weighting=prompt_weighting,
            long_prompts=long_prompts,
            reader=self._reader(clean_caption),
        )

    # -- pictures

    def hand_over(self, call: Call, setup: Setup, x: Tensor) -> Any:
        pixels = call.decode(setup, x)
        given: Any = call.given
        return self.output(call.deliver(pixels)) if given.output_type == "latent" else self.hand_out(call, pixels)

    def hand_out(self, call: Call, pixels: Tensor) -> Any:
        """Pictures as the call gives them, after the safety checker has seen them and the watermarker marked them."""
        given: Any = call.given
        flags: Any = self.flagged(pixels)  # of each picture: unsafe? marked by somebody?
        if flags is not None and given.safety_action == "blackout":
            pixels = blacked_out(pixels, list(map(any, flags)))
        images = call.deliver(pixels, num_images_per_prompt=None)
        if self.watermarker is not None and given.output_type == "pil":
            images = self.watermarker.apply_watermark(images, self.unet.config.sample_size)
        return self.output(images, flags)

    def output(self, images: Any, flagged: Any = None) -> Any:
        unsafe, marked = (None, None) if flagged is None else map(list, zip(*flagged, strict=True))
        return IFPipelineOutput(images, unsafe, marked)
