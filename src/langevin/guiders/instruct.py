"""Editing by instruction: Brooks, Holynski & Efros 2023, "InstructPix2Pix" (2211.09800)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from langevin.guiders.base import Conditions, Guider, Setup, Step, tell
from langevin.guiders.classifier_free import ClassifierFreeGuidance

_ORDER = ("positive", "negative", "unconditional")
_TEXT = "encoder_hidden_states"


@dataclass
class InstructGuidance(ClassifierFreeGuidance):
    """Guidance towards the instruction and towards the picture, each with a scale of its own (equation 3).

    ``unconditional + image_scale · (negative - unconditional) + scale · (positive - negative)``: "positive" has the
    instruction and sees the picture, "negative" has the negative prompt and sees it, "unconditional" has the negative
    prompt and does not see it. It takes the place of :class:`ClassifierFreeGuidance`, and needs an
    :class:`ImageChannels` beside it.

    A branch whose share is 0 is not computed: "unconditional" at ``image_scale`` 1, "negative" where both scales are
    the same.

    Args:
        scale: how strictly to follow the instruction; 1 or less turns all guidance off.
        image_scale: how strictly to keep to the picture; 1 is not more than the network does by itself, and less than 1
            turns all guidance off.
        start, stop: the share of the run in which guidance acts.

    Example:
        >>> pipe("make it blue", guiders=[InstructGuidance(7.5, 1.5), ImageChannels(pixels)])
    """

    scale: float = 7.5
    image_scale: float = 1.5
    start: float = field(default=0.0, kw_only=True)
    stop: float = field(default=1.0, kw_only=True)

    callback_branches: ClassVar[tuple[str, ...]] = _ORDER
    dials: ClassVar[Mapping[str, str]] = {"guidance_scale": "scale", "image_guidance_scale": "image_scale"}

    @property
    def on(self) -> bool:
        return self.scale > 1 and self.image_scale >= 1

    def needs(self, step: Step) -> Collection[str]:
        if not super().needs(step):
            return ()
        shares = {"negative": self.image_scale - self.scale, "unconditional": 1 - self.image_scale}
        return [name for name, share in shares.items() if share]

    def prepare(self, setup: Setup) -> None:
        self._negative: Conditions = {}
        self._text: Tensor | None = None

    def before(self, x: Tensor, step: Step) -> Tensor:
        negative, old = step.branches.get("negative"), step.branches.get("unconditional")
        if not self.on or negative is None or negative is self._negative:
            return x
        if "channels" not in negative:
            raise ValueError("InstructGuidance needs a picture; give ImageChannels(pixels) beside it")
        if old is None:
            old = {"channels": torch.zeros_like(negative["channels"]), _TEXT: self._text}
        # the text follows that of "negative", unless a callback put another there
        follows = old[_TEXT] is self._text and negative[_TEXT] is not self._negative.get(_TEXT)
        self._negative, self._text = negative, negative[_TEXT] if follows else old[_TEXT]
        step.branches["unconditional"] = {**negative, "channels": old["channels"], _TEXT: self._text}
        return x

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        needed = list(self.needs(step))
        if len(needed) < 2:
            return predictions[needed[0]].lerp(prediction, self.scale) if needed else prediction
        negative = predictions["negative"]
        towards_picture = predictions["unconditional"].lerp(negative, self.image_scale)
        return towards_picture + self.scale * (prediction - negative)


@dataclass
class ImageChannels(Guider):
    """Shows the network a picture in input channels of its own, beside x.

    Callbacks see and may replace it as "image_latents", ``(batch, channels, height, width)``; while
    :class:`InstructGuidance` acts, one after the other for its branches positive, negative and unconditional.

    Args:
        image: ``(n, 3, height, width)`` in [-1, 1], of the size of the pictures that are made; or latents, not scaled,
            which are told by their number of channels. n is 1, or divides the batch.

    Raises:
        ValueError: for another size, or a network without such channels.
    """

    image: Tensor

    def prepare(self, setup: Setup) -> None:
        setup.check_size(self.image)
        pixels = self.image.to(setup.device, setup.dtype)
        latents = pixels if pixels.shape[1] == setup.codec.channels else setup.codec.posterior(pixels)
        given, taken = setup.shape[1] + latents.shape[1], setup.network.config.in_channels
        if given != taken:
            raise ValueError(f"this network takes {taken} channels, where x and the picture together have {given}")
        latents = setup.rows(latents)
        guided = any(isinstance(g, InstructGuidance) and g.on for g in setup.guiders)
        shown = torch.cat([latents, latents, torch.zeros_like(latents)]) if guided else latents
        setup.tensors["image_latents"] = shown
        self._tensors = setup.tensors
        self._batch = len(latents)
        self._shown: Tensor | None = None
        self._hand_out(setup.branches)

    def before(self, x: Tensor, step: Step) -> Tensor:
        self._hand_out(step.branches)
        return x

    def _hand_out(self, branches: dict[str, Conditions]) -> None:
        """Give each branch its picture; "unconditional" keeps the zeros that it has unless there is one for it."""
        shown = self._tensors["image_latents"]
        if shown is not self._shown:
            self._shown, self._parts = shown, dict(zip(_ORDER, shown.split(self._batch), strict=False))
        usual = self._parts["positive"]
        tell(branches, "channels", lambda name, old: self._parts.get(name, old if name == "unconditional" else usual))
