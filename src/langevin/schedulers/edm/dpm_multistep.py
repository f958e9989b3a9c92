"""DPM-Solver++ for preconditioned networks: Lu et al. 2022, arXiv:2211.01095, on the levels of Karras et al. 2022,
arXiv:2206.00364. See :mod:`langevin.schedulers.logsnr.dpm_multistep` and :mod:`langevin.schedulers.edm.base`.
"""

from __future__ import annotations

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.edm.base import EDMScheduler, PreconditionedRun
from langevin.schedulers.logsnr.dpm_multistep import DPMMultistepRun, check_solver, low_orders
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run
from langevin.schedulers.steps import NoisyStep


class EDMMultistepRun(PreconditionedRun, DPMMultistepRun):
    """DPM-Solver++ with α = 1."""


class EDMDPMSolverMultistepScheduler(NoisyStep, EDMScheduler):
    """DPM-Solver++ for preconditioned networks; see :class:`DPMSolverMultistepScheduler`.

    Args:
        sigma_min, sigma_max, sigma_data, sigma_schedule, num_train_timesteps, prediction_type, rho: see
            :class:`EDMEulerScheduler`.
        solver_order: 1, 2 (for guided sampling) or 3.
        thresholding, dynamic_thresholding_ratio, sample_max_value: bound the predicted image by its own quantile.
        algorithm_type: "dpmsolver++", or "sde-dpmsolver++" for fresh noise at every step.
        solver_type: "midpoint" or "heun", for second-order steps.
        lower_order_final: lower orders for the last steps of runs of fewer than 15.
        euler_at_final: first order for the last step.
        final_sigmas_type: end at "zero", or hold the least σ for a last step ("sigma_min").

    Run option ``as_published``: a single step of the exponential schedule begins at σ_max.

        >>> run = EDMDPMSolverMultistepScheduler().plan(20)
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    _tuple_has_original = False

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5,
        sigma_schedule: str = "karras", num_train_timesteps: int = 1000, prediction_type: str = "epsilon",
        rho: float = 7.0, solver_order: int = 2, thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint", lower_order_final: bool = True,
        euler_at_final: bool = False, final_sigmas_type: str = "zero",
    ):  # fmt: skip
        check_solver(self, ("dpmsolver++", "sde-dpmsolver++"))
        self._check_schedule()

    def _run_over(self, sigmas: list[float], final: float) -> EDMMultistepRun:
        c = self.config
        levels = [Level(1.0, sigma) for sigma in [*sigmas, final]]
        return EDMMultistepRun(
            self._told(sigmas),
            levels[:-1],
            levels[1:],
            c.prediction_type,
            predictions.limiter(self._own),
            sigma_data=c.sigma_data,
            init_noise_sigma=self.init_noise_sigma,
            algorithm=c.algorithm_type,
            solver_type=c.solver_type,
            order=c.solver_order,
            **low_orders(self._own, len(sigmas), final == 0.0),
        )

    def _final_sigma(self, sigmas: list[float]) -> float:
        return 0.0 if self.config.final_sigmas_type == "zero" else self.config.sigma_min

    def _whole(self) -> Run:
        return self._run_over(self._even(self.config.num_train_timesteps), 0.0)
