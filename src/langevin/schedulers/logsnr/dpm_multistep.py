"""DPM-Solver++, multistep: Lu, Zhou, Bao, Chen, Li & Zhu 2022, "DPM-Solver++: Fast Solver for Guided Sampling of
Diffusion Probabilistic Models", arXiv:2211.01095; and DPM-Solver, arXiv:2206.00927, in the same form.

With λ = log(α/σ) and h = λ_t - λ_s the step from s to t is exact but for the integral of the network's prediction
(x0 for "++", ε otherwise), which is expanded in the latest predictions m0, m1, m2:

    D0 = m0,  D1 ≈ its first derivative in λ times h,  D2 ≈ half its second derivative times h².

For the stochastic variants, h is replaced by 2h in the weights of the predictions, and noise is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, expm1, inf, sqrt
from typing import Any

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.arithmetic import DrawNoise, cast, draw
from langevin.schedulers.exponential import integrals, weigh
from langevin.schedulers.logsnr.base import LogSNRRun, LogSNRScheduler, log_snr
from langevin.schedulers.logsnr.deviations import LOGSNR, Published
from langevin.schedulers.noise import Level
from langevin.schedulers.run import StepOutput
from langevin.schedulers.scheduler import SchedulerMixin
from langevin.schedulers.weights import Recipe

ALGORITHMS = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")


def check_solver(scheduler: SchedulerMixin, algorithms: Sequence[str]) -> None:
    """Check a config's ``algorithm_type`` and ``solver_type``; other solvers' names for theirs mean the default."""
    scheduler._refuse_unless("algorithm_type", algorithms, {"deis": "dpmsolver++"})
    scheduler._refuse_unless("solver_type", ("midpoint", "heun"), dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"))
    algorithm = scheduler.config.algorithm_type
    if scheduler._own.get("final_sigmas_type") == "zero" and not algorithm.endswith("++"):
        raise ValueError(
            f"final_sigmas_type='zero' does not go with algorithm_type={algorithm!r}, which divides by the last σ; use "
            "final_sigmas_type='sigma_min' or algorithm_type='dpmsolver++'"
        )


def low_orders(settings: Mapping[str, Any], steps: int, ends_clean: bool) -> dict[str, bool]:
    """Where a run of so many steps makes do with lower orders, by the config's settings."""
    short = steps < 15 and settings["lower_order_final"]
    first = settings.get("euler_at_final", False) or short or ends_clean
    return {"first_at_end": first, "second_before": short}


def dpm_weights(
    algorithm: str, solver_type: str, levels: Sequence[Level], target: Level, manner: Published = LOGSNR.reference,
    bend: float = 1.0,
) -> Recipe:  # fmt: skip
    """One step by the predictions.

    Args:
        algorithm: one of ``ALGORITHMS``.
        solver_type: "midpoint" or "heun", how a second-order step weighs D1.
        levels: where the predictions were made, the newest first; x is at the first. Their number is the order.
        target: where the step goes.
        manner: whether a third-order stochastic step is the expansion's.
        bend: see :func:`~langevin.schedulers.exponential.integrals`.
    """
    here = levels[0]
    lambdas = [log_snr(level) for level in levels]
    h = log_snr(target) - lambdas[0]
    times = 2.0 if algorithm.startswith("sde") else 1.0  # the SDE's weights are those of a step of 2h
    order = next((k for k in range(1, len(levels)) if lambdas[k] == lambdas[k - 1]), len(levels))
    lambdas = lambdas[:order]  # a level visited twice tells nothing about derivatives
    if h == 0.0:
        return Recipe(1.0, [0.0])

    if algorithm.endswith("++"):  # arXiv:2211.01095, equations 9 and 14
        of_x = target.sigma / here.sigma * (exp(-h) if times == 2.0 else 1.0)
        scale, z = -target.alpha, -times * h
        noise = target.sigma * sqrt(-expm1(-2 * h)) if times == 2.0 else 0.0
    else:  # arXiv:2206.00927, equations 3.7 and B.4
        of_x = target.alpha / here.alpha
        scale, z = -times * target.sigma, h
        noise = target.sigma * sqrt(expm1(2 * h)) if times == 2.0 else 0.0

    parts = [scale * part for part in integrals(order, z, bend)]
    if order == 2 and solver_type == "midpoint":
        parts[1] = parts[0] / 2
    if order == 3 and algorithm == "sde-dpmsolver++":
        parts[2] += bend * manner.slip(target.alpha)
    return Recipe(of_x, weigh(parts, lambdas, h), noise)


