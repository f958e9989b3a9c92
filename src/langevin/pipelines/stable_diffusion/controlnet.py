"""Text to image under control pictures, with Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from langevin.guiders.base import Setup
from langevin.guiders.control import Control, control_pixels, one_per_row
from langevin.models.multi_controlnet import MultiControlNetModel
from langevin.pipelines.callbacks import View, guided
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, TextGiven, middle


@dataclass(frozen=True, kw_only=True)
class ControlGiven(TextGiven):
    """What all calls with control networks take.

    Args:
        controlnet_conditioning_scale: how much counts what the control network says; a list for several.
        guess_mode: let the control network alone say what the picture shows: the negative branch is not told. Use
            a ``guidance_scale`` of 3 to 5.
        control_guidance_start, control_guidance_end: the share of the run in which the control network is asked;
            lists for several.
    """

    controlnet_conditioning_scale: float | Sequence[float] = 1.0
    guess_mode: bool = False
    control_guidance_start: float | Sequence[float] = 0.0
    control_guidance_end: float | Sequence[float] = 1.0


@dataclass(frozen=True, kw_only=True)
class ControlNetGiven(ControlGiven):
    """Arguments of :class:`StableDiffusionControlNetPipeline`.

    Args:
        image: the control picture: PIL, numpy or tensor in [0, 1]; or a list with one per prompt. For several
            control networks a list with such an entry for each, or a list of lists, one per prompt, each with one
            picture for each network.
        height, width: pixels; the (first) control picture's, rounded down to what the model takes, if None.
    """

    image: Any = field(default=None, kw_only=False)

    positional = (
        f"prompt image height width num_inference_steps timesteps sigmas {middle()} cross_attention_kwargs "
        "controlnet_conditioning_scale guess_mode control_guidance_start control_guidance_end clip_skip "
        f"{CALLBACKS}"
    )


class ControlPictures(View):
    """The control pictures as the reference shows them, for several networks a list of them: one per row, repeated for
    the negative branch where both branches are told.

    Args:
        several: how many networks there are, None if there is one alone.
    """

    def __init__(self, several: int | None) -> None:
        self.several = several

    def show(self, setup: Setup, tensor: Any) -> Any:
        pictures = []
        for control in self._controls(setup):
            rows = self._rows(control, setup)
            both = guided(setup) and not control.guesses
            pictures.append(torch.cat([rows, rows]) if both else rows)
        return pictures if self.several else pictures[0]

    def take(self, setup: Setup, value: Any) -> Any:
        for control, picture in zip(self._controls(setup), value if self.several else [value], strict=True):
            rows = picture[-setup.shape[0] :]
            if control.scale != 0 and not torch.equal(rows, self._rows(control, setup)):
                control.show(rows)
        return value

    def _controls(self, setup: Setup) -> list[Control]:
        """Those of the pipeline's own networks, which come first."""
        return [guider for guider in setup.guiders if isinstance(guider, Control)][: self.several or 1]

    @staticmethod
    def _rows(control: Control, setup: Setup) -> Tensor:
        """One picture per row of x."""
        network = control.network
        return one_per_row(control.shown, setup).to(network.device, network.dtype)


class ControlNetBase(StableDiffusionBase):
    """Stable Diffusion with control networks of its own among its parts."""

    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here
    _control_argument = "control_image"

    controlnet: Any

    @takes_parts
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
        if isinstance(controlnet, (list, tuple)):
            self.controlnet = MultiControlNetModel(controlnet)

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        shown, spread = getattr(given, self._control_argument), super().spread_arguments(given)
        spread.pop(self._control_argument, None)
        one_per_net = hasattr(self.controlnet, "nets") and not isinstance(shown[0], (list, tuple))
        return spread if one_per_net else {**spread, self._control_argument: True}

    @property
    def _callback_views(self) -> Mapping[str, View]:
        return {self._control_argument: ControlPictures(len(getattr(self.controlnet, "nets", ())) or None)}

    def controls(self, given: ControlGiven) -> list[Control]:
        """A guider for each control network, with its picture as it was given."""
        image = getattr(given, self._control_argument)
        if image is None:
            raise ValueError(
                f"{self._control_argument} is missing; give the control picture: a PIL image, an array or a tensor in "
                "[0, 1]"
            )
        several = hasattr(self.controlnet, "nets")
        networks = list(self.controlnet.nets) if several else [self.controlnet]
        shown = _one_each(image, len(networks), self._control_argument) if several else [image]
        names = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
        numbers = [_numbers(getattr(given, name), len(networks), name) for name in names]
        guess = given.guess_mode or networks[0].config.global_pool_conditions
        return [
            Control(network, one, scale, start, stop, guess)
            for network, one, scale, start, stop in zip(networks, shown, *numbers, strict=True)
        ]


class StableDiffusionControlNetPipeline(ControlNetBase):
    """Text to image under a control picture (ControlNet: Zhang, Rao & Agrawala 2023, 2302.05543).

    Example:
        >>> from langevin import ControlNetModel, StableDiffusionControlNetPipeline
        >>> net = ControlNetModel.from_pretrained("lllyasviel/sd-controlnet-canny")
        >>> pipe = StableDiffusionControlNetPipeline.from_pretrained("./stable-diffusion", controlnet=net)
        >>> image = pipe("a red circle", image=edges, num_inference_steps=20, seed=7).images[0]
    """

    _callback_tensor_inputs = [*StableDiffusionBase._callback_tensor_inputs, "image"]
    _control_argument = "image"

    @takes(ControlNetGiven)
    def __call__(self, given: ControlNetGiven) -> Any:
        """Make pictures."""
        parts = self.controls(given)
        size = control_pixels(parts[0].image, given.height, given.width, self.vae_scale_factor).shape[-2:]
        return self.generate(given, parts, size)


def _one_each(image: Any, count: int, name: str) -> list[Any]:
    """The pictures of several control networks, one entry for each."""
    if isinstance(image, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in image):
        if any(not isinstance(one, (list, tuple)) or len(one) != count for one in image):
            raise ValueError(f"{name} is a list of lists; each needs {count} pictures, one for each control network")
        return [list(pictures) for pictures in zip(*image, strict=True)]
    if not isinstance(image, (list, tuple)) or len(image) != count:
        given = f"{len(image)} pictures" if isinstance(image, (list, tuple)) else f"a {type(image).__name__}"
        raise ValueError(f"{name} is {given}; give a list with one for each of the {count} control networks")
    return list(image)


def _numbers(value: Any, count: int, name: str) -> list[float]:
    """One number for each control network."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(numbers) != count or any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise ValueError(f"{name} is {value!r}; give a number, or a list with one for each of {count} control networks")
    return numbers
