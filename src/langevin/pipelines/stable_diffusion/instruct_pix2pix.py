"""Editing by instruction with Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from langevin.checks import Count
from langevin.guiders.base import Setup
from langevin.guiders.instruct import ImageChannels, InstructGuidance
from langevin.pipelines.callbacks import View, guided
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, TextGiven, middle


@dataclass(frozen=True, kw_only=True)
class InstructGiven(TextGiven):
    """Arguments of :class:`StableDiffusionInstructPix2PixPipeline`.

    Args:
        prompt: the instruction, such as ``make it blue``.
        image: PIL, numpy or tensor in [0, 1], or a list of them; or latents, not scaled. The result has its size,
            unless ``height`` and ``width`` say another.
        guidance_scale: how strictly to follow the instruction; 1 or less turns all guidance off. None: what the
            checkpoint names, else 7.5.
        image_guidance_scale: how strictly to keep to the picture; 1 is not more than the network does by itself,
            and less than 1 turns all guidance off. None: what the checkpoint names, else 1.5.
    """

    image: Any = field(default=None, kw_only=False)
    image_guidance_scale: float | None = None
    num_inference_steps: Count = 100

    positional = f"prompt image num_inference_steps {middle('image_guidance_scale')} {CALLBACKS} cross_attention_kwargs"


class ThreeBranches(View):
    """A picture as the reference shows it: for the branches positive, negative and unconditional, one after the other,
    while there is guidance. Each may be given another.
    """

    def show(self, setup: Setup, tensor: Tensor) -> Tensor:
        return torch.cat([*self._parts(setup).values()]) if guided(setup) else tensor

    def take(self, setup: Setup, value: Tensor) -> Tensor:
        before, branches = self._parts(setup), setup.branches
        after = dict(zip(before, value.split(setup.shape[0]), strict=False))
        moved = {name for name, picture in after.items() if not torch.equal(picture, before[name])}
        for name in after.keys() - {"positive"}:
            if name in moved or (name == "negative" and "positive" in moved):  # else it would follow the positive one
                channels = {**branches[name].get("channels", {}), "image_latents": after[name]}
                branches[name] = {**branches[name], "channels": channels}
        return after["positive"]

    @staticmethod
    def _parts(setup: Setup) -> dict[str, Tensor]:
        """The picture that each branch is told."""
        parts: dict[str, Tensor] = {}
        for name in ("positive", "negative", "unconditional"):
            if name in setup.branches:
                parts[name] = setup.told.to(name, setup.branches[name])["channels"]["image_latents"]
        parts.setdefault("unconditional", torch.zeros_like(parts["positive"]))
        return parts


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

    _callback_views = {"image_latents": ThreeBranches()}

    @takes(InstructGiven)
    def __call__(self, given: InstructGiven) -> Any:
        """Change pictures. Another kind of guidance among ``guiders`` takes the place of
        :class:`~langevin.InstructGuidance`.
        """
        defaults = {"guidance_scale": 7.5, "image_guidance_scale": 1.5}
        asked = {name: getattr(given, name) for name in defaults}
        scales = {n: self.call_default(n, d) if asked[n] is None else asked[n] for n, d in defaults.items()}
        pixels = self.pixels(given.image, given.height, given.width)
        parts = [InstructGuidance(*scales.values()), ImageChannels(pixels)]
        return self.generate(given.changed(**scales), parts, self.size_of(pixels))
