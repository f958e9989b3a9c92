"""Guidance rescale: Lin et al. 2023 (2305.08891), section 3.4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from langevin.guiders.base import Guider
from langevin.guiders.step import Step


@dataclass
class GuidanceRescale(Guider):
    """Give the guided prediction back the contrast of the unguided one, picture by picture.

    Args:
        scale: φ of the paper: 0 is off, 1 takes the positive branch's standard deviation wholly.
    """

    scale: float = 0.7

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        positive = predictions["positive"]
        if self.scale == 0 or prediction is positive:
            return prediction
        dims = tuple(range(1, prediction.ndim))
        ratio = positive.std(dims, keepdim=True) / prediction.std(dims, keepdim=True)
        return prediction * (1 + self.scale * (ratio - 1))
