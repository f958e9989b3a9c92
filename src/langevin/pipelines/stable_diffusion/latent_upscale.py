"""Latents twice as high and wide, with the latent upscaler for Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from langevin.checks import Count
from langevin.codecs.base import check_size
from langevin.guiders.latent_upscale import EnlargedLatents
from langevin.models.preconditioned import LatentUpscalerNetwork
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import TextGiven
from langevin.prompts.readers.base import Given as Embeds
from langevin.prompts.readers.base import How, Reading
from langevin.prompts.readers.pooled import PooledReader


@dataclass(frozen=True, kw_only=True)
class LatentUpscaleGiven(TextGiven):
    """Arguments of :class:`StableDiffusionLatentUpscalePipeline`.

    Args:
        prompt: what the picture shows.
        image: PIL, numpy or tensor in [0, 1], or a list of them; or latents of Stable Diffusion.
        height, width: pixels of the result; twice the picture's if None.
        guidance_scale: how strictly to follow the prompt; 1 is off, and 0 leaves the prompt out altogether. None: what
            the checkpoint names, else 9.
        prompt_embeds, negative_prompt_embeds: embeddings in the texts' place, ``(prompts, tokens, dim)``, taken before
            the text encoder's final norm.
        pooled_prompt_embeds, negative_pooled_prompt_embeds: its pooled output, ``(prompts, dim)``, which goes with
            them.
    """

    image: Any = field(default=None, kw_only=False)
    num_inference_steps: Count = 75
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None

    positional = (
        "prompt image num_inference_steps guidance_scale negative_prompt generator latents prompt_embeds "
        "negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds output_type return_dict callback "
        "callback_steps"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            pooled = name.replace("prompt", "pooled_prompt")
            if (getattr(self, name) is None) != (getattr(self, pooled) is None):
                raise ValueError(f"one of {name} and {pooled} is given alone; give both, from the same texts")


_OUTPUTS = {"encoder_hidden_states": "tokens", "pooled": "pooler_output"}


def _pair(tokens: Tensor | None, pooled: Tensor | None) -> Embeds:
    return None if tokens is None or pooled is None else dict(zip(_OUTPUTS, (tokens, pooled), strict=True))


class StableDiffusionLatentUpscalePipeline(StableDiffusionBase):
    """Pictures twice as high and wide, made in Stable Diffusion's latents (Crowson et al. 2023, the upscaler published
    as ``stabilityai/sd-x2-latent-upscaler``, in the terms of Karras et al. 2022, 2206.00364).

    Example:
        >>> from langevin import StableDiffusionLatentUpscalePipeline
        >>> pipe = StableDiffusionLatentUpscalePipeline.from_pretrained("stabilityai/sd-x2-latent-upscaler")
        >>> small = text_to_image("a white cat", output_type="latent", seed=7).images
        >>> image = pipe("a white cat", image=small, guidance_scale=0, num_inference_steps=20, seed=7).images[0]
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: list[str] = []
    _exclude_from_cpu_offload: list[str] = []
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here
    _resample = "bicubic"

    guides_itself = False  # its time_cond_proj_dim is for something else

    @takes_parts
    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any) -> None:
        pass

    @property
    def network(self) -> Any:
        return LatentUpscalerNetwork(self.unet)

    @property
    def reader(self) -> PooledReader:
        dtype = self.text_encoder.dtype if self.text_encoder is not None else self.unet.dtype
        how = dict(device=self._execution_device, dtype=dtype)
        return PooledReader(self.tokenizer, self.text_encoder, normed=False, outputs=_OUTPUTS, **how)

    def given_embeds(self, given: Any) -> tuple[Embeds, Embeds]:
        return (
            _pair(given.prompt_embeds, given.pooled_prompt_embeds),
            _pair(given.negative_prompt_embeds, given.negative_pooled_prompt_embeds),
        )

    def encode_prompt(  # type: ignore[override]
        self,
        prompt: str | list[str] | None,
        device: torch.device | str | None = None,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """What the call takes instead of texts: embeddings of prompt and negative prompt, ``(prompts, tokens, dim)``
        each, and the pooled ones of both, ``(prompts, dim)``.
        """
        branches = self.reader.encode(
            prompt,
            negative_prompt,
            How(),
            _pair(prompt_embeds, pooled_prompt_embeds),
            _pair(negative_prompt_embeds, negative_pooled_prompt_embeds),
            with_negative=do_classifier_free_guidance,
        )
        told = [branches.get(branch, {}).get(name) for name in _OUTPUTS for branch in ("positive", "negative")]
        return tuple(None if one is None else one.to(device or self._execution_device) for one in told)

    def read(self, given: Any, steps: int) -> Reading:
        if given.guidance_scale == 0 and given.prompt is not None:
            given = given.changed(prompt="" if isinstance(given.prompt, str) else [""] * len(given.prompt))
        return super().read(given, steps)

    def output(self, images: Any, flagged: list[bool] | None = None) -> Any:
        return ImagePipelineOutput(images)

    @takes(LatentUpscaleGiven)
    def __call__(self, given: LatentUpscaleGiven) -> Any:
        """Make pictures larger."""
        if given.guidance_scale is None:
            given = given.changed(guidance_scale=self.call_default("guidance_scale", 9.0))
        factor = 2 * self.vae_scale_factor
        check_size((given.height or factor, given.width or factor), factor)
        pixels = self.pixels(given.image, *(side and side // 2 for side in (given.height, given.width)))
        height, width = self.size_of(pixels)
        return self.generate(given, [EnlargedLatents(pixels)], (2 * height, 2 * width))
