"""Noise predictions made more like noise: pix2pix-zero, Parmar et al. 2023 (2302.03027), section 3.2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from langevin.checks import Range
from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step
from langevin.schedulers import prediction as predictions_of

SMALLEST = 8
"""Side of the smallest map whose auto-correlation counts."""


@dataclass
class Whitening(Guider):
    """Move what the network predicts until its noise looks like independent draws from a normal distribution.

    For inversions: noise that is none of a kind cannot be edited. Each picture is moved by itself.

    Args:
        auto_corr: λ of the auto-correlation (equation 1); 0 is off.
        kl: λ of the divergence from a standard normal distribution (equation 2); 0 is off.
        steps: how often each prediction is moved.
        rolls: how many random shifts each of those looks at.

    Raises:
        ValueError: below ``torch.inference_mode``.
    """

    pictures_only = True

    auto_corr: Annotated[float, Range(0)] = 20.0
    kl: Annotated[float, Range(0)] = 20.0
    steps: Annotated[int, Range(0)] = 5
    rolls: Annotated[int, Range(1)] = 5

    def prepare(self, setup: Setup) -> None:
        if torch.is_inference_mode_enabled():
            raise ValueError("Whitening needs gradients, which torch.inference_mode forbids; leave it out")
        setup.picture_places("Whitening")
        self._noise = setup.noise

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        r, w = predictions_of.to_epsilon(step.run.prediction_type, step.run.targets[step.index])
        moved = [self._whiter(prediction[k], x[k], r, w, k) for k in range(len(x))]
        return torch.stack(moved)

    def _whiter(self, prediction: Tensor, x: Tensor, r: float, w: float, row: int) -> Tensor:
        """One picture's prediction, ``(channels, height, width)``, moved; ε = r·x + w·prediction."""

        def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
            with torch.enable_grad():
                variable = prediction.detach().requires_grad_()
                return torch.autograd.grad(loss(r * x + w * variable), variable)[0]

        def shift(below: int) -> int:
            return self._noise.whole(below, row)

        for _ in range(self.steps):
            for _ in range(self.rolls if self.auto_corr else 0):
                moves = gradient(lambda epsilon: auto_correlation(epsilon, shift)) / self.rolls
                prediction = prediction - self.auto_corr * moves
            if self.kl:
                prediction = prediction - self.kl * gradient(divergence)
        return prediction


def auto_correlation(noise: Tensor, shift: Callable[[int], int]) -> Tensor:
    """How much noise resembles itself when it is shifted, at each of several sizes: equation 1.

    Args:
        noise: ``(channels, height, width)``.
        shift: ``shift(n)`` is a random whole number below n, by which maps are rolled along both axes.
    """
    total = noise.new_zeros(())
    for channel in noise[:, None]:
        while True:
            by = shift(max(channel.shape[1] // 2, 1))
            for axis in (1, 2):
                total = total + (channel * channel.roll(by, axis)).mean() ** 2
            if channel.shape[1] <= SMALLEST:
                break
            channel = F.avg_pool2d(channel, 2)
    return total


def divergence(noise: Tensor) -> Tensor:
    """Twice the Kullback-Leibler divergence of a normal distribution of noise's mean and variance from the standard
    one: equation 2.
    """
    variance = noise.var()
    return variance + noise.mean() ** 2 - 1 - (variance + 1e-7).log()
