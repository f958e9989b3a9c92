"""Two calls a step, the second half-way in log σ: DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1 with
r = 1/2) in the variables of Karras et al. 2022 (arXiv:2206.00364): Crowson's k-diffusion, ``sample_dpm_2``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, ClassVar

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run
from langevin.schedulers.sigma import deviations
from langevin.schedulers.sigma.ancestral import ancestral_step
from langevin.schedulers.sigma.base import SigmaScheduler
from langevin.schedulers.sigma.recipe import Stage, StagedRun, euler
from langevin.schedulers.steps import NoisyStep, PlainStep
from langevin.schedulers.weights import Recipe

AncestralStep = Callable[[float, float], tuple[float, float]]
"""(σ, σ_next) to (σ_down, σ_up); see :func:`ancestral_step`."""


class MidpointRun(StagedRun):
    """A run of two calls a step, one if it goes to σ = 0."""

    def index_of(self, timestep: float) -> int:
        """The call that begins a step at this timestep. Where several do, the second, unless the run begins there."""
        begins = [i for i, (k, _) in enumerate(self.stages) if k == 0]
        nearest = min(begins, key=lambda i: abs(self.timesteps[i] - timestep))
        if abs(self.timesteps[nearest] - timestep) > 1e-3:
            return super().index_of(timestep)
        same = [i for i in begins if self.timesteps[i] == self.timesteps[nearest]]
        return same[1] if nearest and len(same) > 1 else nearest


class KDPM2Run(MidpointRun):
    """x ← x + (σ_next - σ)·d(u), where u = x + (σ_mid - σ)·d(x) and d = (x - x0)/σ = dx/dσ."""

    slopes = True


class MidpointScheduler(SigmaScheduler):
    """Base of the solvers that ask the network half-way through a step: what their runs are made of."""

    order = 2
    prediction_types = ("epsilon", "v_prediction")
    run_options: ClassVar[tuple[str, ...]] = ("num_train_timesteps",)
    run_class: ClassVar[type[MidpointRun]]
    _steps_at_once = True
    _ends = 3  # how often the table of σ has the end of the run

    def _stages(self, sigma: float, target: float, ancestral: AncestralStep) -> list[Stage]:
        """The calls of the step from ``sigma`` to ``target``; ``ancestral`` says how much of it noise undoes."""
        raise NotImplementedError

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        num_train_timesteps: int | None = None, **options: Any,
    ) -> MidpointRun:  # type: ignore[override]  # fmt: skip
        if num_train_timesteps not in (None, self.config.num_train_timesteps):
            fewer = copy.copy(self)
            fewer.register_to_config(num_train_timesteps=num_train_timesteps)
            return fewer._plan(steps, timesteps, sigmas, **options)
        return super()._plan(steps, timesteps, sigmas, **options)  # type: ignore[return-value]

    def _run_over(
        self, timesteps: list[float], sigmas: list[float], manner: AncestralStep = ancestral_step, **options: Any
    ) -> MidpointRun:
        steps = [self._stages(sigma, target, manner) for sigma, target in pairwise(sigmas)]
        told: list[float] = []
        for timestep, step in zip(timesteps, steps, strict=True):
            told += [timestep, *(self.noise_schedule.timestep_of(stage.sigma) for stage in step[1:])]
        told = np.array(told, np.float32).tolist()  # as the tensor of timesteps has them, so that they are found by it
        start = self._init_noise_sigma(sigmas)
        return self.run_class(told, steps, sigmas[-1], self.config.prediction_type, start, **options)

    def _whole(self) -> Run:
        return self.plan(self.config.num_train_timesteps)

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None,
        num_train_timesteps: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """Choose the levels that the following ``step`` calls visit.

        Args:
            num_inference_steps: how many; n steps are 2n - 1 calls.
            device: where ``timesteps`` are wanted.
            num_train_timesteps: lay the spacing over so many of the training timesteps, the least noisy ones.
            options: ``timesteps`` or ``sigmas`` instead of a number, and the run options; see :meth:`plan`.
        """
        if num_train_timesteps is not None:
            options["num_train_timesteps"] = num_train_timesteps
        super().set_timesteps(num_inference_steps, device, **options)

    @property
    def sigmas(self) -> torch.Tensor:
        """σ where each step begins (twice, but for the first) and where the run ends; fp32, on the CPU.

        The levels that the network sees, half-way ones included, are ``plan(…).sigmas``.
        """
        run: Any = self.run
        first, *rest = (stage.sigma for k, stage in run.stages if k == 0)
        ends = [run.sigmas[-1]] * self._ends
        return torch.tensor([first, *(sigma for sigma in rest for _ in range(2)), *ends], dtype=torch.float32)

    def _levels_of_calls(self) -> list[Level]:
        # Half-way through a step, as the reference implementation has it, the level where the step goes. Run.add_noise
        # takes the level that x is at.
        return [Level(1.0, sigma) for sigma in [*self.sigmas.tolist(), *[self.run.sigmas[-1]] * 2]]

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of its step."""
        i, run = self._step_index, self.run
        return i is None or i >= len(run) or run.stages[i][0] == 0  # type: ignore[attr-defined]


class KDPM2DiscreteScheduler(PlainStep, MidpointScheduler):
    """Second order, two network calls a step: a look half-way in log σ gives the slope for the whole step.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the noise schedule; see
            :meth:`NoiseSchedule.from_config`.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`. With Karras's, the network is told whole timesteps.
        prediction_type: "epsilon" or "v_prediction".
        timestep_spacing, steps_offset: which timesteps a run visits.

    Run option ``num_train_timesteps``: lay the spacing over so many of the training timesteps.

        >>> run = KDPM2DiscreteScheduler(use_karras_sigmas=True).plan(10)  # 19 calls
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    run_class = KDPM2Run

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon", timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    def _visit_sigmas(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
    ) -> tuple[list[float], list[float]]:
        visited, levels = super()._visit_sigmas(steps, timesteps, sigmas)
        if sigmas is None and self._sigma_spacing()[0] == "karras":
            visited = [float(round(t)) for t in visited]
        return visited, levels

    def _stages(self, sigma: float, target: float, ancestral: AncestralStep) -> list[Stage]:
        return midpoint(sigma, target)


class KDPM2AncestralDiscreteScheduler(NoisyStep, KDPM2DiscreteScheduler):  # type: ignore[misc]
    """:class:`KDPM2DiscreteScheduler` to below the next level, then fresh noise up to it.

    It takes the same config. Half-way to σ_down = σ_next²/σ is σ_next, so that each level is looked at twice.

    Run options: ``num_train_timesteps``, as there; ``as_published``: σ_down is exact. Without it, it is rounded as in
    the reference implementation, which loses its digits where a step is long; that moves the level half-way.

        >>> run = KDPM2AncestralDiscreteScheduler(use_karras_sigmas=True).plan(10)  # 19 calls
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x, torch.randn_like).prev_sample
    """

    run_options = ("num_train_timesteps", "as_published")
    _manners = deviations.ANCESTRAL_STEP

    def _stages(self, sigma: float, target: float, ancestral: AncestralStep) -> list[Stage]:
        return midpoint(sigma, *ancestral(sigma, target))


def midpoint(sigma: float, target: float, noise: float = 0.0) -> list[Stage]:
    """From σ to the target by the slope half-way between them; by the slope at σ, if that is all there is."""
    if target == 0.0 or sigma == 0.0:
        return [Stage(sigma, euler(sigma, target))]
    middle = sqrt(sigma * target)
    return [Stage(sigma, euler(sigma, middle)), Stage(middle, Recipe(1.0, (target - sigma,), noise))]
