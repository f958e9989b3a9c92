"""Solvers whose every call is a weighted sum, written in σ: x ← a·origin + Σ_k w_k·m_k + s·z.

The m_k are what the network said at earlier calls, as x0 or as the slope d = (x - x0)/σ = dx/dσ, the newest first; z is
fresh noise. A solver is then a function from noise levels to weights, which is all that its file holds:

- a *multistep* solver makes one call a step and uses the calls of earlier steps (:class:`MultistepRun`),
- a *staged* one makes several calls a step and forgets them after it (:class:`StagedRun`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw
from langevin.schedulers.noise import Level
from langevin.schedulers.run import StepOutput
from langevin.schedulers.sigma.base import SigmaRun, SigmaScheduler
from langevin.schedulers.weights import Recipe


class Stage(NamedTuple):
    """One call of a step: the σ at which the network is asked, and what to do with all that the step's calls said."""

    sigma: float
    recipe: Recipe


def ddim(sigma: float, target: float, noise: float = 0.0) -> Recipe:
    """The first-order step in x0: the part σ_next/σ of x's noise stays."""
    ratio = target / sigma if sigma else 1.0
    return Recipe(ratio, (1.0 - ratio,), noise)


def euler(sigma: float, target: float) -> Recipe:
    """The same in slopes."""
    return Recipe(1.0, (target - sigma,))


