"""PNDM: Liu, Ren, Lin & Zhao 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv:2202.09778.

Classical solvers for ordinary differential equations, with their straight step x + h·f replaced by the transfer
φ(x, ε, t, s) of equation 11, which stays on the manifold where noisy images live.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.arithmetic import DrawNoise, cast, combine
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.steps import PlainStep
from langevin.schedulers.timesteps import deviations
from langevin.schedulers.timesteps.base import TimestepScheduler
from langevin.schedulers.timesteps.deviations import PNDMAsPublished
from langevin.schedulers.timesteps.pndm_calls import RUNGE_KUTTA_CALLS, Calls

# Adams-Bashforth weights of the newest ε, the one before, … (equation 12 is the last row).
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)  # equation 13


def transfer(level: Level, target: Level) -> tuple[float, float]:
    """(a, b) of φ(x, ε) = a·x + b·ε (equation 11)."""
    ratio = target.alpha / level.alpha
    gap = target.alpha**2 - level.alpha**2
    return ratio, -gap / (level.alpha * (level.alpha * target.sigma + level.sigma * target.alpha))


class PNDMRun(Run):
    """Runge-Kutta for three steps of four calls each, then linear multistep (algorithm 2); or multistep alone.

    What a call does follows from the number of calls made before it, not from ``i``: a run that begins late (image
    to image) begins the algorithm there.

    Args:
        calls: what the run is made of; see :mod:`langevin.schedulers.timesteps.pndm_calls`.
        warm_up: how many calls belong to Runge-Kutta steps: 12 or 0.
        manner: what is kept of a call, and how a step follows from it.
    """

    def __init__(self, calls: Calls, prediction_type: str, warm_up: int, manner: PNDMAsPublished):
        self.calls, self.warm_up, self.manner = calls, warm_up, manner
        self.made = 0  # calls so far
        self.history: list[torch.Tensor] = []  # ε at whole steps, the newest first
        self.stages: list[torch.Tensor] = []  # ε within a Runge-Kutta step
        self.origin: torch.Tensor | None = None  # x where a step of several calls began
        super().__init__(calls.timesteps, calls.levels, calls.targets, prediction_type)

    def configure(self) -> None:
        self.moves = [self._transfer(*ends) for ends in zip(self.levels, self.targets, strict=True)]
        self.readings = [self.manner.reading(self.prediction_type, level) for level in self.levels]

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        r, w = self.readings[i]
        epsilon = combine((r, x), (w, prediction))
        if self.made == 0 and i > 0 and not self.manner.begins_anywhere:
            if i < self.warm_up:
                raise ValueError(
                    f"a run with Runge-Kutta steps begins at call 0 or after call {self.warm_up - 1}, not at {i}; "
                    "plan it without as_published, or with skip_prk_steps=True"
                )
            self.warm_up = 0  # which is over
        advance = self._runge_kutta if self.made < self.warm_up else self._multistep
        previous = advance(epsilon, i, x)
        self.made += 1
        return StepOutput(cast(previous, x.dtype), self._later(prediction, i, x))

    def _runge_kutta(self, epsilon: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor:
        """Equation 13: ε1 at t, ε2 and ε3 half-way, ε4 at the end, each reached from x_t with the ε before it."""
        stage = self.made % 4
        if stage == 0:
            self.origin, self.stages = x, []
            self.history = [epsilon, *self.history]
        self.stages.append(epsilon)
        level, target = self.levels[self.made - stage], self.calls.halves[i][stage % 2]
        transfer = self._transfer(level, target)
        if stage < 3:
            return self._phi(self.origin, transfer, (1.0,), (epsilon,))
        return self._phi(self.origin, transfer, _RUNGE_KUTTA, self.stages)

    def _multistep(self, epsilon: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor:
        """Equation 12, and its lower orders while there is less history."""
        again = self.calls.again[i] if self.made == 1 else None
        if again is not None:
            return self._phi(self.origin, self._transfer(*again), (1 / 2, 1 / 2), (epsilon, self.history[0]))
        if (
            self.targets[i] == self.levels[i] and not self.manner.begins_anywhere
        ):  # at the repetition: nothing to repeat
            self.made -= 1
            return x
        self.origin = x if self.made == 0 else None
        self.history = [epsilon, *self.history[:3]]
        weights = ADAMS_BASHFORTH[len(self.history) - 1]
        return self._phi(x, self.moves[i], weights, self.history)

    def _transfer(self, level: Level, target: Level) -> tuple[float, float]:
        """(a, b) of φ(x, ε) between these levels, for what the run keeps of a call."""
        return self.manner.moved(self.prediction_type, level, transfer(level, target))

    @staticmethod
    def _phi(x, transfer: tuple[float, float], weights: Sequence[float], epsilons) -> torch.Tensor:
        """φ(x, Σ_k w_k·ε_k)."""
        a, b = transfer
        return combine((a, x), *[(b * weight, epsilon) for weight, epsilon in zip(weights, epsilons, strict=True)])


class PNDMScheduler(PlainStep, TimestepScheduler):
    """Fourth-order multistep sampling; the scheduler that Stable Diffusion 1's checkpoints name.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the noise schedule; see
            :meth:`NoiseSchedule.from_config`.
        skip_prk_steps: no Runge-Kutta steps at the beginning (they cost nine calls more and need four steps at least).
        set_alpha_to_one: the run ends at ᾱ = 1, the clean image; otherwise at the least noisy level of training.
        prediction_type: "epsilon" or "v_prediction".
        timestep_spacing, steps_offset: which timesteps a run visits; see :mod:`langevin.schedulers.spacing`.

    Run option ``as_published``: the algorithm as published, on the run's own timesteps. Without it (as in the
    reference implementation) a step goes to t - T//n, v-predictions of different timesteps are mixed before they are
    turned into ε, and the second call of an image-to-image run is taken for a repetition that it is not.

        >>> run = PNDMScheduler(skip_prk_steps=True).plan(20)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> for i, t in enumerate(run.timesteps):  # 21 calls
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    run_options = ("as_published",)
    _manners = deviations.PNDM
    _tuple_has_original = False
    prediction_types = ("epsilon", "v_prediction")

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        skip_prk_steps: bool = False, set_alpha_to_one: bool = False, prediction_type: str = "epsilon",
        timestep_spacing: str = "leading", steps_offset: int = 0,
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, manner: PNDMAsPublished
    ) -> PNDMRun:
        warm_up = not self.config.skip_prk_steps
        if warm_up and steps < 4:
            raise ValueError(
                f"PNDMScheduler needs at least 4 steps for its Runge-Kutta start, got {steps}; "
                "with skip_prk_steps=True in its config it runs with any number"
            )
        if not self._untold(timesteps, sigmas):
            manner = deviations.PNDM.published
        visited, levels, targets = self._visit(steps, timesteps, sigmas, self._final)
        calls = manner.calls(self, visited, levels, targets, warm_up)
        return PNDMRun(calls, self.config.prediction_type, RUNGE_KUTTA_CALLS if warm_up else 0, manner)

    @property
    def timesteps(self) -> torch.Tensor | None:
        """What the network is told at each call, int64; None before ``set_timesteps``."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: torch.Tensor) -> None:
        self._timesteps = value

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that a run begins with."""
        return 1.0
