"""Euler's method in σ: Karras, Aittala, Aila & Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative
Models", arXiv:2206.00364, algorithm 2 without its second-order correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw
from langevin.schedulers.churn import Churn
from langevin.schedulers.noise import Level
from langevin.schedulers.run import StepOutput
from langevin.schedulers.sigma.base import SigmaRun, SigmaScheduler
from langevin.schedulers.steps import ChurnedStep
from langevin.schedulers.weights import Weights, along


class EulerStep(NamedTuple):
    """x̂ = x + added·z, then x ← weights of x̂ and the output; x0 = p·x̂ + q·output, of which ``reading`` is (p, q)."""

    raised: bool  # whether noise is drawn
    added: float
    weights: Weights
    reading: tuple[float, float]


class EulerRun(SigmaRun):
    """x ← x + (σ_next - σ)·dx/dσ with dx/dσ = (x - x0)/σ (equation 3), after raising σ to σ̂ by some fresh noise."""

    _read_after_churn: ClassVar[tuple[str, ...]] = ("epsilon",)

    def configure(
        self, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
    ) -> None:
        churn, steps = Churn(s_churn, s_tmin, s_tmax, s_noise), len(self.sigmas) - 1
        self.moves: list[EulerStep] = []
        for level, target in zip(self.levels, self.targets, strict=True):
            sigma_hat = churn.raised(level.sigma, steps)
            # The network saw x before the noise went in, which v's weights know and ε's do not.
            read_at = Level(1.0, sigma_hat) if self.prediction_type in self._read_after_churn else level
            reading = self.to_x0(read_at)
            h = (target.sigma - sigma_hat) / sigma_hat if sigma_hat else 0.0
            added = churn.added(level.sigma, sigma_hat)
            self.moves.append(EulerStep(sigma_hat > level.sigma, added, along(h, reading), reading))  # lines 7 and 8

    def noise_kept(self, i: int) -> float | None:
        return None if self.moves[i].raised else self.targets[i].sigma

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        raised, added, weights, (p, q) = self.moves[i]
        dtype = x.dtype
        if raised:
            x = combine((1.0, x), (added, (noise or draw)(prediction)))
        previous = weights.sum(x, prediction)
        return StepOutput(cast(previous, dtype), lambda: cast(combine((p, x), (q, prediction)), dtype))


class EulerDiscreteScheduler(ChurnedStep, SigmaScheduler):
    """First order, deterministic unless ``s_churn`` is given.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the noise
            schedule; see :meth:`NoiseSchedule.from_config`.
        prediction_type: "epsilon", "sample" or "v_prediction".
        interpolation_type: how σ lies between timesteps: "linear" in the table of σ, or "log_linear": log σ evenly
            from σ_max to σ_min.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`.
        sigma_min, sigma_max: the ends for these; None takes the run's own.
        timestep_spacing, steps_offset: which timesteps a run visits.
        timestep_type: "discrete", or "continuous": a v-predicting network is told log(σ)/4.
        final_sigmas_type: end at "zero" or at "sigma_min".

    Run options: ``s_churn``, ``s_tmin``, ``s_tmax``, ``s_noise`` (algorithm 2): the noise added before each step.

        >>> run = EulerDiscreteScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True).plan(20)
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    run_options = ("s_churn", "s_tmin", "s_tmax", "s_noise")

    _steps_at_once = True
    _refuses_whole_timesteps = True

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon", interpolation_type: str = "linear",
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, sigma_min: float | None = None, sigma_max: float | None = None,
        timestep_spacing: str = "linspace", timestep_type: str = "discrete", steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False, final_sigmas_type: str = "zero",
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    @property
    def _tells_log_sigma(self) -> bool:
        return self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction"

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, **options: Any
    ) -> SigmaRun:
        if timesteps is not None and self._tells_log_sigma:
            raise ValueError(
                "timesteps cannot be given with timestep_type='continuous' and prediction_type='v_prediction', where "
                "the network is told log(σ)/4; give sigmas"
            )
        return super()._plan(steps, timesteps, sigmas, **options)

    def _run_over(self, timesteps: list[float], sigmas: list[float], **options: Any) -> EulerRun:
        if self._tells_log_sigma:
            timesteps = [0.25 * math.log(sigma) for sigma in sigmas[:-1]]
        prediction_type = self.config.prediction_type
        return EulerRun(timesteps, sigmas, prediction_type, self._init_noise_sigma(sigmas), **options)

    def _sigmas_between(self, timesteps: list[float]) -> list[float]:
        kind, table = self.config.interpolation_type, self.noise_schedule.sigmas
        if kind == "linear":
            return self.noise_schedule.sigma_at(timesteps)
        if kind == "log_linear":
            return np.geomspace(table[-1], table[0], len(timesteps) + 1).tolist()
        raise ValueError(f"interpolation_type={kind!r} in the config: must be one of 'linear', 'log_linear'")
