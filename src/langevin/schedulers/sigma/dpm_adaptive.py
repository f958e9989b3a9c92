"""DPM-Solver-12 and -23: Lu et al. 2022, "DPM-Solver", arXiv:2206.00927, appendix C, with the controller of step sizes
of Crowson's k-diffusion, ``sample_dpm_adaptive``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import atan, exp, hypot, isfinite
from typing import Any

import torch

from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw, scaled
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.sigma.ancestral import ancestral_within
from langevin.schedulers.sigma.dpm_fast import dpm_step
from langevin.schedulers.sigma.recipe import RecipeRun, RecipeScheduler, Stage

SMALLEST_STEP = 1e-3  # in λ: taken whatever the error, so that a network that is not smooth comes to an end


class Controller:
    """Proportional-integral-derivative control of the step size h in λ (Söderlind 2003, "Digital filters in adaptive
    time-stepping")."""

    def __init__(self, h: float, order: float, coefficients: tuple[float, float, float], accept_safety: float):
        self.h, self.accept_safety = h, accept_safety
        p, i, d = coefficients
        self.exponents = ((p + i + d) / order, -(p + 2 * d) / order, d / order)
        self.quality: list[float] = []  # 1/error of this attempt and the last two accepted ones

    def accepts(self, error: float) -> bool:
        """Whether an attempt with this error (1 is what is tolerated) stands; sets h for the next."""
        good = 1.0 / (error + 1e-8)
        self.quality = [good, *(self.quality[1:] or (good, good))]
        factor = 1.0
        for quality, exponent in zip(self.quality, self.exponents, strict=True):
            factor *= quality**exponent
        factor = 1.0 + atan(factor - 1.0)  # between 0.2 and 2.6
        tried, self.h = self.h, max(self.h * factor, SMALLEST_STEP)
        if factor < self.accept_safety and tried > SMALLEST_STEP:
            return False
        self.quality = [good, *self.quality[:2]]
        return True


class DPMAdaptiveRun(RecipeRun):
    """A run that lays its next call when it has seen the last: ``len(run)``, ``timesteps`` and ``sigmas`` grow.

    A step is tried with two orders from the same calls. Where they differ too much, the step is tried again, shorter;
    the slope at its beginning is known already.
    """

    slopes = True
    origin: torch.Tensor  # x where the step under way began

    def __init__(self, tell: Callable[[float], float], sigmas: list[float], *args, **options: Any):
        self.tell = tell
        self.start, self.least, self.end = sigmas
        super().__init__([tell(self.start)], [self.start, self.end], *args, **options)

    def configure(
        self, order: int = 3, rtol: float = 0.05, atol: float = 0.0078, h_init: float = 0.05,
        pcoeff: float = 0.0, icoeff: float = 1.0, dcoeff: float = 0.0, accept_safety: float = 0.81,
        eta: float = 0.0, s_noise: float = 1.0,
    ) -> None:  # fmt: skip
        if order not in (2, 3):
            raise ValueError(f"order={order}: it must be 2 or 3")
        super().configure()
        self.order, self.rtol, self.atol, self.eta, self.s_noise = order, rtol, atol, eta, s_noise
        self.controller = Controller(h_init, 1.5 if eta else order, (pcoeff, icoeff, dcoeff), accept_safety)
        self.before: torch.Tensor | None = None  # the lower order's answer to the last step
        self.stages: list[Stage] = []  # of the step under way
        self.rejected = 0

    def scale_model_input(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return scaled(x, 1.0 / hypot(self.levels[i].sigma, 1.0))

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        if i != len(self) - 1:
            raise ValueError(
                f"call {i} of an adaptive run that is at call {len(self) - 1}: its calls are made in order, while "
                "i < len(run). To begin late, plan it over sigmas=[where it begins, 0.0]"
            )
        sigma, slope = self.levels[i].sigma, self.read(prediction, i, x)
        if sigma <= self.least * (1 + 1e-5) and not self.stages:  # what is left is the step to σ = 0
            moved = combine((1.0, x), (self.end - sigma, slope))
            return StepOutput(cast(moved, x.dtype), self._later(prediction, i, x))
        if not self.stages:
            self.origin, self.history = x, []
            self._try_step(sigma)
        self.history = [slope, *self.history]
        if len(self.history) == len(self.stages):
            moved = self._judge(noise)
        else:
            moved = self._stage()
        return StepOutput(cast(moved, x.dtype), self._later(prediction, i, x))

    def _try_step(self, sigma: float) -> None:
        """Lay a step of length h from σ."""
        self.target = max(sigma * exp(-self.controller.h), self.least)
        self.down, self.up = ancestral_within(sigma, self.target, self.least, self.eta)
        self.stages = dpm_step(sigma, self.down, self.order)

    def _stage(self) -> torch.Tensor:
        known = len(self.history)
        self._call(self.stages[known].sigma)
        return self._sum(self.stages[known - 1], self.history)

    def _sum(self, stage: Stage, slopes: Sequence[torch.Tensor]) -> torch.Tensor:
        return combine((1.0, self.origin), *zip(stage.recipe.weights, slopes, strict=True))

    def _judge(self, noise: DrawNoise | None) -> torch.Tensor:
        """Take the step if both orders agree, or try a shorter one."""
        sigma = self.stages[0].sigma
        high = self._sum(self.stages[-1], self.history)
        low = self._sum(dpm_step(sigma, self.down, self.order - 1, 1 / 3)[-1], self.history[1:])
        before = self.origin if self.before is None else self.before
        tolerated = (self.rtol * torch.maximum(low.abs(), before.abs())).clamp(min=self.atol)
        error = ((low - high) / tolerated).square().mean().sqrt().item()
        if not isfinite(error):
            raise FloatingPointError(f"the network's outputs near σ={sigma:.4g} are not finite: no step size fits them")
        if not self.controller.accepts(error):
            self.rejected += 1
            self.history = self.history[-1:]
            self._try_step(sigma)
            return self._stage()
        self.before, self.stages = low, []
        if self.target > self.least * (1 + 1e-5) or self.end == 0.0:
            self._call(self.target)
        if self.up:
            high = combine((1.0, high), (self.s_noise * self.up, (noise or draw)(high)))
        return high

    def _call(self, sigma: float) -> None:
        """Lay the next call at σ."""
        level = Level(1.0, sigma)
        self.timesteps.append(self.tell(sigma))  # type: ignore[arg-type]
        self._sigmas.insert(len(self.levels), sigma)
        self.targets[-1:] = [level, self.targets[-1]]
        self.levels.append(level)
        self.readings.append(self._reading(level))


class DPMAdaptiveScheduler(RecipeScheduler):
    """Steps as long as the error allows: the number of network calls is not known beforehand, and says how hard the
    picture was.

    The run grows while it goes, so loop ``while i < len(run)``, or ``for t in scheduler.timesteps``, which is a list
    here. ``num_inference_steps`` and the spacing have no say; a run goes from the model's σ_max to its σ_min (or the
    config's ``sigma_max`` and ``sigma_min``) and, by one more call, to σ = 0. With ``final_sigmas_type="sigma_min"`` it
    ends there, as published. The error is measured over the whole batch, so the pictures of a batch depend a little
    on each other; and it is looked at, so every step waits for the device.

    Args: those of every solver of the family, see :class:`langevin.schedulers.sigma.recipe.RecipeScheduler`.

    Run options:
        order: 2 (two calls a try) or 3.
        rtol, atol: the tolerated difference between the two orders, relative and absolute.
        h_init: the first step to try, in λ = -log σ.
        pcoeff, icoeff, dcoeff, accept_safety: the controller's settings.
        eta, s_noise: how much of ancestral sampling's noise (0, the default, to 1), and a factor on it.

        >>> run = DPMAdaptiveScheduler(beta_schedule="scaled_linear").plan(1, rtol=0.02)
        >>> x, i = torch.randn(1, 4, 8, 8) * run.init_noise_sigma, 0
        >>> while i < len(run):
        ...     x = run.step(network(run.scale_model_input(x, i), run.timesteps[i]), i, x).prev_sample
        ...     i += 1
    """

    run_options = (
        "order", "rtol", "atol", "h_init", "pcoeff", "icoeff", "dcoeff", "accept_safety", "eta", "s_noise",
    )  # fmt: skip

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, **options: Any
    ) -> DPMAdaptiveRun:
        c, table = self.config, self.noise_schedule.sigmas
        start = float(table[-1]) if c.sigma_max is None else c.sigma_max
        least = float(table[0]) if c.sigma_min is None else c.sigma_min
        end = self._final_sigma() and least
        if timesteps is not None:
            start = self._sigmas_between([float(timesteps[0])])[0]
        elif sigmas is not None:
            start, end = float(sigmas[0]), float(sigmas[-1])
        least = min(end or least, start)
        return DPMAdaptiveRun(self.noise_schedule.timestep_of, [start, least, end], **self._common([start]), **options)

    @property  # type: ignore[misc]
    def timesteps(self) -> list[Any]:  # type: ignore[override]
        """What the network is told at each call; the list grows while the run goes."""
        return self.run.timesteps

    def _whole(self) -> Run:
        return self.plan(1)
