"""The variance-exploding stochastic differential equation, reversed: Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole
2021, "Score-Based Generative Modeling through Stochastic Differential Equations", arXiv:2011.13456.

x = x0 + σ·ε (equation 9), by predictor and corrector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.outputs import BaseOutput
from langevin.schedulers import spacing as spacings
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw, spread, upcast
from langevin.schedulers.continuous import deviations
from langevin.schedulers.continuous.deviations import ScoreSdeVeAsPublished
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.scheduler import SchedulerMixin
from langevin.schedulers.weights import Weights

_CLEAN = Level(1.0, 0.0)


def langevin_step(
    x: torch.Tensor, score: torch.Tensor, z: torch.Tensor, snr: float, alone: bool = False
) -> torch.Tensor:
    """The corrector: x + e·s + sqrt(2e)·z with e = 2·(snr·|z|/|s|)² (algorithm 4).

    Args:
        x, score, z: (batch, ...); the sample, ∇log p at it, and unit noise.
        snr: r of the algorithm.
        alone: norms are each image's own; otherwise the batch's mean.
    """
    x, score, z = upcast(x), upcast(score), upcast(z)
    size, noise_size = (torch.linalg.vector_norm(part.flatten(1), dim=1) for part in (score, z))
    if not alone:
        size, noise_size = size.mean(), noise_size.mean()
    root = spread((2 * snr * noise_size / size).view(-1), x)  # sqrt(2e)
    return torch.addcmul(x, root * root / 2, score).addcmul_(root, z)


class ScoreSdeVeRun(Run):
    """For every σ, some corrector calls at it, then the predictor's, to the next σ (algorithm 2, corrector first).

    The network's output s is the score: x0 = x + σ²·s. The last step adds no noise.
    """

    def __init__(
        self, told: Sequence[float], steps: Sequence[tuple[float, float]], snr: float, correct_steps: int, alone: bool
    ):
        """``told``: the σ that the network is told; ``steps``: from which σ to which; ``alone``: see
        :func:`langevin_step`."""
        self.snr = snr
        self.alone = alone
        at = [Level(1.0, sigma) for sigma in told]
        self.weights: list[Weights | None] = []  # of the predictor; None for a corrector's call
        levels, targets = [], []
        for level, following, (sigma, lower) in zip(at, [*at[1:], _CLEAN], steps, strict=True):
            variance = sigma**2 - lower**2  # equation 46
            self.weights += [*[None] * correct_steps, Weights(1.0, variance, of_noise=math.sqrt(variance))]
            levels += [level] * (correct_steps + 1)
            targets += [*[level] * correct_steps, following]
        self.init_noise_sigma = told[0]
        super().__init__([level.sigma for level in levels], levels, targets, "score")

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        weights = self.weights[i]
        if weights is None:
            moved = langevin_step(x, prediction, (noise or draw)(x), self.snr, self.alone)
        else:
            z = (noise or draw)(x) if i + 1 < len(self) else None
            moved = weights.sum(x, prediction, z=z)
        return StepOutput(cast(moved, x.dtype), self._later(prediction, i, x))

    def _original(self, prediction: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor:
        return combine((1.0, x), (self.levels[i].sigma ** 2, prediction))


@dataclass(eq=False)
class SdeVeOutput(BaseOutput):
    """``prev_sample``, and ``prev_sample_mean``, the same before the noise went in."""

    prev_sample: torch.Tensor
    prev_sample_mean: torch.Tensor | None = None


class ScoreSdeVeScheduler(SchedulerMixin):
    """Reverse diffusion with Langevin corrections, for networks that give the score and are told σ itself.

    Args:
        num_train_timesteps: how many σ there are before ``set_sigmas``.
        snr: r of the corrector.
        sigma_min, sigma_max: the least and the greatest noise.
        sampling_eps: the time, of 1 to 0, where a run ends.
        correct_steps: corrector calls before each predictor call: n steps are n·(correct_steps + 1) calls.

    Run option ``as_published``: the network is told the very σ that the steps count with, and a corrector looks at
    each image alone. Without it, what is told and what is counted with differ a little, and corrections depend on
    the other images of the batch, as in the reference implementation. ``with_spacing`` takes any sigma spacing.

        >>> run = ScoreSdeVeScheduler(sigma_max=50.0).plan(1000)  # 2000 calls
        >>> x = torch.randn(1, 3, 32, 32) * run.init_noise_sigma
        >>> for i, sigma in enumerate(run.timesteps):
        ...     x = run.step(network(x, sigma), i, x, noise=torch.randn_like).prev_sample
    """

    run_options = ("as_published",)
    _manners = deviations.SCORE_SDE_VE
    _spacings = spacings.SIGMA_SPACINGS
    _spacings_because = "is told σ and has no training timesteps"
    _compatibles = []

    timesteps: torch.Tensor | None = None  # type: ignore[assignment]
    #: what the network is told at each of ``timesteps``
    sigmas: torch.Tensor = None  # type: ignore[assignment]
    #: σ that the steps count with, ascending
    discrete_sigmas: torch.Tensor

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 2000, snr: float = 0.15, sigma_min: float = 0.01, sigma_max: float = 1348.0,
        sampling_eps: float = 1e-5, correct_steps: int = 1,
    ):  # fmt: skip
        self.set_sigmas(num_train_timesteps)

    @property
    def order(self) -> int:  # type: ignore[override]
        """Network calls in a step: the corrector's, and the predictor's."""
        return self.config.correct_steps + 1

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that a run begins with."""
        return self.config.sigma_max

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: ScoreSdeVeAsPublished,
    ) -> ScoreSdeVeRun:  # fmt: skip
        if timesteps is not None:
            raise ValueError("ScoreSdeVeScheduler is told σ, not timesteps: give sigmas, or num_inference_steps")
        least, most = float(self.config.sigma_min), float(self.config.sigma_max)
        laid = manner.even(steps, most, least, self.config.sampling_eps) if self._untold(timesteps, sigmas) else None
        if laid is None:
            if sigmas is not None:
                visited = [float(sigma) for sigma in sigmas]
            else:
                name, options = self._spacing or ("exponential", {})
                ends = {"sigma_max": most, "sigma_min": least}
                visited = [*spacings.SIGMA_SPACINGS[name](steps=steps, **{**ends, **options}), 0.0]
            laid = deviations.moves_between(visited)
        return ScoreSdeVeRun(*laid, self.config.snr, self.config.correct_steps, manner.alone)

    # -- the familiar API: the caller walks over ``timesteps``, the times 1 to ``sampling_eps`` ----------------------

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int, sampling_eps: float | None = None, device: str | torch.device | None = None
    ) -> None:
        """Lay out ``timesteps``: times, evenly from 1 to ``sampling_eps``. Call :meth:`set_sigmas` next."""
        eps = self.config.sampling_eps if sampling_eps is None else sampling_eps
        self.timesteps = deviations.even_times(num_inference_steps, eps).to(device)

    def set_sigmas(
        self, num_inference_steps: int, sigma_min: float | None = None, sigma_max: float | None = None,
        sampling_eps: float | None = None,
    ) -> None:  # fmt: skip
        """Lay out ``sigmas`` and ``discrete_sigmas``. Arguments that are None are the config's."""
        least = self.config.sigma_min if sigma_min is None else sigma_min
        most = self.config.sigma_max if sigma_max is None else sigma_max
        if self.timesteps is None:
            self.set_timesteps(num_inference_steps, sampling_eps)
        assert self.timesteps is not None
        self.sigmas = deviations.sigmas_at(self.timesteps.cpu(), least, most)
        self.discrete_sigmas = deviations.even_table(num_inference_steps, least, most)

    def get_adjacent_sigma(self, timesteps: torch.Tensor, t: torch.Tensor | None = None) -> torch.Tensor:
        """The σ of ``discrete_sigmas`` before those with these indices; 0 before the first. ``t`` has no say."""
        below = self.discrete_sigmas.to(timesteps.device)[timesteps - 1]
        return below.masked_fill(timesteps == 0, 0.0)

    def step_pred(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
    ) -> SdeVeOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """The predictor: one step of reverse diffusion (equation 46).

        Args:
            model_output: the score at ``timestep``.
            timestep: one of ``scheduler.timesteps``, or one per image.
            sample: x at that time, (batch, ...).
            generator: where noise comes from; a list gives each image its own.
            return_dict: False gives the tuple ``(prev_sample, prev_sample_mean)``.
        """
        assert self.timesteps is not None
        if not isinstance(timestep, torch.Tensor) or timestep.numel() == 1:
            place = int(np.float32(float(timestep)) * np.float32(len(self.timesteps) - 1))
            lower = float(self.discrete_sigmas[place - 1]) if place else 0.0
            deviation = math.sqrt(float(self.discrete_sigmas[place]) ** 2 - lower**2)
            mean = combine((1.0, sample), (deviation**2, model_output))
            moved = combine((1.0, mean), (deviation, draw(sample, generator)))
            return SdeVeOutput(moved, mean) if return_dict else (moved, mean)
        times = timestep.to(torch.float32).cpu()
        places = deviations.places_of(times, len(self.timesteps))
        variance = self.discrete_sigmas[places] ** 2 - self.get_adjacent_sigma(places) ** 2
        variance = spread(variance, sample)
        mean = sample + variance * model_output
        moved = mean + variance.sqrt() * draw(sample, generator)
        return SdeVeOutput(moved, mean) if return_dict else (moved, mean)

    def step_correct(
        self, model_output: torch.Tensor, sample: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
    ) -> SdeVeOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """The corrector: one step of Langevin dynamics at the σ where x is. See :func:`langevin_step`.

        Args:
            model_output: the score there.
            sample: x, (batch, ...).
            generator: where noise comes from; a list gives each image its own.
            return_dict: False gives the tuple ``(prev_sample,)``.
        """
        noise = draw(torch.empty_like(sample, dtype=torch.float32), generator)
        moved = langevin_step(sample, model_output, noise, self.config.snr)
        return SdeVeOutput(moved) if return_dict else (moved,)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor | None, timesteps: torch.Tensor | float
    ) -> torch.Tensor:
        """x0 + σ·noise.

        Args:
            original_samples: x0, (batch, ...).
            noise: shaped like x0; None draws it.
            timesteps: (batch,), indices into ``discrete_sigmas``.
        """
        noise = draw(original_samples) if noise is None else noise
        sigma = self.discrete_sigmas[torch.as_tensor(timesteps).cpu()].to(original_samples.device)
        return original_samples + noise * spread(sigma, noise)
