"""UniPC: Zhao, Bai, Rao, Zhou & Lu 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
Models", arXiv:2302.04867.

A step of order p (UniP-p) uses the p latest predictions; when the network has been called at the step's end, the same
step is taken again with that prediction added (UniC-p), at no further call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast
from langevin.schedulers.logsnr.base import LogSNRRun, LogSNRScheduler, log_snr
from langevin.schedulers.logsnr.deviations import LOGSNR, Published
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.scheduler import SchedulerMixin
from langevin.schedulers.steps import PlainStep
from langevin.schedulers.weights import Recipe


def unipc_weights(
    levels: Sequence[Level], target: Level, corrects: bool, predicts_x0: bool, solver_type: str
) -> Recipe:
    """One step by the predictions.

    Args:
        levels: where the predictions were made, the newest first; x is at the first. Their number is the order.
        target: where the step goes.
        corrects: the prediction at ``target`` is known too (UniC); its weight is the last.
        predicts_x0: predictions are x0 (otherwise ε).
        solver_type: the function B(h): "bh1" is h, "bh2" is e^h - 1.
    """
    here = levels[0]
    h = log_snr(target) - log_snr(here)
    of_x, scale = (
        (target.sigma / here.sigma, target.alpha) if predicts_x0 else (target.alpha / here.alpha, target.sigma)
    )
    if h == 0.0:
        return Recipe(1.0, [0.0] * (len(levels) + corrects))
    signed = -h if predicts_x0 else h
    growth = math.expm1(signed)
    ratios = [(log_snr(level) - log_snr(here)) / h for level in levels[1:]]
    if math.isinf(h) or len({0.0, *ratios}) <= len(ratios):  # into σ = 0, or a level visited twice: first order
        ratios = []

    # Theorem 3.1: R(h)·a·B(h) = φ(h), one row for each order that shall be right.
    order = len(ratios) + 1
    bound = signed if solver_type == "bh1" else growth
    phi, factorial, wanted = growth / signed - 1, 1, []
    for k in range(1, order + 1):
        wanted.append(phi * factorial / bound)
        factorial *= k + 1
        phi = phi / signed - 1 / factorial
    points = [*ratios, 1.0] if corrects else ratios
    if len(points) == 1:
        shares = [0.5]
    else:
        matrix = np.array([[point**k for point in points] for k in range(len(points))])
        shares = np.linalg.solve(matrix, wanted[: len(points)]).tolist() if points else []

    # x_t = A·x - S·(e^h - 1)·m0 - S·B·Σ a_k·(m_k - m0)/r_k (equations 3 and 8)
    slopes = [-scale * bound * share / point for share, point in zip(shares, points, strict=True)]
    newest = -scale * growth - sum(slopes)
    own = slopes[: len(ratios)] + [0.0] * (len(levels) - 1 - len(ratios))
    return Recipe(of_x, [newest, *own, *slopes[len(ratios) :]])


class UniPCRun(LogSNRRun):
    """Correct the sample with the new prediction, then predict the next."""

    def __init__(self, *args, order: int, lower_order_final: bool, solver_type: str, uncorrected: Sequence[int],
                 predictor: Run | None = None, **options: Any):  # fmt: skip
        self.order, self.lower_order_final = order, lower_order_final
        self.solver_type = solver_type
        self.uncorrected = frozenset(uncorrected)
        self.predictor = predictor
        self.origin: torch.Tensor | None = None  # the sample that the last step began with
        self.last_order = 0
        super().__init__(*args, keep=order, **options)

    def configure(self) -> None:
        self.predictors: list[list[Recipe]] = []  # of every call, by order
        self.correctors: list[list[Recipe]] = []
        for i, target in enumerate(self.targets):
            orders = range(1, min(self.order, i + 1) + 1)
            form = (self.predicts_x0, self.solver_type)
            self.predictors.append([unipc_weights(self.levels[i::-1][:n], target, False, *form) for n in orders])
            self.correctors.append([unipc_weights(self.levels[i::-1][:n], target, True, *form) for n in orders])

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        dtype = x.dtype
        m = self.convert(prediction, i, x)
        original = cast(m, dtype) if self.predicts_x0 else self._later(prediction, i, x)
        if self.origin is not None and i > 0 and i - 1 not in self.uncorrected:
            x = self.correctors[i - 1][self.last_order - 1].sum(self.origin, [*self.history[: self.last_order], m])
        self.remember(m)

        order = min(self.order, len(self) - i) if self.lower_order_final else self.order
        self.last_order = min(order, len(self.history))
        self.origin = x
        if self.predictor is not None:
            return StepOutput(self.predictor.step(prediction, i, x, noise).prev_sample.to(dtype), original)
        previous = self.predictors[i][self.last_order - 1].sum(x, self.history)
        return StepOutput(cast(previous, dtype), original)


class UniPCMultistepScheduler(PlainStep, LogSNRScheduler):
    """Predictor and corrector at one network call a step: good pictures in 10 steps or fewer.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the noise
            schedule; see :meth:`NoiseSchedule.from_config`.
        solver_order: any; 2 for guided sampling, 3 for unguided.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        thresholding, dynamic_thresholding_ratio, sample_max_value: bound the predicted image by its own quantile.
        predict_x0: work on x0; otherwise on ε.
        solver_type: "bh1" or "bh2" (better with guidance).
        lower_order_final: lower orders for the last steps.
        disable_corrector: the steps that are not corrected; [0, 1, 2] may help under strong guidance.
        solver_p: another scheduler that predicts, for UniC alone.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, sigma_min, sigma_max: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`.
        use_flow_sigmas, flow_shift, use_dynamic_shifting, time_shift_type, shift_terminal: straight-line levels of
            flow-matching models, and how they are shifted.
        timestep_spacing, steps_offset: which timesteps a run visits.
        final_sigmas_type: end at "zero" or at "sigma_min".

    Run options: ``mu``, the shift, if ``use_dynamic_shifting``; ``as_published``: see
    :class:`~langevin.schedulers.logsnr.base.LogSNRScheduler`. With ``use_flow_sigmas``, ``sigmas`` given to ``plan``
    are shifted and do not include the one to end at.

        >>> run = UniPCMultistepScheduler(beta_schedule="scaled_linear").plan(10)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    _rounds = ("karras",)

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        solver_order: int = 2, prediction_type: str = "epsilon", thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0, predict_x0: bool = True,
        solver_type: str = "bh2", lower_order_final: bool = True,
        disable_corrector: list[int] = [],  # noqa: B006
        solver_p: SchedulerMixin | None = None, use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, use_flow_sigmas: bool = False,
        flow_shift: float = 1.0, timestep_spacing: str = "linspace", steps_offset: int = 0,
        final_sigmas_type: str = "zero", rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
        sigma_min: float | None = None, sigma_max: float | None = None, shift_terminal: float | None = None,
    ):  # fmt: skip
        self._refuse_unless("solver_type", ("bh1", "bh2"), dict.fromkeys(("midpoint", "heun", "logrho"), "bh2"))
        if shift_terminal is not None and not use_flow_sigmas:
            raise ValueError(f"shift_terminal={shift_terminal} needs use_flow_sigmas=True")
        self.solver_p = solver_p
        self.noise_schedule = self._build_noise_schedule()

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None, mu: float | None = None, timesteps: Sequence[float] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        """Choose the levels that the following ``step`` calls visit; see :meth:`plan`."""
        super().set_timesteps(num_inference_steps, device, mu, timesteps, sigmas, **options)

    def _plan(  # type: ignore[override]  # which of the options there are, run_options says
        self,
        steps: int,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        manner: Published,
        mu: float | None = None,
    ) -> UniPCRun:
        if self.config.use_dynamic_shifting and mu is None:
            raise ValueError("use_dynamic_shifting=True needs the shift: pass mu")
        if self.config.use_flow_sigmas and timesteps is None:
            visited, spaced = self._visit_flow(steps, sigmas, mu)
            name: str | None = "flow"
        else:
            visited, spaced, name = self._visit_sigmas(steps, timesteps, sigmas, None)
        if sigmas is not None and name is None:
            last = float(sigmas[-1])
        else:  # with a sigma spacing the run's own least σ, held
            last = self._last_sigma() if name is None or self.config.final_sigmas_type != "sigma_min" else spaced[-1]
        return self._run_over(visited, [*spaced, last], manner)

    def _visit_flow(
        self, steps: int, sigmas: Sequence[float] | None, mu: float | None
    ) -> tuple[list[float], list[float]]:
        c, train_steps = self.config, self.config.num_train_timesteps
        name = self._sigma_spacing()[0]
        if name is not None and name != "flow":
            _, spaced, _ = self._visit_sigmas(steps, None, None, None)
            sigma = np.array(spaced) / (np.array(spaced) + 1)
            return [int(s * train_steps) for s in sigma], sigma.tolist()
        sigma = np.array(sigmas, dtype=float) if sigmas is not None else np.linspace(1, 1 / train_steps, steps + 1)[:-1]
        if c.use_dynamic_shifting and mu is not None:
            shift = math.exp(mu) if c.time_shift_type == "exponential" else mu
            sigma = shift / (shift + (1 / sigma - 1))
        else:
            sigma = c.flow_shift * sigma / (1 + (c.flow_shift - 1) * sigma)
        if c.shift_terminal and sigma[-1] < 1.0:  # stretched so that the last is shift_terminal
            sigma = 1 - (1 - sigma) / ((1 - sigma[-1]) / (1 - c.shift_terminal))
        if abs(sigma[0] - 1) < 1e-6:  # nothing of the image would be left to divide by
            sigma[0] -= 1e-6
        return [int(s * train_steps) for s in sigma], sigma.tolist()

    def _run_over(self, visited: list[float], sigmas: list[float], manner: Published = LOGSNR.reference) -> UniPCRun:
        c = self.config
        if not c.predict_x0:
            predictions.check(
                c.prediction_type, predictions.PREDICTION_TYPES, "UniPCMultistepScheduler, predict_x0=False"
            )
        return self._lay(
            UniPCRun,
            visited,
            sigmas,
            bounded=c.predict_x0,
            order=c.solver_order,
            lower_order_final=c.lower_order_final,
            solver_type=c.solver_type,
            uncorrected=c.disable_corrector,
            predicts_x0=c.predict_x0,
            manner=manner,
            predictor=self.solver_p.plan(len(visited)) if self.solver_p is not None else None,
        )
