"""Ancestral sampling in σ: Euler's method to below the next level, then fresh noise up to it.

Crowson's k-diffusion, ``sample_euler_ancestral``; it is the ancestral sampling of Ho et al. 2020 (arXiv:2006.11239)
in the notation of Karras et al. 2022 (arXiv:2206.00364).
"""

from __future__ import annotations

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.arithmetic import DrawNoise, cast, draw
from langevin.schedulers.run import StepOutput
from langevin.schedulers.sigma.ancestral import ancestral_step
from langevin.schedulers.sigma.base import SigmaRun, SigmaScheduler
from langevin.schedulers.steps import NoisyStep
from langevin.schedulers.weights import Weights, along


class EulerAncestralRun(SigmaRun):
    """x ← x + (σ_down - σ)·(x - x0)/σ + σ_up·z."""

    def configure(self) -> None:
        self.weights: list[Weights] = []
        for level, target in zip(self.levels, self.targets, strict=True):
            down, up = ancestral_step(level.sigma, target.sigma)
            h = (down - level.sigma) / level.sigma if level.sigma else 0.0
            self.weights.append(along(h, self.to_x0(level), of_noise=up))

    def noise_kept(self, i: int) -> float | None:
        return ancestral_step(self.levels[i].sigma, self.targets[i].sigma)[0]

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        previous = self.weights[i].sum(x, prediction, z=(noise or draw)(prediction))
        return StepOutput(cast(previous, x.dtype), self._later(prediction, i, x))


class EulerAncestralDiscreteScheduler(NoisyStep, SigmaScheduler):
    """Euler steps with fresh noise after each: more variety than Euler, and never the same limit at more steps.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the noise
            schedule; see :meth:`NoiseSchedule.from_config`.
        prediction_type: "epsilon" or "v_prediction".
        timestep_spacing, steps_offset: which timesteps a run visits; see :mod:`langevin.schedulers.spacing`.

        >>> run = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear").plan(20)
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x, noise=torch.randn_like).prev_sample
    """

    prediction_types = ("epsilon", "v_prediction")
    _steps_at_once = True
    _refuses_whole_timesteps = True

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon", timestep_spacing: str = "linspace", steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    def _run_over(self, timesteps: list[float], sigmas: list[float]) -> EulerAncestralRun:
        return EulerAncestralRun(timesteps, sigmas, self.config.prediction_type, self._init_noise_sigma(sigmas))
