"""SA-Solver: Xue, Yi, Luo, Zhang, Sun, Li & Ma 2023, "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion
Models", arXiv:2309.05019.

A family of stochastic equations has the same marginals as the probability-flow equation: τ(t) says how much noise comes
in (and is taken out); 0 is the flow itself. With λ = log(α/σ), each is linear but for the network's predictions, which
are interpolated by a polynomial: through the latest ones (Adams-Bashforth, the predictor), and, when the network has
been called at the step's end, through that one too (Adams-Moulton, the corrector, at no further call).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, expm1, inf, sqrt
from typing import Any

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, draw
from langevin.schedulers.logsnr.base import LogSNRRun, LogSNRScheduler, log_snr
from langevin.schedulers.logsnr.deis import adams_moments, adams_weights, tell_apart
from langevin.schedulers.logsnr.deviations import LOGSNR, Published
from langevin.schedulers.noise import Level
from langevin.schedulers.run import StepOutput
from langevin.schedulers.scheduler import SchedulerMixin
from langevin.schedulers.steps import NoisyStep
from langevin.schedulers.weights import Recipe

TauFunction = Callable[[float], float]


def between(timestep: float) -> float:
    """τ of a run that was not told: 1 in the middle of the way, 0 at its noisy and at its quiet end."""
    return 1.0 if 200 <= timestep <= 800 else 0.0


def sa_weights(levels: Sequence[Level], here: Level, target: Level, tau: float, predicts_x0: bool) -> Recipe:
    """One step by the predictions.

    Args:
        levels: where the predictions were made, the newest first; the corrector's begin with ``target``. Their number
            is the order.
        here: where x is.
        target: where the step goes.
    """
    rate = 1.0 + tau**2
    if target.sigma == 0.0:  # λ is infinite there: first order
        if predicts_x0:
            return Recipe(0.0, [target.alpha])
        return Recipe(target.alpha / here.alpha, [-rate * target.alpha * here.ratio], tau * target.alpha * here.ratio)
    start, lambdas = log_snr(here), tell_apart(levels)
    h = log_snr(target) - start
    places = [at - start for at in lambdas]
    if not predicts_x0:  # proposition 4.2, for ε
        shares = adams_weights(places, adams_moments(len(places), h, h))
        scale = -rate * target.sigma
        noise = tau * target.sigma * sqrt(expm1(2 * h))
        return Recipe(target.alpha / here.alpha, [scale * share for share in shares], noise)
    moments = adams_moments(len(places), h, -rate * h)
    if len(places) == 2:  # the slope's weight as if the exponential were 1: better at few steps, no worse at many
        moments[1] = h**2 / 2
    scale = rate * target.alpha
    weights = [scale * share for share in adams_weights(places, moments)]
    of_x = exp(-(tau**2) * h) * target.sigma / here.sigma
    return Recipe(of_x, weights, target.sigma * sqrt(-expm1(-2 * tau**2 * h)))


class SASolverRun(LogSNRRun):
    """Correct the sample with the new prediction, then predict the next (algorithm 1): both with the same noise."""

    def __init__(self, *args, predictor_order: int, corrector_order: int, lower_order_final: bool, tau: TauFunction,
                 **options: Any):  # fmt: skip
        self.predictor_order, self.corrector_order = predictor_order, corrector_order
        self.lower_order_final = lower_order_final
        self.tau = tau
        self.origin: torch.Tensor | None = None  # the sample that the last step began with, and its noise
        self.added: torch.Tensor | None = None
        super().__init__(*args, keep=max(predictor_order, corrector_order - 1), **options)

    def configure(self) -> None:
        taus = [float(self.tau(t)) for t in self.timesteps]
        self.draws = any(taus)  # if at any step, then at every one, so that generators go on alike
        self.predictors: list[list[Recipe]] = []  # of every step, by order
        self.correctors: list[list[Recipe]] = []
        for i, (target, tau) in enumerate(zip(self.targets, taus, strict=True)):
            left = len(self) - i if self.lower_order_final else self.predictor_order + self.corrector_order
            known = self.levels[i::-1]
            form = (self.levels[i], target, tau, self.predicts_x0)
            self.predictors.append(
                [sa_weights(known[:n], *form) for n in range(1, min(self.predictor_order, left, i + 1) + 1)]
            )
            self.correctors.append(
                [
                    sa_weights([target, *known[: n - 1]], *form)
                    for n in range(1, min(self.corrector_order, left + 1, i + 2) + 1)
                ]
                if target.sigma
                else []
            )

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        dtype = x.dtype
        m = self.convert(prediction, i, x)
        original = cast(m, dtype) if self.predicts_x0 else self._later(prediction[:, : self.channels], i, x)
        if self.origin is not None and i > 0:
            orders = self.correctors[i - 1]
            order = min(len(self.history) + 1, len(orders))
            x = orders[order - 1].sum(self.origin, [m, *self.history], self.added)
        self.remember(m)
        self.origin, self.added = x, (noise or draw)(m) if self.draws else None
        orders = self.predictors[i]
        previous = orders[min(len(self.history), len(orders)) - 1].sum(x, self.history, self.added)
        return StepOutput(cast(previous, dtype), original)


class SASolverScheduler(NoisyStep, LogSNRScheduler):
    """Multistep, with as much fresh noise on the way as ``tau_func`` says, and a corrector at no further call.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the noise schedule; see
            :meth:`NoiseSchedule.from_config`.
        predictor_order, corrector_order: 1 to 4.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        tau_func: τ of a timestep: 0 is deterministic, 1 as much noise as DDPM. None is 1 from timestep 200 to 800 and 0
            elsewhere. A function cannot be saved.
        thresholding, dynamic_thresholding_ratio, sample_max_value: bound the predicted image by its own quantile.
        algorithm_type: "data_prediction" (works on x0) or "noise_prediction" (on ε).
        lower_order_final: lower orders for the last steps.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`.
        use_flow_sigmas, flow_shift: straight-line levels of flow-matching models.
        lambda_min_clipped: levels noisier than this λ are not visited (-5.1 for the cosine schedule).
        variance_type: "learned" or "learned_range" if the network predicts the variance too, which is not used.
        timestep_spacing, steps_offset: which timesteps a run visits.

    Run option ``as_published``: the last step goes to the clean image. Without it, as in the reference implementation,
    a run ends at the least noisy level, and with a sigma spacing, which has that level already, the last step stays
    where it is. Timesteps of one's own always end clean.

        >>> run = SASolverScheduler(beta_schedule="scaled_linear").plan(20)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    run_options = ("as_published",)
    _says_no_end = True
    # Noise for training is that of the timestep, whatever σ a run has there.
    _levels_at = SchedulerMixin._levels_at

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        predictor_order: int = 2, corrector_order: int = 2, prediction_type: str = "epsilon",
        tau_func: TauFunction | None = None, thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
        algorithm_type: str = "data_prediction", lower_order_final: bool = True, use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, use_flow_sigmas: bool = False,
        flow_shift: float = 1.0, lambda_min_clipped: float = -inf, variance_type: str | None = None,
        timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):  # fmt: skip
        self._refuse_unless("algorithm_type", ("data_prediction", "noise_prediction"))
        for name, order in (("predictor_order", predictor_order), ("corrector_order", corrector_order)):
            if order not in (1, 2, 3, 4):
                raise ValueError(f"{name}={order}: must be 1, 2, 3 or 4")
        self.noise_schedule = self._build_noise_schedule()

    def _run_over(self, visited: list[float], sigmas: list[float], manner: Published = LOGSNR.reference) -> SASolverRun:
        c = self.config
        predicts_x0 = c.algorithm_type == "data_prediction"
        if not predicts_x0:
            predictions.check(c.prediction_type, predictions.PREDICTION_TYPES, "algorithm_type='noise_prediction'")
        return self._lay(
            SASolverRun,
            visited,
            sigmas,
            predictor_order=c.predictor_order,
            corrector_order=c.corrector_order,
            lower_order_final=c.lower_order_final,
            tau=c.tau_func or between,
            predicts_x0=predicts_x0,
            manner=manner,
        )
