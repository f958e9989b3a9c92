"""Pictures four times as large, with latent diffusion: Rombach et al. 2022 (2112.10752), section 4.4."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from langevin.checks import Count, Share
from langevin.codecs.vq import latent_codec
from langevin.guiders.low_resolution import SmallPicture
from langevin.media.images import VaeImageProcessor, pictures
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call
from langevin.pipelines.given import Given, takes
from langevin.pipelines.parts import takes_parts


@dataclass(frozen=True, kw_only=True)
class LDMSuperResolutionGiven(Given):
    """Arguments of :class:`LDMSuperResolutionPipeline`.

    Args:
        image: the small picture: PIL or an array in [0, 1], or a list of them, whose sides are rounded down to
            multiples of 32; or a tensor as ``prepared`` says, ``(n, 3, height, width)``.
        batch_size: how many pictures to make; as many as there are small ones, if that is more.
        num_inference_steps: more steps, finer pictures.
        eta: share of fresh noise in each step, for schedulers that know it (DDIM: 0 to 1).
        latents: start from this instead of noise, ``(pictures, channels, height, width)``.
        prepared: True takes a tensor to be in [-1, 1], as the reference does; False in [0, 1].
        scale_image: see :class:`langevin.SmallPicture`; False is right for schedulers that count in noise levels, such
            as Euler's, and True is what the reference does.
    """

    image: Any = field(default=None, kw_only=False)
    batch_size: Count = field(default=1, kw_only=False)
    num_inference_steps: Count = field(default=100, kw_only=False)
    eta: Share = field(default=0.0, kw_only=False)
    latents: Tensor | None = None
    prepared: bool = True
    scale_image: bool = True

    positional = "image batch_size num_inference_steps eta generator output_type return_dict"


class LDMSuperResolutionPipeline(DiffusionPipeline):
    """Pictures four times as large: latents of a small picture's size, beside which the network sees it.

    Guidance has no place here, since nothing is told that could be left out.

    Example:
        >>> from langevin import LDMSuperResolutionPipeline
        >>> pipe = LDMSuperResolutionPipeline.from_pretrained("CompVis/ldm-super-resolution-4x-openimages")
        >>> image = pipe(small, num_inference_steps=100, eta=1.0, seed=7).images[0]
    """

    model_cpu_offload_seq = "unet->vqvae"
    _callback_tensor_inputs = ["latents"]

    @takes_parts
    def __init__(self, vqvae: Any, unet: Any, scheduler: Any) -> None:
        """``vqvae``: a :class:`~langevin.VQModel` or an :class:`~langevin.AutoencoderKL`; latents are not scaled."""

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {"image": True}

    @takes(LDMSuperResolutionGiven)
    def __call__(self, given: LDMSuperResolutionGiven) -> Any:
        """Make pictures larger."""
        small = self.pixels(given.image, given.prepared)
        count, batch = len(small), max(len(small), given.batch_size)
        if batch % count:
            raise ValueError(f"batch_size is {given.batch_size} for {count} pictures; give as many, or a multiple")
        call = Call(self, given, batch)
        codec = latent_codec(self.vqvae, scale=1.0)
        setup = call.stage(
            self.unet,
            self.scheduler,
            (batch, codec.channels, *small.shape[2:]),
            guiders=[SmallPicture(small, given.scale_image), *given.guiders],
            steps=given.num_inference_steps,
            options={"eta": given.eta},
            codec=codec,
            latents=given.latents,
            pair_images=True,
        )
        return ImagePipelineOutput(call.deliver(call.decode(setup, call.denoise(setup)), batch_size=None))

    def pixels(self, image: Any, prepared: bool) -> Tensor:
        """The small pictures, ``(n, channels, height, width)`` in [-1, 1]."""
        if image is None:
            raise ValueError("image is missing; give a PIL image, an array, a tensor as prepared says, or a list")
        if not (prepared and isinstance(image, Tensor)):
            return VaeImageProcessor(vae_scale_factor=32).preprocess(pictures(image))
        small = image[None] if image.ndim == 3 else image
        channels = self.unet.config.in_channels - latent_codec(self.vqvae).channels
        if small.ndim != 4 or small.shape[1] != channels:
            raise ValueError(f"image is {tuple(image.shape)}; (n, {channels}, height, width) in [-1, 1] is needed")
        return small
