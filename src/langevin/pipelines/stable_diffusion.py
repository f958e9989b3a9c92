"""Text to image with Stable Diffusion: Rombach et al. 2022 (2112.10752)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from langevin.guiders.base import Guider
from langevin.pipelines.stable_diffusion_base import StableDiffusionBase, StableDiffusionPipelineOutput


class StableDiffusionPipeline(StableDiffusionBase):
    """Text to image with Stable Diffusion 1.x and 2.x checkpoints.

    Example:
        >>> from langevin import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("langevin/shapes")
        >>> pipe("a red circle", num_inference_steps=20, seed=7).images[0].save("circle.png")
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        seed: int | Sequence[int] | None = None,
        guiders: Sequence[Guider] = (),
        control: Sequence[Guider] = (),
        pair_images: bool = False,
        clip_skip_negative: bool = False,
        prompt_weighting: str = "compel",
        long_prompts: Literal["chunk", "cut"] = "chunk",
        safety_action: Literal["blackout", "flag"] = "blackout",
        callback: Callable | None = None,
        callback_steps: int | None = None,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Make pictures from prompts.

        Args:
            prompt: a text, or one per picture. Or give ``prompt_embeds``, ``(prompts, tokens, dim)``. A text may change
                during the run, as in ``a [red:blue:0.4] cat``; see :mod:`langevin.prompts.editing`.
            height, width: pixels; multiples of ``vae_scale_factor``. The model's own size if None.
            num_inference_steps: more steps, finer pictures. ``timesteps`` or ``sigmas`` may name them instead.
            guidance_scale: how strictly to follow the prompt; 1 is off. None: what the checkpoint names, else 7.5.
            negative_prompt: what to move away from.
            num_images_per_prompt: pictures of each prompt.
            eta: share of fresh noise in each step, for schedulers that know it (DDIM: 0 to 1).
            generator: one for the whole batch, or a list with one per picture.
            latents: start from this instead of noise, ``(pictures, channels, height / factor, width / factor)``.
            output_type: "pil", "np" ``(pictures, height, width, 3)`` in [0, 1], "pt" ``(pictures, 3, height, width)``
                in [0, 1], or "latent".
            guidance_rescale: φ of Lin et al. 2023; 0 is off.
            clip_skip: how many of the text encoder's last layers to leave out.
            callback_on_step_end: ``(call, i, t, tensors) -> tensors`` after every network call; see
                :class:`langevin.pipelines.call.Call`. ``callback(i, t, latents)`` is the older form.
            seed: picture k is made from ``seed + k``, or give a list with one per picture. Made alone with its
                own seed, a picture is the same.
            guiders: see :mod:`langevin.guiders`; they stack on classifier-free guidance.
            control: control networks with their pictures, ``[Control(net, picture, scale=0.8)]``; see
                :class:`langevin.Control`.
            pair_images: where several pictures are given for as many prompts, and ``num_images_per_prompt`` is above
                1: True gives each prompt its own picture; False repeats the list as a whole, as the reference does.
            clip_skip_negative: apply ``clip_skip`` to the negative prompt too.
            prompt_weighting: how prompts are read. "compel": ``a (red cat)1.3 with a hat--``, see
                :mod:`langevin.prompts.compel`. "a1111", "comfyui": ``a (red cat:1.3) with a [hat]`` and the numbers
                of these web UIs. "none": every character is text.
            long_prompts: "chunk" reads a prompt longer than the text encoder's window (77 tokens) in several windows;
                prompt and negative prompt get the same number. "cut" reads the first one only, as the reference does,
                and names the words lost in a warning.
            safety_action: what to do with pictures that the safety checker flags: black them out, or only say so.

        Raises:
            ValueError: for arguments that do not fit together, in one line that says what is allowed.
            PromptSyntaxError: for a prompt that its grammar does not allow; a ValueError too.
        """
        return self._generate({name: value for name, value in locals().items() if name != "self"})
