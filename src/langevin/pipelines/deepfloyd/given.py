"""The arguments of DeepFloyd IF's pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from langevin.checks import Count, Range
from langevin.pipelines.stable_diffusion.given import TextGiven

MIDDLE = "num_inference_steps timesteps guidance_scale negative_prompt num_images_per_prompt"
END = "eta generator prompt_embeds negative_prompt_embeds output_type return_dict callback callback_steps"
"""The arguments that all calls of the reference have one after the other."""
SMALL_END = f"{END} clean_caption cross_attention_kwargs"
LARGE_END = f"{END} cross_attention_kwargs noise_level clean_caption"

NoiseLevel = Annotated[int, Range(0)]


@dataclass(frozen=True, kw_only=True)
class IFGiven(TextGiven):
    """What IF's pipelines take.

    Args:
        height, width: pixels; those that the model was made for if None.
        guidance_scale: how strictly to follow the prompt; 1 is off. None: what the checkpoint names, else the
            pipeline's own, as in the reference.
        latents: start from this instead of noise, ``(pictures, 3, height, width)``.
        output_type: "pil", "np" ``(batch, height, width, channels)`` in [0, 1]; or "pt", which the next stage takes:
            ``(batch, channels, height, width)`` in about [-1, 1], seen by no safety checker; "latent" is the same.
        clean_caption: take out of the prompts what is no description, addresses, tags, numbers of articles, as it was
            taken out of the captions in training; see :mod:`langevin.prompts.captions`. Needs
            ``pip install langevin[captions]``.
        pair_images: where several pictures are given for as many prompts, and ``num_images_per_prompt`` is above 1:
            True gives each prompt its own picture, as the reference does here; False repeats the list as a whole.
    """

    num_inference_steps: Count = 100
    output_type: Literal["pil", "np", "pt", "latent"] = "pil"
    clean_caption: bool = True
    pair_images: bool = True
