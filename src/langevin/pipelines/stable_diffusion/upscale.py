"""Pictures four times as large, with Stable Diffusion's upscaler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor

from langevin.checks import Count, Range
from langevin.codecs.base import Codec, check_size
from langevin.codecs.vae import VaeCodec
from langevin.guiders.base import Guider
from langevin.guiders.low_resolution import LowResolution
from langevin.pipelines.call import Call
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import TextGiven, middle


@dataclass(frozen=True, kw_only=True)
class UpscaleGiven(TextGiven):
    """Arguments of :class:`StableDiffusionUpscalePipeline`.

    Args:
        prompt: what the picture shows.
        image: the small picture: PIL, numpy or tensor in [0, 1], or a list of them. Its sides are rounded down to
            multiples of the autoencoder's factor (4), and its pixels become the result's latents.
        height, width: pixels of the result, multiples of 16; four times the picture's if None.
        guidance_scale: how strictly to follow the prompt; 1 is off. None: what the checkpoint names, else 9.
        noise_level: how much noise is added to the small picture, a timestep of ``low_res_scheduler`` up to the
            pipeline's ``max_noise_level``. More leaves more to the network.
    """

    image: Any = field(default=None, kw_only=False)
    num_inference_steps: Count = 75
    noise_level: Annotated[int, Range(0)] = 20

    positional = (
        "prompt image num_inference_steps "
        f"{middle('noise_level', 'ip_adapter_image ip_adapter_image_embeds')} callback callback_steps "
        "cross_attention_kwargs clip_skip"
    )


class UpscaleCodec(VaeCodec):
    """An autoencoder that may be of another dtype than the latents already when they are divided by its scale."""

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents.to(self.vae.dtype))  # which may be kept in float32, since it overflows in float16


class StableDiffusionUpscalePipeline(StableDiffusionBase):
    """Pictures four times as large: latents of a small picture's size, which is shown to the network with noise added
    (Rombach et al. 2022, 2112.10752, section 4.4; Ho et al. 2021, 2106.15282).

    Large pictures go in parts: ``guiders=[Windows(64, 32, smooth=True)]`` and ``pipe.enable_vae_tiling()``. In float16
    the autoencoder overflows: ``pipe.vae.to(torch.float32)``.

    ``scaling_factor`` is the one of the published upscaler's latents, which older configs do not name. It counts in the
    autoencoder's place, as in the reference; None takes the autoencoder's own.

    Example:
        >>> from langevin import StableDiffusionUpscalePipeline
        >>> pipe = StableDiffusionUpscalePipeline.from_pretrained("stabilityai/stable-diffusion-x4-upscaler")
        >>> image = pipe("a white cat", image=small, num_inference_steps=20, seed=7).images[0]
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["watermarker", "safety_checker", "feature_extractor"]
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here
    _resample = "bicubic"
    _usual_guidance = 9.0

    scaling_factor: float | None = 0.08333

    @takes_parts
    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        low_res_scheduler: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        watermarker: Any = None,
        max_noise_level: int = 350,
    ) -> None:
        """``low_res_scheduler`` noises the small picture. ``watermarker.apply_watermark(images)`` marks PIL images."""

    @property
    def codec(self) -> Codec:
        return super().codec if self.vae is None else UpscaleCodec(self.vae, self.scaling_factor)

    @takes(UpscaleGiven)
    def __call__(self, given: UpscaleGiven) -> Any:
        """Make pictures larger."""
        return self.make(given)

    def prepared(self, given: UpscaleGiven) -> tuple[list[Guider], Sequence[int] | None]:
        most = self.config.max_noise_level
        if given.noise_level > most:
            raise ValueError(f"noise_level is {given.noise_level}; this upscaler knows 0 to {most}")
        factor = self.vae_scale_factor
        check_size((given.height or factor**2, given.width or factor**2), factor**2)
        pixels = self.pixels(given.image, *(side and side // factor for side in (given.height, given.width)))
        height, width = pixels.shape[-2:]
        shown = LowResolution(pixels, given.noise_level, self.low_res_scheduler)
        return [shown], (height * factor, width * factor)

    def hand_out(self, call: Call, pixels: Tensor) -> Any:
        made = super().hand_out(call, pixels)
        if self.watermarker is not None and call.given.output_type == "pil":
            made.images = self.watermarker.apply_watermark(made.images)
        return made
