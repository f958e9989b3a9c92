"""Heun's second-order method in σ: Karras, Aittala, Aila & Laine 2022, "Elucidating the Design Space of
Diffusion-Based Generative Models", arXiv:2206.00364, algorithm 1.
"""

from __future__ import annotations

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, combine
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.sigma.base import SigmaRun, SigmaScheduler
from langevin.schedulers.steps import PlainStep


class HeunRun(SigmaRun):
    """Two calls a step: at σ_i, and, after an Euler step there, at σ_{i+1}. The step to σ = 0 has the first alone.

    What a call does follows from the call before it, so that a run may begin at any step's first call: every even
    ``i``.
    """

    def configure(self) -> None:
        self.slope: torch.Tensor | None = None  # d_i, between a step's first call and its second
        self.origin: torch.Tensor | None = None  # x_i
        # line 4: d = (x - x0)/σ is a·x + b·output
        self.slopes = [predictions.to_slope(self.prediction_type, level) for level in self.levels]

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        if self.limit is None:
            a, b = self.slopes[i]
            slope, original = [(a, x), (b, prediction)], self._later(prediction, i, x)
        else:
            x0, sigma = self._original(prediction, i, x), self.levels[i].sigma
            slope, original = [(1.0 / sigma, x), (-1.0 / sigma, x0)], cast(x0, x.dtype)

        if self.slope is None or self.origin is None:  # line 5: x_{i+1} = x_i + (t_{i+1} - t_i)·d_i
            self.origin, self.slope = x, combine(*slope)
            h = self.targets[i].sigma - self.levels[i].sigma
            previous = combine((1.0, x), (h, self.slope))
        else:  # line 8: x_{i+1} = x_i + (t_{i+1} - t_i)·(d_i + d'_i)/2
            h = self.levels[i].sigma - self.levels[i - 1].sigma
            previous = combine((1.0, self.origin), (h / 2, self.slope), *((h / 2 * w, part) for w, part in slope))
            self.slope = self.origin = None
        return StepOutput(cast(previous, x.dtype), original)


class HeunDiscreteScheduler(PlainStep, SigmaScheduler):
    """Second order; two network calls a step, so n steps are 2n - 1 calls.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the noise schedule; see
            :meth:`NoiseSchedule.from_config`.
        prediction_type: "epsilon", "sample" or "v_prediction".
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`.
        clip_sample, clip_sample_range: bound the predicted image, for models of pixels.
        timestep_spacing, steps_offset: which timesteps a run visits.

        >>> run = HeunDiscreteScheduler(use_karras_sigmas=True).plan(10)  # 19 calls
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    order = 2
    prediction_types = ("epsilon", "sample", "v_prediction")
    _steps_at_once = True

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon", use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False, clip_sample: bool = False, clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    def _run_over(self, timesteps: list[float], sigmas: list[float]) -> HeunRun:
        calls = [timesteps[0], *(t for t in timesteps[1:] for _ in range(2))]
        visited = [sigmas[0], *(s for s in sigmas[1:-1] for _ in range(2)), sigmas[-1]]
        limit = predictions.limiter(self._own)
        start = self._init_noise_sigma(sigmas)
        return HeunRun(calls, visited, self.config.prediction_type, start, limit=limit)

    def _whole(self) -> Run:
        return self.plan(self.config.num_train_timesteps)

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of its step."""
        return getattr(self.run, "slope", None) is None
