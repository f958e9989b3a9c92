"""Linear multistep in σ: Crowson's k-diffusion, ``sample_lms``.

Adams-Bashforth on a grid that need not be even: the slope between two levels is the polynomial through the latest
slopes, integrated exactly (Hairer, Nørsett & Wanner, "Solving Ordinary Differential Equations I", section III.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, combine
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.sigma import deviations
from langevin.schedulers.sigma.base import SigmaRun, SigmaScheduler
from langevin.schedulers.weights import Recipe


@cache
def _gauss_legendre(count: int) -> list[tuple[float, float]]:
    nodes, shares = np.polynomial.legendre.leggauss(count)
    return list(zip(nodes.tolist(), shares.tolist(), strict=True))


def multistep_weights(knots: Sequence[float], start: float, end: float) -> list[float]:
    """∫ from start to end of each Lagrange polynomial over ``knots``, by a quadrature that is exact for its degree."""
    half = (end - start) / 2
    points = [(start + half * (1 + node), half * share) for node, share in _gauss_legendre((len(knots) + 1) // 2)]
    weights = []
    for k, knot in enumerate(knots):
        others = [other for j, other in enumerate(knots) if j != k and other != knot]
        scale = math.prod(knot - other for other in others)
        weights.append(sum(share * math.prod(place - other for other in others) for place, share in points) / scale)
    return weights


class LMSRun(SigmaRun):
    """x ← x + Σ_k w_k·d_{i-k} with d = (x - x0)/σ.

    Args:
        manner: for how many slopes the weights are, of the number there are and of the greatest there could be.
    """

    def __init__(self, *args: Any, manner: Callable[[int, int], int], **options: Any):
        self.manner = manner
        self.history: list[torch.Tensor] = []  # slopes, the newest first
        super().__init__(*args, **options)

    def configure(self, order: int = 4) -> None:
        if order < 1:
            raise ValueError(f"order={order}: the number of slopes to use must be at least 1")
        self.order = order
        self.slopes = [predictions.to_slope(self.prediction_type, level) for level in self.levels]
        self.recipes = [  # recipes[i][n - 1]: at call i, with n slopes
            [self._recipe(i, n) for n in range(1, min(order, i + 1) + 1)] for i in range(len(self))
        ]

    def _recipe(self, i: int, n: int) -> Recipe:
        sigmas = self.sigmas
        return Recipe(1.0, multistep_weights(sigmas[i - n + 1 : i + 1][::-1], sigmas[i], sigmas[i + 1]))

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        a, b = self.slopes[i]
        self.history = [combine((a, x), (b, prediction)), *self.history[: self.order - 1]]
        orders = self.recipes[i]
        recipe = orders[min(self.manner(len(self.history), self.order), len(orders)) - 1]
        return StepOutput(cast(recipe.sum(x, self.history), x.dtype), self._later(prediction, i, x))


class LMSDiscreteScheduler(SigmaScheduler):
    """Up to fourth order, one network call a step.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the noise schedule; see
            :meth:`NoiseSchedule.from_config`.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`.
        prediction_type: "epsilon", "sample" or "v_prediction".
        timestep_spacing, steps_offset: which timesteps a run visits.

    Run options: ``order``, how many slopes to use; ``as_published``: a run that begins late (image to image) begins
    with low orders. Without it, it takes, like the reference implementation, the leading weights of the full order
    for slopes that it does not have.

        >>> run = LMSDiscreteScheduler(use_karras_sigmas=True).plan(20)
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    run_options = ("order", "as_published")
    _manners = deviations.LMS_SLOPES
    prediction_types = ("epsilon", "sample", "v_prediction")
    _steps_at_once = True

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon", timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    def _run_over(self, timesteps: list[float], sigmas: list[float], **options: Any) -> LMSRun:
        start = self._init_noise_sigma(sigmas)
        return LMSRun(timesteps, sigmas, self.config.prediction_type, start, **options)

    def _whole(self) -> Run:
        return self.plan(self.config.num_train_timesteps)

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        order: int = 4, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``, given the scaled sample.
            timestep: one of ``scheduler.timesteps``. Looked up at the first step; after that, steps are counted.
            sample: x at that timestep, not scaled.
            order: how many slopes to use.
            return_dict: False gives the tuple ``(prev_sample, pred_original_sample)``.
        """
        return self._step(model_output, timestep, sample, None, return_dict, None, order=order)
