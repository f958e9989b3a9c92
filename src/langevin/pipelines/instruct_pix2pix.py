"""Editing by instruction with Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from langevin.guiders.instruct import ImageChannels, InstructGuidance
from langevin.pipelines.stable_diffusion import StableDiffusionPipeline
from langevin.pipelines.stable_diffusion_base import StableDiffusionBase
from langevin.signatures import also_takes


class StableDiffusionInstructPix2PixPipeline(StableDiffusionBase):
    """A picture changed by an instruction (InstructPix2Pix: Brooks, Holynski & Efros 2023, 2211.09800).

    Example:
        >>> from langevin import StableDiffusionInstructPix2PixPipeline
        >>> pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained("timbrooks/instruct-pix2pix")
        >>> image = pipe("make it blue", image=picture, num_inference_steps=20, seed=7).images[0]
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = [*StableDiffusionBase._callback_tensor_inputs, "image_latents"]
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here

    @torch.no_grad()
    @also_takes(StableDiffusionPipeline.__call__)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        num_inference_steps: int = 100,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        **common: Any,
    ) -> Any:
        """Change pictures.

        Args:
            prompt: the instruction, such as ``make it blue``.
            image: PIL, numpy or tensor in [0, 1], or a list of them; or latents, not scaled. The result has its size,
                unless ``height`` and ``width`` say another.
            guidance_scale: how strictly to follow the instruction; 1 or less turns all guidance off. None: what the
                checkpoint names, else 7.5.
            image_guidance_scale: how strictly to keep to the picture; 1 is not more than the network does by itself,
                and less than 1 turns all guidance off. None: what the checkpoint names, else 1.5.

        The other arguments are those of :class:`~langevin.StableDiffusionPipeline`. Another kind of guidance among
        ``guiders`` takes the place of :class:`~langevin.InstructGuidance`.
        """
        if guidance_scale is None:
            guidance_scale = self.call_default("guidance_scale", 7.5)
        if image_guidance_scale is None:
            image_guidance_scale = self.call_default("image_guidance_scale", 1.5)
        pixels = self._pixels(image, common["height"], common["width"])
        arguments = {**common, **self._size_of(pixels), "prompt": prompt, "image": image}
        arguments["num_inference_steps"] = num_inference_steps
        arguments |= {"guidance_scale": guidance_scale, "image_guidance_scale": image_guidance_scale}
        return self._generate(
            arguments, [InstructGuidance(guidance_scale, image_guidance_scale), ImageChannels(pixels)]
        )
