"""DEIS: Zhang & Chen 2022, "Fast Sampling of Diffusion Models with Exponential Integrator", arXiv:2204.13902.

In ρ = σ/α the probability-flow equation is d(x/α) = ε·dρ (equation 13), and ε is interpolated by a polynomial through
its latest values. Here the polynomial is one in log ρ = -λ ("ρ-AB" with logarithmic nodes), whose integral against dρ
is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.exponential import phi
from langevin.schedulers.logsnr.base import LogSNRScheduler, log_snr
from langevin.schedulers.logsnr.deviations import LOGSNR, Published
from langevin.schedulers.logsnr.dpm_multistep import DPMMultistepRun, low_orders
from langevin.schedulers.noise import Level
from langevin.schedulers.steps import PlainStep
from langevin.schedulers.weights import Recipe


def adams_moments(count: int, h: float, z: float) -> list[float]:
    """∫ exp(z·(1 - s/h))·s^k ds over 0 to h, for k = 0, 1, … ``count`` - 1: k!·h^(k+1)·φ_{k+1}(z)."""
    return [math.factorial(k) * h ** (k + 1) * phi(k + 1, z) for k in range(count)]


def adams_weights(places: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights of a function's values at ``places``: those of the polynomial through them, integrated.

    ``moments``: the integrals of 1, s, s², …, as many as there are places.
    """
    return np.linalg.solve(np.vander(places, increasing=True).T, moments).tolist()


def tell_apart(levels: Sequence[Level]) -> list[float]:
    """λ of the levels, up to the first that repeats the one before: twice the same says nothing about a slope."""
    lambdas = [log_snr(level) for level in levels]
    return lambdas[: next((k for k in range(1, len(lambdas)) if lambdas[k] == lambdas[k - 1]), len(lambdas))]


class DEISRun(DPMMultistepRun):
    """x_t = α_t·(x/α_s + Σ_k C_k·ε_k) with C_k = ∫ ℓ_k(log ρ) dρ over the step (equations 14 and 15)."""

    def to_epsilon(self, level: Level) -> tuple[float, float]:
        p, q = self.to_x0(level)  # by way of x0: as published the same, and else what the reference implementation does
        return (1.0 - level.alpha * p) / level.sigma, -level.alpha * q / level.sigma

    def recipe(self, levels: Sequence[Level], target: Level) -> Recipe:
        here, lambdas = levels[0], tell_apart(levels)
        if target.sigma == 0.0:  # log ρ has no end there: first order
            return Recipe(target.alpha / here.alpha, [-target.alpha * here.ratio])
        h = log_snr(target) - lambdas[0]
        # With s = λ - λ_s, dρ is -ρ_t·exp(h - s)·ds.
        shares = adams_weights([at - lambdas[0] for at in lambdas], adams_moments(len(lambdas), h, h))
        return Recipe(target.alpha / here.alpha, [-target.sigma * share for share in shares])


class DEISMultistepScheduler(PlainStep, LogSNRScheduler):
    """Adams-Bashforth on ε with exact exponentials: first to third order, one network call a step.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the noise schedule; see
            :meth:`NoiseSchedule.from_config`.
        solver_order: 1 (that is DDIM), 2 (for guided sampling) or 3.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        thresholding, dynamic_thresholding_ratio, sample_max_value: bound the predicted image by its own quantile.
        algorithm_type, solver_type: "deis" and "logrho"; what other solvers call theirs is taken for these.
        lower_order_final: lower orders for the last steps of runs of fewer than 15.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`.
        use_flow_sigmas, flow_shift, use_dynamic_shifting, time_shift_type: straight-line levels of flow-matching
            models, and how they are shifted.
        timestep_spacing, steps_offset: which timesteps a run visits.

    Run options: ``mu``, flow_shift = exp(mu), if ``use_dynamic_shifting``; ``as_published``: the last step goes to the
    clean image. Without it, as in the reference implementation, a run ends at the least noisy level, and with a sigma
    spacing, which has that level already, the last step stays where it is. Timesteps of one's own always end clean.

        >>> run = DEISMultistepScheduler(beta_schedule="scaled_linear").plan(15)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    _says_no_end = True

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        solver_order: int = 2, prediction_type: str = "epsilon", thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0, algorithm_type: str = "deis",
        solver_type: str = "logrho", lower_order_final: bool = True, use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, use_flow_sigmas: bool = False,
        flow_shift: float = 1.0, timestep_spacing: str = "linspace", steps_offset: int = 0,
        use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
    ):  # fmt: skip
        self._refuse_unless("algorithm_type", ("deis",), dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"))
        other = ("midpoint", "heun", "bh1", "bh2")
        self._refuse_unless("solver_type", ("logrho",), dict.fromkeys(other, "logrho"))
        self.noise_schedule = self._build_noise_schedule()

    def _run_over(self, visited: list[float], sigmas: list[float], manner: Published = LOGSNR.reference) -> DEISRun:
        c = self.config
        return self._lay(
            DEISRun,
            visited,
            sigmas,
            algorithm=c.algorithm_type,
            solver_type=c.solver_type,
            order=c.solver_order,
            manner=manner,
            **low_orders(self._own, len(visited), sigmas[-1] == 0.0),
        )
