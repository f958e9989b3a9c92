"""iPNDM: the multistep half of Liu, Ren, Lin & Zhao 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds",
arXiv:2202.09778, without its Runge-Kutta start: the first steps are of lower order (Zhang & Chen 2022,
arXiv:2204.13902, appendix H.2).

Made for audio (Dance Diffusion): time runs from 1 to 0, and the level at time t is (cos, sin)(t·π/2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.checks import Share
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, combine
from langevin.schedulers.continuous.deviations import IPNDM_FIRST
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.steps import CountedSteps, PlainStep
from langevin.schedulers.timesteps.pndm import ADAMS_BASHFORTH
from langevin.schedulers.weights import Recipe


class IPNDMRun(Run):
    """x ← α'·(x - σ·ε̄)/α + σ'·ε̄, where ε̄ is the Adams-Bashforth mean of the latest ε (equation 12)."""

    def __init__(self, *args, manner: Callable[[float, float], tuple[float, float]]):
        self.manner = manner
        self.history: list[torch.Tensor] = []  # ε, the newest first
        super().__init__(*args)

    def configure(self) -> None:
        self.readings = [predictions.to_epsilon(self.prediction_type, level) for level in self.levels]
        self.recipes: list[list[Recipe]] = []  # recipes[i][n - 1]: at call i, with n ε
        for level, target in zip(self.levels, self.targets, strict=True):
            ratio = target.alpha / level.alpha if level.alpha else 0.0
            of_mean = target.sigma - ratio * level.sigma
            self.recipes.append([Recipe(ratio, [of_mean * w for w in weights]) for weights in ADAMS_BASHFORTH])

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        r, w = self.readings[i]
        self.history = [combine((r, x), (w, prediction)), *self.history[:3]]
        original = self._later(prediction, i, x)
        if self.levels[i].alpha == 0.0:  # ε is x itself, and its mean says nothing about the image: 0/0
            p, q = self.manner(*self.to_x0(self.levels[i]))
            alpha, sigma = self.targets[i]
            previous = combine((sigma, self.history[0]), (alpha * p, x), (alpha * q, prediction))
        else:
            previous = self.recipes[i][len(self.history) - 1].sum(x, self.history)
        return StepOutput(cast(previous, x.dtype), original)


def _share(sigma: float) -> float:
    """σ/sqrt(1 + σ²): of a level's unit variance, what is noise."""
    return math.sin(math.atan(sigma))


class IPNDMScheduler(PlainStep, CountedSteps):
    """Fourth-order multistep sampling in continuous time, for v-predicting networks of audio.

    Args:
        num_train_timesteps: how many steps a run has that was not told.
        trained_betas: σ of every level, from the noisiest to the one to end at, instead of sin²(s·π/2) at even s: a run
            then visits these, whatever number of steps it is asked for.

    The network is told t = 2/π·arcsin(σ), from 1 down, and predicts v. ``with_spacing`` takes any: timestep spacings
    lay t evenly, with (k + 1)/``num_train_timesteps`` for the timestep k, and sigma spacings lie between the noisiest
    and the quietest level of a run of that many steps, pure noise and the clean picture left out.

    Run option ``as_published``: the first step, from pure noise, uses the image that v tells of. Without it, as in the
    reference implementation, where x0 is worked out from ε alone, that image is taken to be 0.

        >>> run = IPNDMScheduler().plan(50)
        >>> x = torch.randn(1, 2, 65536)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    run_options = ("as_published",)
    _manners = IPNDM_FIRST
    _tuple_has_original = False
    prediction_types = ("v_prediction",)
    _compatibles: ClassVar[list[str]] = []
    _takes = {"trained_betas": Sequence[Share] | None}
    _steps_at_once = True

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, trained_betas: np.ndarray | list[float] | None = None):
        pass

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: Callable[[float, float], tuple[float, float]],
    ) -> IPNDMRun:  # fmt: skip
        if timesteps is not None:
            shares = [math.sin(t * math.pi / 2) for t in [*map(float, timesteps), 0.0]]
        elif sigmas is not None:
            shares = [_share(sigma) for sigma in sigmas]
        elif self._spacing is not None:
            shares = [*self._spaced_shares(steps), 0.0]
        else:
            shares = self._even_shares(steps)
        # In fp32, as everybody has it: at the noisy end its rounding can be seen in α. It may make two levels of a
        # dense spacing the same.
        spaced = self._spacing is not None and timesteps is None and sigmas is None
        sigma = torch.tensor(shares, dtype=torch.float64 if spaced else torch.float32)
        alpha = (1.0 - sigma**2) ** 0.5
        visited = (torch.atan2(sigma, alpha) / math.pi * 2)[:-1].tolist()
        levels = [Level(*pair) for pair in zip(alpha.tolist(), sigma.tolist(), strict=True)]
        if (spaced or timesteps is not None or sigmas is not None) and any(
            late >= early for early, late in pairwise(visited)
        ):
            raise ValueError(f"levels must be in descending order of noise; their timesteps are {visited}")
        return IPNDMRun(visited, levels[:-1], levels[1:], "v_prediction", manner=manner)

    def _even_shares(self, steps: int) -> list[float]:
        """σ of the levels of a run that was told nothing else, and of its end."""
        if self.config.trained_betas is not None:
            return [float(sigma) for sigma in self.config.trained_betas]
        even = torch.cat([torch.linspace(1, 0, steps + 1)[:-1], torch.zeros(1)])
        return ((even * math.pi / 2).sin() ** 2).tolist()

    def _spaced_shares(self, steps: int) -> list[float]:
        """σ by the spacing in force; timestep t of T is the time (t + 1)/T."""
        train_steps = self.config.num_train_timesteps
        if self._sigma_spacing()[0] is None:
            times = [(t + 1) / train_steps for t in self._spaced_timesteps(steps)]
            return [math.sin(time * math.pi / 2) for time in times]
        inside = [share for share in self._even_shares(train_steps) if 0.0 < share < 1.0]
        most, least = (share / math.sqrt(1.0 - share**2) for share in (inside[0], inside[-1]))
        return [_share(sigma) for sigma in self._spaced_sigmas(steps, most, least) or []]

    def _whole(self) -> Run:
        return self.plan(self.config.num_train_timesteps)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that a run begins with."""
        return 1.0

    @property
    def betas(self) -> torch.Tensor:
        """σ of every level of the run, and of the one where it ends; fp32."""
        return torch.tensor([level.sigma for level in [*self.run.levels, self.run.targets[-1]]])

    @property
    def alphas(self) -> torch.Tensor:
        """α of every level of the run, and of the one where it ends; fp32."""
        return torch.tensor([level.alpha for level in [*self.run.levels, self.run.targets[-1]]])
