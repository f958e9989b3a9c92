"""Editing by instruction: Brooks, Holynski & Efros 2023, "InstructPix2Pix" (2211.09800)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from langevin.guiders.base import Guider, Setup
from langevin.guiders.classifier_free import ClassifierFreeGuidance
from langevin.guiders.step import Conditions, Step
from langevin.latest import Latest

_PICTURE = "image_latents"


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

    callback_branches: ClassVar[tuple[str, ...]] = ("positive", "negative", "unconditional")
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
        if self.on and not any(isinstance(guider, ImageChannels) for guider in setup.guiders):
            raise ValueError("InstructGuidance needs a picture; give ImageChannels(pixels) beside it")
        self._unseen: Latest[Conditions] = Latest()
        self._last: Conditions | None = None

    def before(self, x: Tensor, step: Step) -> Tensor:
        if not self.on or "negative" not in step.branches:
            return x
        picture = step.told["channels"][_PICTURE]
        if step.branches.get("unconditional") is self._last:  # nobody put another in its place
            negative = step.branches["negative"]
            self._last = self._unseen([negative], lambda: _without(negative, picture))
            step.branches["unconditional"] = self._last
        return x

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        needed = list(self.needs(step))
        if len(needed) < 2:
            return predictions[needed[0]].lerp(prediction, self.scale) if needed else prediction
        negative = predictions["negative"]
        towards_picture = predictions["unconditional"].lerp(negative, self.image_scale)
        return towards_picture + self.scale * (prediction - negative)


def _without(conditions: Conditions, picture: Tensor) -> Conditions:
    """The same conditions, with the picture hidden."""
    hidden = {**conditions.get("channels", {}), _PICTURE: torch.zeros_like(picture)}
    return {**conditions, "channels": hidden}


@dataclass
class ImageChannels(Guider):
    """Shows the network a picture in input channels of its own, beside x.

    Callbacks see and may replace it as "image_latents", ``(batch, channels, height, width)``.

    Args:
        image: ``(n, 3, height, width)`` in [-1, 1], of the size of the pictures that are made; or latents, not scaled,
            which are told by their number of channels. n is 1, or divides the batch.

    Raises:
        ValueError: for another size, or a network without such channels.
    """

    pictures_only = True

    image: Tensor

    def prepare(self, setup: Setup) -> None:
        setup.check_size(self.image)
        pixels = self.image.to(setup.device, setup.dtype)
        codec: Any = setup.codec
        latents = pixels if pixels.shape[1] == codec.channels else codec.posterior(pixels)
        setup.told.put("channels", _PICTURE, setup.rows(latents.to(setup.dtype)))
