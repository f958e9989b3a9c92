"""The variance-preserving stochastic differential equation, reversed: Song, Sohl-Dickstein, Kingma, Kumar, Ermon &
Poole 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", arXiv:2011.13456.

Equation 11, in steps of Euler and Maruyama.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw, per_image, spread
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.scheduler import SchedulerMixin
from langevin.schedulers.weights import Weights

_CLEAN = Level(1.0, 0.0)


class ScoreSdeVpRun(Run):
    """Euler-Maruyama steps of the reverse SDE: x + (β(t)/2·x + β(t)·s)·h + sqrt(β(t)·h)·z, with s = -output/σ(t).

    (Equation 6, with the drift and diffusion of equation 11; h is a step's length in time.) The network's output is ε.
    A step to the clean image adds no noise.
    """

    def __init__(self, times: list[float], levels: list[Level], end: Level, weights: list[Weights]):
        self.weights = weights
        self.place_of = {time: i for i, time in enumerate(times)}
        super().__init__(times, levels, [*levels[1:], end], "epsilon")

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        z = (noise or draw)(x) if self.targets[i].sigma else None
        return StepOutput(cast(self.weights[i].sum(x, prediction, z=z), x.dtype), self._later(prediction, i, x))


class ScoreSdeVpScheduler(SchedulerMixin):
    """The reverse of the variance-preserving SDE, for networks that give ε and are told the time, 1 to 0.

    Args:
        num_train_timesteps: how many levels the network was trained on, if they are counted.
        beta_min, beta_max: β(t) at t = 0 and at t = 1; linear between.
        sampling_eps: the time where a run ends.

    ``with_spacing`` takes any: timesteps are counted between ``sampling_eps`` and 1, and sigma spacings lie between the
    levels of these two times. ``timesteps`` of one's own are times, 1 to above 0.

        >>> run = ScoreSdeVpScheduler().plan(1000)
        >>> x = torch.randn(1, 3, 32, 32)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x, noise=torch.randn_like).prev_sample
    """

    _compatibles = []
    init_noise_sigma = 1.0  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 2000, beta_min: float = 0.1, beta_max: float = 20, sampling_eps: float = 1e-3
    ):
        pass

    def _levels(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(α, σ) by time: log α = -t²·(β_max - β_min)/4 - t·β_min/2 (equation 33)."""
        least, most = self.config.beta_min, self.config.beta_max
        log_alpha = -0.25 * times**2 * (most - least) - 0.5 * times * least
        return log_alpha.exp(), (1.0 - (2.0 * log_alpha).exp()).sqrt()

    def _time_of(self, sigma: float) -> float:
        """The time at which σ/α is this: the root of equation 33, in a form that does not cancel."""
        least, most = self.config.beta_min, self.config.beta_max
        log_alpha = -0.5 * math.log1p(sigma**2)
        return -4 * log_alpha / (least + math.sqrt(least**2 - 4 * (most - least) * log_alpha))

    def _coefficients(self, times: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        """What multiplies x, the network's output and the noise in a step of a length from each time."""
        _, sigma = self._levels(times)
        beta = self.config.beta_min + times * (self.config.beta_max - self.config.beta_min)
        return [1.0 + beta * lengths / 2, -beta * lengths / sigma, (beta * lengths).sqrt()]

    def _plan(self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> ScoreSdeVpRun:
        if timesteps is not None:
            visited, end = [float(t) for t in timesteps], 0.0
        elif sigmas is not None:
            *visited, end = [self._time_of(float(sigma)) for sigma in sigmas]
        elif self._spacing is not None:
            visited, end = self._spaced_times(steps), 0.0
        else:  # each step as long, though the first time is 1 and the last is not 0
            times = torch.linspace(1, self.config.sampling_eps, steps)
            return self._run_over(times, torch.full_like(times, 1.0 / steps), _CLEAN)
        if visited[0] > 1.0 + 1e-6 or end < 0.0 or any(late >= early for early, late in pairwise([*visited, end])):
            raise ValueError(f"times must be descending, at most 1 and above 0; they are {visited}")
        alpha, sigma = self._levels(torch.tensor(end, dtype=torch.float64)) if end else _CLEAN
        times = torch.tensor(visited, dtype=torch.float64)
        return self._run_over(
            times, -torch.diff(times, append=times.new_tensor([end])), Level(float(alpha), float(sigma))
        )

    def _run_over(self, times: torch.Tensor, lengths: torch.Tensor, end: Level) -> ScoreSdeVpRun:
        levels = [Level(*pair) for pair in torch.stack(self._levels(times), 1).tolist()]
        rows = torch.stack(self._coefficients(times, lengths), 1).tolist()
        weights = [Weights(of_x, of_output, of_noise=of_noise) for of_x, of_output, of_noise in rows]
        return ScoreSdeVpRun(times.float().tolist(), levels, end, weights)

    def _spaced_times(self, steps: int) -> list[float]:
        """Times by the spacing in force; timestep t of T is as far between ``sampling_eps`` and 1."""
        least, last = self.config.sampling_eps, self.config.num_train_timesteps - 1
        if self._sigma_spacing()[0] is None:
            return [least + (1 - least) * t / last for t in self._spaced_timesteps(steps)]
        alpha, sigma = self._levels(torch.tensor([1.0, least], dtype=torch.float64))
        most, least = (sigma / alpha).tolist()
        return [self._time_of(sigma) for sigma in self._spaced_sigmas(steps, most, least) or []]

    def _whole(self) -> Run:
        return self.plan(len(self))

    def _levels_at(self, timesteps: torch.Tensor | float, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        times = torch.as_tensor(timesteps, dtype=torch.float32).flatten().cpu()
        return per_image([Level(*pair) for pair in torch.stack(self._levels(times), 1).tolist()], like)

    def step_pred(
        self, score: torch.Tensor, x: torch.Tensor, t: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """One step of the reverse SDE.

        Args:
            score: the network's output: ε, which is -σ(t)·∇log p.
            x: the sample, (batch, ...).
            t: its time, one of ``scheduler.timesteps``, or one per image.
            generator: where noise comes from; a list gives each image its own.

        Returns:
            (x one step on, the same before the noise went in).
        """
        if self.num_inference_steps is None:
            raise ValueError("ScoreSdeVpScheduler has no timesteps yet: call set_timesteps(steps) first")
        run = self.run
        assert isinstance(run, ScoreSdeVpRun)
        told = torch.as_tensor(t, dtype=torch.float32).flatten()
        of_x: Any
        of_score: Any
        of_noise: Any
        if len(told) == 1 and (i := run.place_of.get(told.item())) is not None:
            mean = run.weights[i].sum(x, score)
            return combine((1.0, mean), (run.weights[i].of_noise, draw(x, generator))), mean
        if self._spacing is None:
            lengths = torch.full_like(told, 1.0 / self.num_inference_steps)
        else:
            ends = [*run.timesteps[1:], 0.0]
            lengths = told - told.new_tensor([ends[run.index_of(time)] for time in told.tolist()])
        of_x, of_score, of_noise = (spread(c, x) for c in self._coefficients(told, lengths))
        mean = of_x * x + of_score * score
        return mean + of_noise * draw(x, generator), mean
