"""Inpainting under control pictures, with Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langevin.pipelines.callbacks import View
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.controlnet import ControlGiven, ControlNetBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, middle
from langevin.pipelines.stable_diffusion.inpaint import (
    MASK_VIEWS,
    InpaintBase,
    InpaintGiven,
    StableDiffusionInpaintPipeline,
)


@dataclass(frozen=True, kw_only=True)
class ControlNetInpaintGiven(InpaintGiven, ControlGiven):
    """Arguments of :class:`StableDiffusionControlNetInpaintPipeline`.

    Args:
        control_image: the control picture: PIL, numpy or tensor in [0, 1]; or a list with one per prompt. For several
            control networks a list with such an entry for each, or a list of lists, one per prompt, each with one
            picture for each network. It is brought to the result's size.
        height, width: pixels of the result; the picture's own, rounded down to what the model takes, if None.
    """

    control_image: Any = field(default=None, kw_only=False)
    controlnet_conditioning_scale: Any = 0.5

    positional = (
        "prompt image mask_image control_image height width padding_mask_crop strength num_inference_steps "
        f"{middle()} cross_attention_kwargs controlnet_conditioning_scale guess_mode control_guidance_start "
        f"control_guidance_end clip_skip {CALLBACKS}"
    )


class StableDiffusionControlNetInpaintPipeline(InpaintBase, ControlNetBase):
    """Make anew what a mask covers, under a control picture (ControlNet: Zhang, Rao & Agrawala 2023, 2302.05543).

    Example:
        >>> from langevin import ControlNetModel, StableDiffusionControlNetInpaintPipeline
        >>> net = ControlNetModel.from_pretrained("lllyasviel/control_v11p_sd15_inpaint")
        >>> pipe = StableDiffusionControlNetInpaintPipeline.from_pretrained("./stable-diffusion", controlnet=net)
        >>> image = pipe("a blue circle", picture, mask_image=mask, control_image=edges, seed=7).images[0]
    """

    _callback_tensor_inputs = [*StableDiffusionInpaintPipeline._callback_tensor_inputs, "control_image"]

    @property
    def _callback_views(self) -> Mapping[str, View]:
        return {**super()._callback_views, **MASK_VIEWS}

    @takes(ControlNetInpaintGiven)
    def __call__(self, given: ControlNetInpaintGiven) -> Any:
        """Make pictures."""
        size = self.size_of(self.pixels(given.image, given.height, given.width))
        return self.inpaint(given, self.controls(given), size)
