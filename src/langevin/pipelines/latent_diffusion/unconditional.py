"""Unconditional pictures with latent diffusion: Rombach et al. 2022 (2112.10752), section 4.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langevin.checks import Count, Share
from langevin.codecs.base import Codec
from langevin.codecs.vq import latent_codec
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.unconditional import UnconditionalGiven, UnconditionalPipeline


@dataclass(frozen=True, kw_only=True)
class LDMGiven(UnconditionalGiven):
    """Arguments of :class:`LDMPipeline`.

    Args:
        eta: 0 is deterministic, 1 has the noise of DDPM, for schedulers that know it.
    """

    eta: Share = 0.0
    num_inference_steps: Count = 50

    positional = "batch_size generator eta num_inference_steps output_type return_dict"


class LDMPipeline(UnconditionalPipeline):
    """Unconditional pictures, made in the latents of an autoencoder with a codebook.

    Example:
        >>> from langevin import LDMPipeline
        >>> pipe = LDMPipeline.from_pretrained("CompVis/ldm-celebahq-256")
        >>> images = pipe(batch_size=4, num_inference_steps=50, seed=7).images
    """

    model_cpu_offload_seq = "unet->vqvae"

    @takes_parts
    def __init__(self, vqvae: Any, unet: Any, scheduler: Any) -> None:
        """``vqvae``: a :class:`~langevin.VQModel`, or an :class:`~langevin.AutoencoderKL`."""

    @property
    def codec(self) -> Codec:
        return latent_codec(self.vqvae)

    @takes(LDMGiven)
    def __call__(self, given: LDMGiven) -> Any:
        """Make ``batch_size`` pictures."""
        return self.generate(given, eta=given.eta)
