"""DDPM: Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239.

Learned variances: Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", arXiv:2102.09672.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from typing import NamedTuple

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.checks import one_of
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, draw
from langevin.schedulers.noise import Level, alpha_of_step
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.steps import NoisyStep
from langevin.schedulers.timesteps.base import TimestepScheduler
from langevin.schedulers.weights import Weights

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
_LEAST_VARIANCE = 1e-20


class Variances(NamedTuple):
    """The least and the greatest variance that a step may sensibly have (section 3.2)."""

    small: float  # β̃, right if the data were a single point
    large: float  # β, right if they were standard normal

    def fixed(self, variance_type: str) -> float:
        """The one that the variance type names."""
        return self.large if variance_type.startswith("fixed_large") else self.small


class DDPMRun(Run):
    """x_{t-1} ~ N(μ(x_t, x0), σ_t²), with the posterior mean and variance of equation 7.

    Over a step that skips timesteps, β_t = 1 - ᾱ_t/ᾱ_prev; ``alphas`` says otherwise what α = 1 - β each step has.
    """

    def __init__(self, *args, variance_type: str, alphas: Sequence[float] | None = None, **options):
        self.variance_type = variance_type
        self.alphas = alphas
        super().__init__(*args, **options)

    @property
    def learns_variance(self) -> bool:  # type: ignore[override]
        """Whether σ_t is the network's to say, or to choose: "learned" and "learned_range"."""
        return self.variance_type in ("learned", "learned_range")

    def configure(self) -> None:
        self.weights: list[Weights] = []
        self.variances: list[Variances] = []
        for i, (level, target) in enumerate(zip(self.levels, self.targets, strict=True)):
            alpha = alpha_of_step(level, target) if self.alphas is None else self.alphas[i]
            beta = 1.0 - alpha
            of_x0 = target.alpha * beta / level.sigma**2  # equation 7: the mean μ̃
            of_x = sqrt(alpha) * target.sigma**2 / level.sigma**2
            small = target.sigma**2 / level.sigma**2 * beta  # and the variance β̃
            variances = Variances(max(small, _LEAST_VARIANCE), max(beta, _LEAST_VARIANCE))

            # A learned deviation is multiplied into the noise itself.
            of_noise = 1.0 if self.learns_variance else sqrt(variances.fixed(self.variance_type))
            if self.limit is None:
                p, q = self.to_x0(level)
                weights = Weights(of_x + of_x0 * p, of_x0 * q, of_noise=of_noise)
            else:
                weights = Weights(of_x, 0.0, of_x0, of_noise)
            self.weights.append(weights)
            self.variances.append(variances)

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        v = None
        if self.learns_variance and prediction.shape[1] == 2 * x.shape[1]:
            prediction, v = prediction.chunk(2, dim=1)
        if self.limit is None:
            self.refuse_blind_start(i)
            x0, original = None, self._later(prediction, i, x)
        else:
            x0 = self._original(prediction, i, x)
            original = cast(x0, x.dtype)
        z = None
        if self.timesteps[i] > 0:  # algorithm 2: no noise into the image itself
            z = (noise or draw)(prediction)
            if self.learns_variance:
                z = self._learned_deviation(v, self.variances[i]) * z
        return StepOutput(cast(self.weights[i].sum(x, prediction, x0, z), x.dtype), original)

    def _learned_deviation(self, v: torch.Tensor | None, variances: Variances) -> torch.Tensor:
        if v is None:
            raise ValueError(
                f"variance_type={self.variance_type!r} needs a network output with twice the sample's channels: "
                "the prediction, then the variance"
            )
        if self.variance_type == "learned":
            return v.sqrt()
        # arXiv:2102.09672, equation 15: log σ² lies between log β̃ (v = -1) and log β (v = 1); half of it for σ.
        low, high = log(variances.small), log(variances.large)
        return (v * ((high - low) / 4) + (high + low) / 4).exp()


class DDPMScheduler(NoisyStep, TimestepScheduler):
    """Ancestral sampling: every step adds the noise that the training process would have had there.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the noise
            schedule; see :meth:`NoiseSchedule.from_config`.
        variance_type: "fixed_small" (β̃), "fixed_large" (β), the same with "_log", "learned" (the network's second
            half of channels is σ²) or "learned_range" (it chooses between β̃ and β).
        clip_sample, clip_sample_range: bound the predicted image, for models of pixels. Off for latents.
        thresholding, dynamic_thresholding_ratio, sample_max_value: bound it by its own quantile instead.
        prediction_type: "epsilon", "sample" or "v_prediction".
        timestep_spacing, steps_offset: which timesteps a run visits; see :mod:`langevin.schedulers.spacing`.

        >>> run = DDPMScheduler().plan(1000)
        >>> x = torch.randn(1, 3, 32, 32)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x, noise=torch.randn_like).prev_sample
    """

    _steps_at_once = True
    _takes = {"variance_type": one_of(VARIANCE_TYPES) | None}

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        variance_type: str = "fixed_small", clip_sample: bool = True, prediction_type: str = "epsilon",
        thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0, timestep_spacing: str = "leading", steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    def _plan(self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> DDPMRun:
        config = self.config
        kind = "fixed_small" if config.variance_type is None else config.variance_type  # as DPM-Solver's configs say it
        visited = self._visit(steps, timesteps, sigmas, Level(1.0, 0.0))
        limit = predictions.limiter(self._own)
        return DDPMRun(*visited, config.prediction_type, limit, variance_type=kind)