class RecipeRun(SigmaRun):
    """A run that reads the network's output as x0 or as a slope, and adds up."""

    slopes: ClassVar[bool] = False

    def configure(self) -> None:
        self.history: list[torch.Tensor] = []  # the newest first
        self.readings = [self._reading(level) for level in self.levels]

    def _reading(self, level: Level) -> tuple[float, float]:
        """What the network says at this level as a weighted sum of x and its output."""
        p, q = predictions.to_x0(self.prediction_type, level)  # x0 = p·x + q·output
        if not self.slopes:
            return p, q
        inverse = 1.0 / level.sigma if level.sigma else 0.0
        return inverse * (1.0 - p), -inverse * q  # d = (x - x0)/σ

    def read(self, prediction: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor:
        """What call ``i`` said."""
        if self.limit is None:
            of_x, of_prediction = self.readings[i]
            return combine((of_x, x), (of_prediction, prediction))
        x0 = self._original(prediction, i, x)
        if not self.slopes:
            return x0
        of_x, of_x0 = predictions.to_epsilon("sample", self.levels[i])
        return combine((of_x, x), (of_x0, x0))

    def follow(
        self, recipe: Recipe, origin: torch.Tensor, noise: DrawNoise | None, prediction: torch.Tensor, i: int,
        x: torch.Tensor,
    ) -> StepOutput:  # fmt: skip
        """The step's output: the sum that ``recipe`` says, of the history as it stands."""
        z = (noise or draw)(x) if recipe.noise else None
        original = self._later(prediction, i, x) if self.slopes else self.history[0].to(x.dtype)
        return StepOutput(cast(recipe.sum(origin, self.history, z), x.dtype), original)


class MultistepRun(RecipeRun):
    """One call a step. A run's first steps, and a step to σ = 0, make do with fewer predictions."""

    order = 1

    def configure(self) -> None:
        super().configure()
        self.recipes = []  # recipes[i][n - 1]: at call i, with n predictions
        for i, target in enumerate(self.targets):
            most = min(self.order, i + 1) if target.sigma else 1
            self.recipes.append([self._recipe(self.sigmas[i::-1][:n], target.sigma) for n in range(1, most + 1)])

    def _recipe(self, sigmas: list[float], target: float) -> Recipe:
        if isclose(target, sigmas[0]):
            return Recipe(1.0, (0.0,))
        # a level visited twice tells nothing about derivatives
        different = next((k for k in range(1, len(sigmas)) if isclose(sigmas[k], sigmas[k - 1])), len(sigmas))
        return self.recipe(sigmas[:different], target)

    def recipe(self, sigmas: list[float], target: float) -> Recipe:
        """The step to ``target`` by predictions made at ``sigmas``, the newest (where x is) first, all different."""
        raise NotImplementedError

    def noise_kept(self, i: int) -> float | None:
        return None if self.slopes else self.recipes[i][0].of_origin * self.levels[i].sigma

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        self.history = [self.read(prediction, i, x), *self.history[: self.order - 1]]
        known = self.recipes[i][: len(self.history)]
        return self.follow(known[-1], x, noise, prediction, i, x)


class StagedRun(RecipeRun):
    """Several calls a step, each of them laid out beforehand. A run begins at the first call of a step.

    Where it is made to begin at another, the rest of that step is Euler's, from call to call.
    """

    def __init__(self, timesteps: list[float], steps: Sequence[Sequence[Stage]], end: float, *args, **options: Any):
        self.stages = [(k, stage) for step in steps for k, stage in enumerate(step)]
        super().__init__(timesteps, [*(stage.sigma for _, stage in self.stages), end], *args, **options)

    def configure(self) -> None:
        super().configure()
        self.origin: torch.Tensor | None = None

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        k, (sigma, recipe) = self.stages[i]
        if k == 0:
            self.origin, self.history = x, []
        self.history = [self.read(prediction, i, x), *self.history]
        if self.origin is None:
            straight = euler if self.slopes else ddim
            recipe, self.history = straight(sigma, self.targets[i].sigma), self.history[:1]
        return self.follow(recipe, x if self.origin is None else self.origin, noise, prediction, i, x)

    def index_of(self, timestep: float) -> int:
        """The call that has this timestep: one that begins a step, if any does."""
        for i, (k, _) in enumerate(self.stages):
            if k == 0 and abs(self.timesteps[i] - timestep) < 1e-3:
                return i
        return super().index_of(timestep)


class SlopeStagedRun(StagedRun):
    """A staged run that is written in slopes, so that of_origin is 1."""

    slopes = True


class RecipeScheduler(SigmaScheduler):
    """Base of the solvers that are recipes: their config, and the familiar ``step``.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the noise
            schedule; see :meth:`NoiseSchedule.from_config`.
        prediction_type: "epsilon", "sample" or "v_prediction".
        thresholding, dynamic_thresholding_ratio, sample_max_value: bound the predicted image by its own quantile, for
            models of pixels.
        clip_sample, clip_sample_range: bound it by a fixed number instead.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`.
        sigma_min, sigma_max: the ends for these; None takes the run's own.
        timestep_spacing, steps_offset: which timesteps a run visits.
        final_sigmas_type: end at "zero" or at "sigma_min".
    """

    prediction_types = ("epsilon", "sample", "v_prediction")

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, clip_sample: bool = False, clip_sample_range: float = 1.0,
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, sigma_min: float | None = None, sigma_max: float | None = None,
        timestep_spacing: str = "linspace", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    def _common(self, sigmas: list[float]) -> dict[str, Any]:
        """What every run is given."""
        return {
            "prediction_type": self.config.prediction_type,
            "init_noise_sigma": self._init_noise_sigma(sigmas),
            "limit": predictions.limiter(self._own),
        }

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
        variance_noise: torch.Tensor | None = None,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One call's step of the run that ``set_timesteps`` laid out; the solver's options are given there.

        Args:
            model_output: the network's output at ``timestep``, given the scaled sample.
            timestep: one of ``scheduler.timesteps``. Looked up at the first step; after that, steps are counted.
            sample: x at that timestep, not scaled.
            generator: where noise comes from; a list gives each image its own.
            return_dict: False gives the tuple ``(prev_sample, pred_original_sample)``.
            variance_noise: the noise itself, instead of ``generator``.
        """
        options = self.run.options
        return self._step(model_output, timestep, sample, generator, return_dict, variance_noise, **options)


class MultistepScheduler(RecipeScheduler):
    """Base of multistep solvers: they say which run is theirs."""

    run_class: ClassVar[type[MultistepRun]]

    def _run_over(self, timesteps: list[float], sigmas: list[float], **options: Any) -> MultistepRun:
        return self.run_class(timesteps, sigmas, **self._common(sigmas), **options)


class StagedScheduler(RecipeScheduler):
    """Base of staged solvers: they say which calls the steps of a run are made of."""

    run_class: ClassVar[type[StagedRun]] = StagedRun

    def _run_over(self, timesteps: list[float], sigmas: list[float], **options: Any) -> StagedRun:
        steps = self._stages(sigmas, **options)
        known = dict(zip(sigmas, timesteps, strict=False))
        asked = [stage.sigma for step in steps for stage in step]
        told = [known[s] if s in known else self.noise_schedule.timestep_of(s) for s in asked]
        return self.run_class(told, steps, sigmas[-1], **self._common(sigmas))

    def _stages(self, *args: Any, **options: Any) -> list[list[Stage]]:
        """``(sigmas, **options)``: the steps of a run over these levels, of which the last is its end."""
        raise NotImplementedError
