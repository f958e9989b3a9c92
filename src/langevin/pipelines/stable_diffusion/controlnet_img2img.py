"""Image to image under control pictures, with Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from langevin.checks import Share
from langevin.guiders.image_start import ImageStart
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.controlnet import ControlGiven, ControlNetBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, middle


@dataclass(frozen=True, kw_only=True)
class ControlNetImg2ImgGiven(ControlGiven):
    """Arguments of :class:`StableDiffusionControlNetImg2ImgPipeline`.

    Args:
        image: PIL, numpy or tensor in [0, 1], or a list of them; or latents. The result has its size, unless
            ``height`` and ``width`` say another.
        control_image: the control picture: PIL, numpy or tensor in [0, 1]; or a list with one per prompt. For several
            control networks a list with such an entry for each, or a list of lists, one per prompt, each with one
            picture for each network. It is brought to the result's size.
        strength: how far to go from the picture, 0 to 1: the share of the steps that are done.
        num_inference_steps: of a whole run; ``strength`` of them are done.
        latents: the noise to begin with, ``(pictures, channels, height / factor, width / factor)``.
    """

    image: Any = field(default=None, kw_only=False)
    control_image: Any = field(default=None, kw_only=False)
    strength: Share = 0.8
    controlnet_conditioning_scale: Any = 0.8

    positional = (
        f"prompt image control_image height width strength num_inference_steps {middle()} cross_attention_kwargs "
        "controlnet_conditioning_scale guess_mode control_guidance_start control_guidance_end clip_skip "
        f"{CALLBACKS}"
    )


class StableDiffusionControlNetImg2ImgPipeline(ControlNetBase):
    """Pictures from a picture, a prompt and a control picture (ControlNet: Zhang, Rao & Agrawala 2023, 2302.05543).

    Example:
        >>> from langevin import ControlNetModel, StableDiffusionControlNetImg2ImgPipeline
        >>> net = ControlNetModel.from_pretrained("lllyasviel/sd-controlnet-canny")
        >>> pipe = StableDiffusionControlNetImg2ImgPipeline.from_pretrained("./stable-diffusion", controlnet=net)
        >>> image = pipe("a blue circle", image=picture, control_image=edges, strength=0.6, seed=7).images[0]
    """

    _callback_tensor_inputs = [*StableDiffusionBase._callback_tensor_inputs, "control_image"]

    @takes(ControlNetImg2ImgGiven)
    def __call__(self, given: ControlNetImg2ImgGiven) -> Any:
        """Make pictures."""
        pixels = self.pixels(given.image, given.height, given.width)
        return self.generate(given, [*self.controls(given), ImageStart(pixels, given.strength)], self.size_of(pixels))
