"""On the way from a picture to its noise, and on the way back beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step
from langevin.schedulers.noise import Level


@dataclass
class InversionTrace(Guider):
    """Goes back along the way that an inversion came, and leaves it only where a mask is (DiffEdit: Couairon et al.
    2023, 2210.11427, section 3.2).

    Args:
        trace: latents that the inversion passed through, the noisiest first, ``(n, steps, channels, height, width)``;
            n is 1, or divides the batch.
        mask: ``(m, 1, height, width)`` of the latents' size, 1 where they are left.
        strength: the share of the run that the inversion went.

    Raises:
        ValueError: when the call begins: another size, or another number of steps.
    """

    trace: Tensor
    mask: Tensor
    strength: float = 0.8

    def prepare(self, setup: Setup) -> None:
        setup.start_at(self.strength)
        steps, shape = len(setup.run) - setup.start, tuple(setup.shape[1:])
        if tuple(self.trace.shape[2:]) != shape or self.trace.shape[1] != steps:
            given = tuple(self.trace.shape)
            raise ValueError(f"image_latents are {given}; {steps} steps of {shape} are needed: (n, {steps}, …)")
        if tuple(self.mask.shape[-2:]) != shape[1:]:
            raise ValueError(f"mask_image is {tuple(self.mask.shape)}; it must have the latents' size, {shape[1:]}")
        trace, batch = self.trace.to(setup.device, setup.dtype), setup.shape[0]
        if batch % len(trace):
            raise ValueError(
                f"image_latents are of {len(trace)} pictures, for a batch of {batch}; give one, or one each"
            )
        self._trace = trace.repeat_interleave(batch // len(trace), dim=0)
        self._mask = setup.rows(self.mask).to(setup.device, setup.dtype)
        setup.x = self._trace[:, 0].clone()

    def after(self, x: Tensor, step: Step) -> Tensor:
        return self._trace[:, step.index - step.start].lerp(x, self._mask)


@dataclass
class NoiseRegularisation(Guider):
    """Moves the predicted noise of an inversion towards being noise: neighbours that know nothing of each other, a mean
    of 0, a spread of 1 (pix2pix-zero: Parmar et al. 2023, 2302.03027, section 3.1).

    Args:
        steps: how often; 0 is off.
        correlation, spread: how strongly, for the pairwise loss of a pyramid of the noise, and for the divergence
            from a normal distribution.
        rolls: shifts that are drawn for the pairwise loss.
        prediction_type: of the network.
        schedule: the noise schedule of the network's timesteps.
        generator: draws the shifts; or a list with one for each picture.
    """

    steps: int = 0
    correlation: float = 20.0
    spread: float = 20.0
    rolls: int = 5
    prediction_type: str = "epsilon"
    schedule: Any = None
    generator: Any = field(default=None, kw_only=True)

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        scaled = step.run.scale_model_input(x, step.index)
        for _ in range(self.steps):
            for _ in range(self.rolls if self.correlation > 0 else 0):
                down = self._slope(prediction, scaled, step, self._correlation) / self.rolls
                prediction = prediction - self.correlation * down
            if self.spread > 0:
                prediction = prediction - self.spread * self._slope(prediction, scaled, step, _divergence)
        return prediction

    def _slope(self, prediction: Tensor, x: Tensor, step: Step, loss: Any) -> Tensor:
        """The gradient of a loss of the predicted noise."""
        with torch.enable_grad():
            moved = prediction.detach().requires_grad_()
            level: Level = self.schedule.level(int(step.timestep))
            noise = moved
            if self.prediction_type == "sample":
                noise = (x - level.alpha * moved) / level.sigma
            elif self.prediction_type == "v_prediction":
                noise = level.alpha * moved + level.sigma * x
            return torch.autograd.grad(loss(noise), moved)[0]

    def _correlation(self, noise: Tensor) -> Tensor:
        """Squared means of the noise times itself shifted, over a pyramid; each map draws its shifts."""
        loss = noise.new_zeros(())
        several = isinstance(self.generator, (list, tuple))
        for k, row in enumerate(noise):
            generator = self.generator[k] if several else self.generator
            for each in row[:, None, None]:
                size = each
                while True:
                    shift = int(torch.randint(size.shape[2] // 2, (1,), generator=generator))
                    for axis in (2, 3):
                        loss = loss + (size * size.roll(shift, axis)).mean() ** 2
                    if size.shape[2] <= 8:
                        break
                    size = avg_pool2d(size, 2)
        return loss


def _divergence(noise: Tensor) -> Tensor:
    """From a normal distribution, twice the Kullback-Leibler one."""
    spread = noise.var()
    return spread + noise.mean() ** 2 - 1 - (spread + 1e-7).log()


@dataclass
class Follow(Guider):
    """Keeps every x that a run passes through, in ``kept``."""

    kept: list[Tensor] = field(default_factory=list)

    def after(self, x: Tensor, step: Step) -> Tensor:
        self.kept.append(x.clone())
        return x
