"""DPM-Solver, singlestep: Lu, Zhou, Bao, Chen, Li & Zhu 2022, "DPM-Solver: A Fast ODE Solver for Diffusion
Probabilistic Model Sampling in Around 10 Steps", arXiv:2206.00927; and DPM-Solver++, arXiv:2211.01095, in the same
form.

Calls come in groups of 1, 2 or 3. Each goes from the *group's* first sample to the next level, with all the predictions
that the group has made so far: the last of a group of k is a step of order k, and the ones before it are only there to
ask the network on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, draw
from langevin.schedulers.logsnr.base import LogSNRRun, LogSNRScheduler
from langevin.schedulers.logsnr.deviations import LOGSNR, Published
from langevin.schedulers.logsnr.dpm_multistep import check_solver, dpm_weights
from langevin.schedulers.noise import Level
from langevin.schedulers.run import StepOutput
from langevin.schedulers.steps import NoisyStep
from langevin.schedulers.weights import Recipe

ALGORITHMS = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++")


def orders_of(steps: int, order: int, last_alone: bool, ends_clean: bool) -> list[int]:
    """The order of every call: 1, 2, … ``order`` again and again (arXiv:2206.00927, section 3.4).

    Args:
        last_alone: a last group that would be whole is cut short, and its last call stands alone.
        ends_clean: the last call is of first order in any case, as a step into σ = 0 has to be.
    """
    orders = [i % order + 1 for i in range(steps)]
    if ends_clean or (last_alone and steps % order == 0):
        orders[-1] = 1
    return orders


def singlestep_weights(
    algorithm: str, solver_type: str, levels: Sequence[Level], target: Level, manner: Published
) -> Recipe:
    """A step from the *last* of ``levels``.

    ``levels`` are where the predictions were made, the newest first. A third-order step of type "midpoint" leaves out
    the one in the middle (arXiv:2206.00927, algorithm 2, and arXiv:2211.01095, appendix A).
    """
    outwards = levels[::-1]
    if len(levels) == 3 and solver_type == "midpoint":
        of_x, (first, newest), noise = dpm_weights(algorithm, "heun", [outwards[0], outwards[2]], target)
        return Recipe(of_x, [newest, 0.0, first], noise)
    of_x, weights, noise = dpm_weights(algorithm, solver_type, outwards, target, manner, bend=2.0)
    return Recipe(of_x, weights[::-1], noise)


class DPMSinglestepRun(LogSNRRun):
    """x ← A·x_group + Σ_k c_k·m_k + s·z, with x_group the sample that the group of calls began with."""

    def __init__(self, *args, algorithm: str, solver_type: str, orders: Sequence[int], **options: Any):
        self.algorithm, self.solver_type, self.orders = algorithm, solver_type, orders
        self.origin: torch.Tensor | None = None
        self.added: torch.Tensor | None = None  # noise, since the group began
        super().__init__(*args, keep=max(orders), predicts_x0=algorithm.endswith("++"), **options)

    def configure(self) -> None:
        form = (self.algorithm, self.solver_type)
        self.recipes = [  # of every call, by order
            [singlestep_weights(*form, self.levels[i::-1][:n], target, self.manner) for n in range(1, most + 1)]
            for i, (most, target) in enumerate(zip(self.orders, self.targets, strict=True))
        ]

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        m0 = self.convert(prediction, i, x)
        self.remember(m0)
        order = min(self.orders[i], len(self.history))  # less where a run begins within a group (image to image)
        if order == 1 or self.origin is None:
            self.origin = x
        recipe = self.recipes[i][order - 1]
        if self.algorithm.startswith("sde"):
            before = self.added if order > 1 else None
            self.added = self.manner.noise_so_far(before, (noise or draw)(m0), recipe, last=self.recipes[i][0])
            recipe = recipe._replace(noise=1.0)
        previous = recipe.sum(self.origin, self.history, self.added)
        original = cast(m0, x.dtype) if self.predicts_x0 else self._later(prediction[:, : self.channels], i, x)
        return StepOutput(cast(previous, x.dtype), original)


class DPMSolverSinglestepScheduler(NoisyStep, LogSNRScheduler):
    """Second or third order without a history: every two or three calls stand by themselves.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the noise schedule; see
            :meth:`NoiseSchedule.from_config`.
        solver_order: 1, 2 (for guided sampling) or 3: the calls in a group.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        thresholding, dynamic_thresholding_ratio, sample_max_value: bound the predicted image by its own quantile.
        algorithm_type: "dpmsolver++" (works on x0), "dpmsolver" (on ε), or "sde-dpmsolver++": fresh noise every call.
        solver_type: "midpoint" or "heun", how predictions within a group are weighed.
        lower_order_final: the last step is of first order, so that the group before it is one call shorter. Where the
            number of steps is no multiple of ``solver_order``, the last group is short in any case.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`. Without, timesteps are evenly spaced.
        use_flow_sigmas, flow_shift, use_dynamic_shifting, time_shift_type: straight-line levels of flow-matching
            models, and how they are shifted.
        final_sigmas_type: end at "zero" or at "sigma_min".
        lambda_min_clipped: levels noisier than this λ are not visited (-5.1 for the cosine schedule).
        variance_type: "learned" or "learned_range" if the network predicts the variance too, which is not used.

    Run options: ``mu``, flow_shift = exp(mu), if ``use_dynamic_shifting``; ``as_published``: all calls of a stochastic
    group are on one path of the noise, and the third-order step of type "heun" is as the expansion gives it. The
    reference implementation draws each call's noise anew, so that pictures lose contrast (second order is then worse
    than first), and has another sign in that step, with which x grows beyond bounds.

        >>> run = DPMSolverSinglestepScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True).plan(20)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        solver_order: int = 2, prediction_type: str = "epsilon", thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint", lower_order_final: bool = False,
        use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False, flow_shift: float = 1.0, final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -inf, variance_type: str | None = None, use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ):  # fmt: skip
        check_solver(self, ALGORITHMS)
        if solver_order not in (1, 2, 3):
            raise ValueError(f"solver_order={solver_order}: must be 1, 2 or 3")
        self.noise_schedule = self._build_noise_schedule()

    def _run_over(
        self, visited: list[float], sigmas: list[float], manner: Published = LOGSNR.reference
    ) -> DPMSinglestepRun:
        c = self.config
        if c.algorithm_type == "dpmsolver":
            predictions.check(c.prediction_type, predictions.PREDICTION_TYPES, "algorithm_type='dpmsolver'")
        return self._lay(
            DPMSinglestepRun,
            visited,
            sigmas,
            algorithm=c.algorithm_type,
            solver_type=c.solver_type,
            orders=orders_of(len(visited), c.solver_order, c.lower_order_final, sigmas[-1] == 0.0),
            manner=manner,
        )
