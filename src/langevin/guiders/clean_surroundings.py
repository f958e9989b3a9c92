"""Inpainting in pixels where the network sees the picture around the mask without noise, as DeepFloyd IF's does it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from langevin.guiders.base import Setup
from langevin.guiders.inpaint import Inpaint
from langevin.guiders.step import Step


@dataclass
class CleanSurroundings(Inpaint):
    """Make anew what a mask covers; outside, x is the clean picture at every step, whatever the noise level.

    Under the mask the run begins with the picture noised as far as it begins, also with a strength of 1. Networks were
    not trained on pictures that are noised in parts; :class:`~langevin.Inpaint` does it as they were. Arguments are its
    own.

    Example:
        >>> pipe("a blue circle", guiders=[CleanSurroundings(pixels, mask, strength=0.8)])
    """

    def _begin(self, setup: Setup) -> None:
        self._clean = self.encoded(setup, self.image)
        noised = self._clean
        if setup.start < len(setup.run):
            noised = setup.run.add_noise(self._clean, setup.first_noise(), setup.start)
        mask = setup.rows(self.mask).to(noised)
        setup.x = self._clean.lerp(noised, mask)

    def after(self, x: Tensor, step: Step) -> Tensor:
        return self._clean.lerp(x, self._tensors["mask"])
