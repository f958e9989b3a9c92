"""PNDM: Liu, Ren, Lin & Zhao 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv:2202.09778.

Classical solvers for ordinary differential equations, with their straight step x + h·f replaced by the transfer
φ(x, ε, t, s) of equation 11, which stays on the manifold where noisy images live.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, combine
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.steps import PlainStep
from langevin.schedulers.timesteps.base import TimestepScheduler

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

    Without Runge-Kutta the first step is taken twice: with ε at its start, then with the mean of that and ε at its
    end. So a run of n steps makes n + 1 calls, two of them at the second timestep.

    What a call does follows from the number of calls made before it, not from ``i``: a run that begins late (image
    to image) begins the algorithm there.

    Args:
        warm_up: how many calls belong to Runge-Kutta steps: 12 or 0.
        repeat: for each call, the step (level, target) that it takes again if it is the second of the run, or None.
        halves: for each call, where it goes as part of a Runge-Kutta step: if it is an even call of the run, half a
            step on, and if it is an odd one, usually to its own level.
        own_steps: turn each output into ε where it was made; otherwise outputs are mixed as they come, and the
            mixture is turned into ε at the start of the step.
    """

    def __init__(
        self, *args, warm_up: int, repeat: Callable[[int], tuple[Level, Level] | None],
        halves: Callable[[int], tuple[Level, Level]], own_steps: bool,
    ):  # fmt: skip
        self.warm_up = warm_up
        self.repeat = repeat
        self.halves = halves
        self.own_steps = own_steps
        self.calls = 0
        self.history: list[torch.Tensor] = []  # outputs at whole steps, the newest first
        self.stages: list[torch.Tensor] = []  # outputs within a Runge-Kutta step
        self.origin: torch.Tensor | None = None  # x where a step of several calls began
        super().__init__(*args)

    def configure(self) -> None:
        self.moves = [self._coefficients(*ends) for ends in zip(self.levels, self.targets, strict=True)]
        if self.own_steps:
            self.to_epsilon = [predictions.to_epsilon(self.prediction_type, level) for level in self.levels]

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        output = prediction
        if self.own_steps:
            r, w = self.to_epsilon[i]
            output = combine((r, x), (w, prediction))
        if self.own_steps and self.calls == 0 and 0 < i < self.warm_up:
            raise ValueError(
                f"a run with Runge-Kutta steps begins at call 0 or after call {self.warm_up - 1}, not at {i}; "
                "plan it without as_published, or with skip_prk_steps=True"
            )
        advance = self._runge_kutta if self.calls < self.warm_up else self._multistep
        previous = advance(output, i, x)
        self.calls += 1
        return StepOutput(cast(previous, x.dtype), self._later(prediction, i, x))

    def _runge_kutta(self, output: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor:
        """Equation 13: ε1 at t, ε2 and ε3 half-way, ε4 at the end, each reached from x_t with the ε before it."""
        stage = self.calls % 4
        if stage == 0:
            self.origin, self.stages = x, []
            self.history = [output, *self.history]
        self.stages.append(output)
        level, target = self.levels[self.calls - stage], self.halves(i)[stage % 2]
        move = self._coefficients(level, target)
        if stage < 3:
            return self._move(self.origin, move, (1.0,), (output,))
        return self._move(self.origin, move, _RUNGE_KUTTA, self.stages)

    def _multistep(self, output: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor:
        """Equation 12, and its lower orders while there is less history."""
        repeat = self.repeat(i) if self.calls == 1 else None
        if repeat is not None:
            return self._move(self.origin, self._coefficients(*repeat), (1 / 2, 1 / 2), (output, self.history[0]))
        if self.own_steps and self.targets[i] == self.levels[i]:  # begun at the repetition: nothing to repeat
            self.calls -= 1
            return x
        self.origin = x if self.calls == 0 else None
        self.history = [output, *self.history[:3]]
        weights = ADAMS_BASHFORTH[len(self.history) - 1]
        return self._move(x, self.moves[i], weights, self.history)

    def _coefficients(self, level: Level, target: Level) -> tuple[float, float]:
        """Weights of x and of the output (ε, or whatever the network gives) in a step between these levels."""
        a, b = transfer(level, target)
        if not self.own_steps:
            r, w = predictions.to_epsilon(self.prediction_type, level)
            a, b = a + b * r, b * w
        return a, b

    @staticmethod
    def _move(x, move: tuple[float, float], weights: Sequence[float], outputs) -> torch.Tensor:
        a, b = move
        return combine((a, x), *[(b * weight, output) for weight, output in zip(weights, outputs, strict=True)])


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
        self,
        steps: int,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        as_published: bool = False,
    ) -> PNDMRun:
        final = self._final
        warm_up = not self.config.skip_prk_steps
        if warm_up and steps < 4:
            raise ValueError(
                f"PNDMScheduler needs at least 4 steps for its Runge-Kutta start, got {steps}; "
                "with skip_prk_steps=True in its config it runs with any number"
            )
        if timesteps is not None or sigmas is not None or self._spacing is not None or as_published:
            return self._own_plan(*self._visit(steps, timesteps, sigmas, final), warm_up)

        visited = self._on_grid(self._spaced_timesteps(steps), steps)
        # The reference's grid: every step is T//n timesteps long, whatever the spacing.
        stride = self.config.num_train_timesteps // steps
        half = stride // 2
        if warm_up:
            (t0, t1, t2, t3), rest = visited[:4], visited[3:]
            halfway = [t0, *[t1 + half] * 2, t1, t1, *[t2 + half] * 2, t2, t2, *[t3 + half] * 2, t3]
            calls = [*halfway, *rest]
        else:
            calls = [*visited[:2], *visited[1:]]

        @functools.cache
        def level(t: int) -> Level:
            return self.noise_schedule.level(min(t, len(self.noise_schedule) - 1)) if t >= 0 else final

        return PNDMRun(
            calls,
            [level(t) for t in calls],
            [level(t - stride) for t in calls],
            self.config.prediction_type,
            warm_up=12 if warm_up else 0,
            repeat=lambda i: (level(calls[i] + stride), level(calls[i])),
            halves=lambda i: (level(calls[i] - half), level(calls[i])),
            own_steps=False,
        )

    def _own_plan(self, visited: list[float], levels: list[Level], targets: list[Level], warm_up: bool) -> PNDMRun:
        """The run whose steps go from each visited timestep to the next, whatever their lengths."""
        if warm_up:
            calls, at = [], []
            for k in range(3):
                middle = (visited[k] + visited[k + 1]) / 2
                calls += [visited[k], middle, middle, visited[k + 1]]
                at += [levels[k], *[self.noise_schedule.level(middle)] * 2, levels[k + 1]]
            calls, at, to = calls + visited[3:], at + levels[3:], at + targets[3:]
        else:
            calls = [*visited[:2], *visited[1:]]
            at = [*levels[:2], *levels[1:]]
            to = [*targets[:1], *levels[1:2], *targets[1:]]
        return PNDMRun(
            calls,
            at,
            to,
            self.config.prediction_type,
            warm_up=12 if warm_up else 0,
            repeat=lambda i: (levels[0], levels[1]) if i == 1 and not warm_up and len(visited) > 1 else None,
            halves=lambda i: (at[i + 1], at[i]),  # asked for during Runge-Kutta only, which never ends the list
            own_steps=True,
        )

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
