"""Heun's method on straight lines: Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2, with the slope that the
network of a flow gives. See :mod:`langevin.schedulers.flow.base`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw
from langevin.schedulers.churn import Churn
from langevin.schedulers.flow.base import FlowMatchScheduler, FlowRun
from langevin.schedulers.flow.deviations import Published
from langevin.schedulers.run import StepOutput
from langevin.schedulers.steps import ChurnedStep


class FlowHeunRun(FlowRun):
    """Two calls a step: at σ_i, and, after an Euler step there, at σ_{i+1}. The step to σ = 0 has the first alone.

    Before a step, σ may be raised to σ̂ by fresh noise (arXiv:2206.00364, algorithm 2).
    """

    def configure(
        self, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
    ) -> None:
        self.halfway: torch.Tensor | None = None  # between a step's first call and its second
        churn, steps = Churn(s_churn, s_tmin, s_tmax, s_noise), len(self.sigmas) - 1
        begun = [self.levels[i - 1 if i % 2 else i].sigma for i in range(len(self))]  # σ where each call's step begins
        self.raises = [self.manner.churned(sigma, churn, steps) for sigma in begun]

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        raised = self.raises[i]
        if self.halfway is None:
            start, slope = x, [(1.0, prediction)]
            if raised.draws:
                start = combine((raised.of_x, x), (raised.of_noise, (noise or draw)(prediction)))
                of_output = self.levels[i].sigma / raised.sigma
                slope = [(raised.of_gap, start), (-raised.of_gap, x), (of_output, prediction)]
            h = self.targets[i].sigma - raised.sigma
            self.halfway = combine((1.0, start), *((h / 2 * w, part) for w, part in slope))
            previous = combine((1.0, start), *((h * w, part) for w, part in slope))
        else:
            if raised.draws and self.manner.draws_twice:  # without effect, but later draws depend on it
                (noise or draw)(prediction)
            previous = combine((1.0, self.halfway), ((self.levels[i].sigma - raised.sigma) / 2, prediction))
            self.halfway = None
        return StepOutput(cast(previous, x.dtype), self._later(prediction, i, x))


class FlowMatchHeunDiscreteScheduler(ChurnedStep, FlowMatchScheduler):
    """Second order on straight lines; two network calls a step, so n steps are 2n - 1 calls.

    Args:
        num_train_timesteps: the network is told σ times this.
        shift: how far levels are moved towards noise.

    Run options: ``s_churn``, ``s_tmin``, ``s_tmax``, ``s_noise``: the noise added before steps whose σ lies in
    [s_tmin, s_tmax]; ``as_published``: levels are shifted exactly once, given ones are taken as they are, and added
    noise replaces as much of the image as belongs to its level. Without it, as in the reference implementation, the
    least σ is shifted twice, and added noise leaves x louder than any level.

        >>> run = FlowMatchHeunDiscreteScheduler(shift=3.0).plan(10)  # 19 calls
        >>> x = torch.randn(1, 16, 8, 8)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    order = 2
    run_options = ("s_churn", "s_tmin", "s_tmax", "s_noise", "as_published")

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0):
        pass

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: Published, **churn: Any,
    ) -> FlowHeunRun:  # fmt: skip
        given, levels, final = self._lay(steps, timesteps, sigmas, manner)
        told = given or [sigma * self.config.num_train_timesteps for sigma in levels]
        calls = [told[0], *(t for t in told[1:] for _ in range(2))]
        visited = [levels[0], *(s for s in levels[1:] for _ in range(2)), final]
        return FlowHeunRun(calls, visited, manner, **churn)

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int, device: str | torch.device | None = None, as_published: bool = False
    ) -> None:
        """Choose the levels that the following ``step`` calls visit; see the class for ``as_published``."""
        super().set_timesteps(num_inference_steps, device, as_published=as_published)

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of its step."""
        return getattr(self.run, "halfway", None) is None

    def scale_noise(self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """(1 - σ)·sample + σ·noise at the run's place, or, if it has not begun, at this timestep, where it begins."""
        return self.run.add_noise(sample, noise, self._begin(timestep))
