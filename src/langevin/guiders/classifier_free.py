"""Classifier-free guidance: Ho & Salimans 2022 (2207.12598), equation 6."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step

logger = logging.getLogger(__name__)


@dataclass
class ClassifierFreeGuidance(Guider):
    """Push the prediction away from the negative branch: ``negative + scale · (positive - negative)``.

    Args:
        scale: 1 means no guidance, and then the negative branch is not computed.
        start, stop: the share of the run in which guidance acts (Kynkäänniemi et al. 2024, 2404.07724);
            outside, the negative branch is not computed either.
    """

    scale: float = 7.5
    start: float = 0.0
    stop: float = 1.0

    #: branches whose texts callbacks see as "prompt_embeds", one after the other, while guidance is on
    callback_branches: ClassVar[tuple[str, ...]] = ("negative", "positive")
    #: names under which callbacks may read and set what is set here
    dials: ClassVar[Mapping[str, str]] = {"guidance_scale": "scale"}

    @property
    def on(self) -> bool:
        """Whether there is any guidance: a scale of 1 or less is off, as it is for every user of guidance_scale."""
        return self.scale > 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.start <= self.stop <= 1:
            raise ValueError(f"guidance from {self.start} to {self.stop}; 0 <= start <= stop <= 1 is needed")

    def needs(self, step: Step) -> Collection[str]:
        return ("negative",) if self.on and self.start <= step.progress < self.stop else ()

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        if not self.needs(step):
            return prediction
        return predictions["negative"].lerp(prediction, self.scale)


@dataclass
class AnyGuidance(ClassifierFreeGuidance):
    """The same where scales below 1 count too: between the branches at 0 to 1, and 0 follows the negative one alone."""

    @property
    def on(self) -> bool:
        """Whether there is any guidance: a scale of 1 is off."""
        return self.scale != 1


def guidance_in(setup: Setup, who: str) -> ClassifierFreeGuidance | None:
    """The guidance of a stage, for a guider that bends it; None, with a warning for ``who``, where there is none."""
    guidance = next((g for g in setup.guiders if isinstance(g, ClassifierFreeGuidance)), None)
    if guidance is None or "negative" not in setup.branches:
        logger.warning("%s does nothing without guidance; guidance_scale must be above 1.", who)
        return None
    return guidance