class DPMMultistepRun(LogSNRRun):
    """x ← A·x + Σ_k c_k·m_k + s·z, with as many predictions m as the order in force."""

    def __init__(self, *args, algorithm: str, solver_type: str, order: int, first_at_end: bool, second_before: bool,
                 **options: Any):  # fmt: skip
        self.algorithm, self.solver_type = algorithm, solver_type
        self.order, self.first_at_end, self.second_before = order, first_at_end, second_before
        super().__init__(*args, keep=order, predicts_x0=algorithm.endswith("++"), **options)

    def configure(self) -> None:
        self.recipes: list[list[Recipe]] = []  # of every call, by order
        for i, target in enumerate(self.targets):
            most = min(self.order, i + 1)
            if i == len(self) - 1 and self.first_at_end:
                most = 1
            elif i == len(self) - 2 and self.second_before:
                most = min(most, 2)
            self.recipes.append([self.recipe(self.levels[i::-1][:n], target) for n in range(1, most + 1)])

    def recipe(self, levels: Sequence[Level], target: Level) -> Recipe:
        """The step to ``target`` by predictions made at ``levels``, the newest (where x is) first."""
        return dpm_weights(self.algorithm, self.solver_type, levels, target, self.manner)

    def noise_kept(self, i: int) -> float | None:
        return self.recipes[i][0].of_origin * self.levels[i].sigma if self.predicts_x0 else None

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        m0 = self.convert(prediction, i, x)
        self.remember(m0)
        orders = self.recipes[i]
        recipe = orders[min(len(self.history), len(orders)) - 1]
        z = (noise or draw)(m0) if self.algorithm.startswith("sde") else None
        previous = recipe.sum(x, self.history, z)
        original = cast(m0, x.dtype) if self.predicts_x0 else self._later(prediction[:, : self.channels], i, x)
        return StepOutput(cast(previous, x.dtype), original)


class DPMSolverMultistepScheduler(LogSNRScheduler):
    """Second or third order at one network call a step: good pictures in 15 to 25 steps.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the noise
            schedule; see :meth:`NoiseSchedule.from_config`.
        solver_order: 1, 2 (for guided sampling) or 3.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        thresholding, dynamic_thresholding_ratio, sample_max_value: bound the predicted image by its own quantile.
        algorithm_type: "dpmsolver++" (works on x0), "dpmsolver" (on ε), and "sde-" before either for fresh noise at
            every step.
        solver_type: "midpoint" or "heun", for second-order steps.
        lower_order_final: lower orders for the last steps of runs of fewer than 15.
        euler_at_final: first order for the last step.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`.
        use_flow_sigmas, flow_shift: straight-line levels of flow-matching models.
        final_sigmas_type: end at "zero" or at "sigma_min".
        lambda_min_clipped: levels noisier than this λ are not visited (-5.1 for the cosine schedule).
        variance_type: "learned" or "learned_range" if the network predicts the variance too, which is not used.
        timestep_spacing, steps_offset: which timesteps a run visits.
        use_dynamic_shifting, time_shift_type: the run option ``mu`` may be given.

    Run options: ``mu``, flow_shift = exp(mu); ``as_published``: the third-order stochastic step as the expansion
    gives it. The reference implementation has another sign in it.

        >>> run = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True).plan(20)
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
        algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint", lower_order_final: bool = True,
        euler_at_final: bool = False, use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False, use_lu_lambdas: bool = False, use_flow_sigmas: bool = False,
        flow_shift: float = 1.0, final_sigmas_type: str = "zero", lambda_min_clipped: float = -inf,
        variance_type: str | None = None, timestep_spacing: str = "linspace", steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False, use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ):  # fmt: skip
        check_solver(self, ALGORITHMS)
        self.noise_schedule = self._build_noise_schedule()

    @property
    def _rounds(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.config.beta_schedule == "squaredcos_cap_v2" else ("karras", "lu")

    def _run_over(
        self, visited: list[float], sigmas: list[float], manner: Published = LOGSNR.reference
    ) -> DPMMultistepRun:
        c = self.config
        if c.algorithm_type == "sde-dpmsolver" and c.solver_order > 2:
            raise ValueError(f"algorithm_type='sde-dpmsolver' has orders 1 and 2, not solver_order={c.solver_order}")
        return self._lay(
            DPMMultistepRun,
            visited,
            sigmas,
            algorithm=c.algorithm_type,
            solver_type=c.solver_type,
            order=c.solver_order,
            manner=manner,
            **low_orders(self._own, len(visited), sigmas[-1] == 0.0),
        )

    def step(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``.
            timestep: one of ``scheduler.timesteps``. Looked up at the first step; after that, steps are counted.
            sample: x at that timestep.
            generator: where noise comes from; a list gives each image its own.
            variance_noise: the noise itself, instead of ``generator``.
            return_dict: False gives the tuple ``(prev_sample,)``.
        """
        return self._step(model_output, timestep, sample, generator, return_dict, variance_noise)
