"""Euler's method for preconditioned networks: Karras, Aittala, Aila & Laine 2022, "Elucidating the
Design Space of Diffusion-Based Generative Models" (EDM), arXiv:2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.edm.base import EDMScheduler, PreconditionedRun
from langevin.schedulers.edm.deviations import Published
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.sigma.euler import EulerRun
from langevin.schedulers.steps import ChurnedStep


class EDMEulerRun(PreconditionedRun, EulerRun):
    """Algorithm 2 without its second-order correction."""

    _read_after_churn = ("epsilon", "v_prediction")


class EDMEulerScheduler(ChurnedStep, EDMScheduler):
    """First order for preconditioned networks, deterministic unless ``s_churn`` is given.

    Args:
        sigma_min, sigma_max: the ends of the schedule.
        sigma_data: standard deviation of the training data.
        sigma_schedule: "karras" (equation 5) or "exponential" (log σ is even).
        num_train_timesteps: how many levels there are before ``set_timesteps``, less one.
        prediction_type: "epsilon": the network is F as published; "v_prediction": F is its negative.
        rho: bend of the Karras schedule.
        final_sigmas_type: end at "zero", or hold the least σ for a last step ("sigma_min").

    Run options: ``s_churn``, ``s_tmin``, ``s_tmax``, ``s_noise`` (algorithm 2): the noise added before each step;
    ``as_published``: a single step of the exponential schedule begins at σ_max; in the reference implementation it
    begins at σ_min.

        >>> run = EDMEulerScheduler().plan(20)
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    run_options = ("s_churn", "s_tmin", "s_tmax", "s_noise", "as_published")
    _steps_at_once = True
    _refuses_whole_timesteps = True

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5,
        sigma_schedule: str = "karras", num_train_timesteps: int = 1000, prediction_type: str = "epsilon",
        rho: float = 7.0, final_sigmas_type: str = "zero",
    ):  # fmt: skip
        self._check_schedule()

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: Published, **churn: Any,
    ) -> Run:  # fmt: skip
        run = super()._plan(steps, timesteps, sigmas, manner)
        if churn:
            run.options = churn
            run.configure(**churn)
        return run

    def _run_over(self, sigmas: list[float], final: float) -> EDMEulerRun:
        return EDMEulerRun(
            self._told(sigmas),
            [*sigmas, final],
            self.config.prediction_type,
            sigma_data=self.config.sigma_data,
            init_noise_sigma=self.init_noise_sigma,
        )

    def _whole(self) -> Run:
        levels = self._even(self.config.num_train_timesteps + 1)
        return self._run_over(levels, self._final_sigma(levels))

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
        pred_original_sample: torch.Tensor | None = None,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One step, as :meth:`ChurnedStep.step` has it.

        Args:
            pred_original_sample: x0, where it is known already; ``model_output`` is then not looked at.
        """
        kind = self.config.prediction_type if pred_original_sample is None else "sample"
        if kind != self.run.prediction_type:
            self.run.prediction_type = kind
            self.run.configure(s_churn, s_tmin, s_tmax, s_noise)
        output = model_output if pred_original_sample is None else pred_original_sample
        return super().step(output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict)
