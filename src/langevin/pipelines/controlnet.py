"""Text to image under control pictures, with Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from langevin.guiders.base import Setup, Step
from langevin.guiders.classifier_free import ClassifierFreeGuidance
from langevin.guiders.control import Control, control_pixels, one_per_row
from langevin.models.multi_controlnet import MultiControlNetModel
from langevin.pipelines.stable_diffusion import StableDiffusionPipeline
from langevin.pipelines.stable_diffusion_base import StableDiffusionBase
from langevin.signatures import also_takes


class StableDiffusionControlNetPipeline(StableDiffusionBase):
    """Text to image under a control picture (ControlNet: Zhang, Rao & Agrawala 2023, 2302.05543).

    Example:
        >>> from langevin import ControlNetModel, StableDiffusionControlNetPipeline
        >>> net = ControlNetModel.from_pretrained("lllyasviel/sd-controlnet-canny")
        >>> pipe = StableDiffusionControlNetPipeline.from_pretrained("./stable-diffusion", controlnet=net)
        >>> image = pipe("a red circle", image=edges, num_inference_steps=20, seed=7).images[0]
    """

    _callback_tensor_inputs = [*StableDiffusionBase._callback_tensor_inputs, "image"]
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        """``controlnet``: a :class:`~langevin.ControlNetModel`, or several: a list, or a
        :class:`~langevin.MultiControlNetModel`.
        """
        shared = (vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder)
        super().__init__(*shared, requires_safety_checker=requires_safety_checker)
        if isinstance(controlnet, (list, tuple)):
            controlnet = MultiControlNetModel(controlnet)
        self.register_modules(controlnet=controlnet)

    @torch.no_grad()
    @also_takes(StableDiffusionPipeline.__call__)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        *,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        guess_mode: bool = False,
        control_guidance_start: float | Sequence[float] = 0.0,
        control_guidance_end: float | Sequence[float] = 1.0,
        **common: Any,
    ) -> Any:
        """Make pictures.

        Args:
            image: the control picture: PIL, numpy or tensor in [0, 1]; or a list with one per prompt. For several
                control networks a list with such an entry for each, or a list of lists, one per prompt, each with one
                picture for each network.
            height, width: pixels; the (first) control picture's, rounded down to what the model takes, if None.
            controlnet_conditioning_scale: how much counts what the control network says; a list for several.
            guess_mode: let the control network alone say what the picture shows: the negative branch is not told. Use
                a ``guidance_scale`` of 3 to 5.
            control_guidance_start, control_guidance_end: the share of the run in which the control network is asked;
                lists for several.

        The other arguments are those of :class:`~langevin.StableDiffusionPipeline`.
        """
        arguments = {name: value for name, value in locals().items() if name not in ("self", "common")}
        several = hasattr(self.controlnet, "nets")
        networks = list(self.controlnet.nets) if several else [self.controlnet]
        shown = _one_each(image, len(networks)) if several else [image]
        size = control_pixels(shown[0], height, width, self.vae_scale_factor).shape[-2:]
        scales = _numbers(controlnet_conditioning_scale, len(networks), "controlnet_conditioning_scale")
        starts = _numbers(control_guidance_start, len(networks), "control_guidance_start")
        stops = _numbers(control_guidance_end, len(networks), "control_guidance_end")
        guess = guess_mode or networks[0].config.global_pool_conditions
        each = zip(networks, shown, scales, starts, stops, strict=True)
        parts = [
            _ShownControl(network, control_pixels(one, *size), scale, start, stop, guess, k if several else None)
            for k, (network, one, scale, start, stop) in enumerate(each)
        ]
        return self._generate({**common, **arguments, "height": size[0], "width": size[1]}, parts)


@dataclass
class _ShownControl(Control):
    """A control whose picture callbacks see and may replace, as "image": for several, a list of them.

    Its rows are repeated for the negative branch, where both branches are told.
    """

    place: int | None = None

    def prepare(self, setup: Setup) -> None:
        super().prepare(setup)
        guided = any(isinstance(g, ClassifierFreeGuidance) and g.on for g in setup.guiders)
        rows = one_per_row(self.pixels(setup), setup).to(self.network.device, self.network.dtype)
        self._last = torch.cat([rows, rows]) if guided and not self.guesses else rows
        self._tensors = cast(dict[str, Any], setup.tensors)
        several = [*self._tensors.get("image", ()), self._last]
        self._tensors["image"] = self._last if self.place is None else several

    def before(self, x: Tensor, step: Step) -> Tensor:
        image = self._tensors["image"]
        now = image if self.place is None else image[self.place]
        if now is not self._last and self.scale != 0:
            self.show(now[-len(x) :])
        self._last = now
        return super().before(x, step)


def _one_each(image: Any, count: int) -> list[Any]:
    """The pictures of several control networks, one entry for each."""
    if isinstance(image, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in image):
        if any(not isinstance(one, (list, tuple)) or len(one) != count for one in image):
            raise ValueError(f"image is a list of lists; each needs {count} pictures, one for each control network")
        return [list(pictures) for pictures in zip(*image, strict=True)]
    if not isinstance(image, (list, tuple)) or len(image) != count:
        given = f"{len(image)} pictures" if isinstance(image, (list, tuple)) else f"a {type(image).__name__}"
        raise ValueError(f"image is {given}; give a list with one for each of the {count} control networks")
    return list(image)


def _numbers(value: Any, count: int, name: str) -> list[float]:
    """One number for each control network."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(numbers) != count or any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise ValueError(f"{name} is {value!r}; give a number, or a list with one for each of {count} control networks")
    return numbers
