"""Karras's stochastic sampler on the variance-exploding schedule: Karras, Aittala, Aila & Laine 2022, "Elucidating the
Design Space of Diffusion-Based Generative Models", arXiv:2206.00364, algorithm 2 and the VE column of table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from langevin.checkpoints.config import register_to_config
from langevin.outputs import BaseOutput
from langevin.schedulers import spacing as spacings
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw
from langevin.schedulers.churn import Churn
from langevin.schedulers.continuous.deviations import KARRAS_VE, KarrasVeAsPublished
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.scheduler import SchedulerMixin


class KarrasVeRun(Run):
    """Two calls a step: at σ̂_i, and, after an Euler step there, at σ_{i+1}. The step to σ = 0 has the first alone.

    The network's output F says x0 = x + σ·F: it is -ε. The noise that raises σ_i to σ̂_i goes in before the network
    looks, so the call before adds it, and what a run begins with has that of its first step: :meth:`begin`. A run may
    begin at any step's first call: every even ``i``.
    """

    def __init__(self, sigmas: Sequence[float], start: float, churn: Churn, manner: KarrasVeAsPublished):
        """``sigmas``: one per step, and the one to end at. ``start``: σ of the noise that the first step is given."""
        self.start = start
        self.manner = manner
        self.added: list[float] = []  # by step
        told, reached = [], []
        for sigma, following in pairwise(sigmas):
            hat = churn.raised(sigma, len(sigmas) - 1)
            self.added.append(churn.added(sigma, hat))
            told += [hat, following] if following else [hat]
            reached += [following] * (2 if following else 1)
        self.init_noise_sigma = math.hypot(start, self.added[0])
        self.origin: torch.Tensor | None = None  # x̂_i, between a step's first call and its second
        self.slope: torch.Tensor | None = None  # -d_i
        levels, targets = ([Level(1.0, sigma) for sigma in side] for side in (told, reached))
        super().__init__(told, levels, targets, "negative_epsilon")

    def begin(
        self, first_noise: Callable[[], torch.Tensor], noise: DrawNoise, shape: Sequence[int],
        device: str | torch.device,
    ) -> torch.Tensor:  # fmt: skip
        """x̂_0: the first noise, raised to σ̂_0 by ``noise``.

        (``first_noise() * init_noise_sigma`` is the same in distribution, with one draw less.)
        """
        return self._raise(self.start * first_noise(), 0, noise)

    def _raise(self, x: torch.Tensor, step: int, noise: DrawNoise) -> torch.Tensor:
        if self.added[step] == 0.0 and not self.manner.draws_always:
            return x
        return cast(combine((1.0, x), (self.added[step], noise(x))), x.dtype)

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        original = self._later(prediction, i, x)
        if self.origin is None or self.slope is None:  # line 8, with d_i = (x̂_i - x0)/σ̂_i = -F
            h = self.targets[i].sigma - self.levels[i].sigma
            previous = combine((1.0, x), (-h, prediction))
            if self.targets[i].sigma:
                self.origin, self.slope = x, prediction
        else:  # line 11
            h = self.levels[i].sigma - self.levels[i - 1].sigma
            previous = combine((1.0, self.origin), (-h / 2, self.slope), (-h / 2, prediction))
            self.origin = self.slope = None
        previous = cast(previous, x.dtype)
        if self.origin is None and i + 1 < len(self):
            previous = self._raise(previous, (i + 1) // 2, noise or draw)
        return StepOutput(previous, original)

    def _original(self, prediction: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor:
        return combine((1.0, x), (self.levels[i].sigma, prediction))


@dataclass(eq=False)
class KarrasVeOutput(BaseOutput):
    """``prev_sample``, ``derivative`` dx/dσ, and ``pred_original_sample``, the x0 that this step believed in."""

    prev_sample: torch.Tensor
    derivative: torch.Tensor | None = None
    pred_original_sample: torch.Tensor | None = None


class KarrasVeScheduler(SchedulerMixin):
    """Second order and stochastic, for networks that are told σ itself; n steps are 2n - 1 calls.

    Args:
        sigma_min, sigma_max: the least and the greatest noise.
        s_noise, s_churn, s_min, s_max: how much noise to add before steps whose σ lies in [s_min, s_max] (appendix E
            and table 5 have values for several models).

    Run option ``as_published``: σ falls from ``sigma_max`` to ``sigma_min``, evenly in log σ, and no number is drawn
    where none is needed. Without it, σ falls from σ_max² to σ_min², though the noise to begin with is ``sigma_max``:
    the reference implementation takes table 1's time t = σ² for σ. ``with_spacing`` takes any sigma spacing.

        >>> run = KarrasVeScheduler(sigma_max=50.0).plan(18, as_published=True)  # 35 calls
        >>> shape = (1, 3, 32, 32)
        >>> x = run.begin(lambda: torch.randn(shape), torch.randn_like, shape, "cpu")
        >>> for i, sigma in enumerate(run.timesteps):
        ...     x = run.step(sigma * score(x, sigma), i, x, noise=torch.randn_like).prev_sample
    """

    order = 2
    run_options = ("as_published",)
    _manners = KARRAS_VE
    _spacings = spacings.SIGMA_SPACINGS
    _spacings_because = "is told σ and has no training timesteps"
    _compatibles = []

    timesteps: torch.Tensor | None = None  # type: ignore[assignment]
    #: σ by ``timesteps``, ascending
    schedule: torch.Tensor | None = None

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.02, sigma_max: float = 100, s_noise: float = 1.007, s_churn: float = 80,
        s_min: float = 0.05, s_max: float = 50,
    ):  # fmt: skip
        self._churn = Churn(s_churn, s_min, s_max, s_noise)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that a run begins with."""
        return self.config.sigma_max

    def _sigma_spacing(self) -> tuple[str | None, dict[str, Any]]:
        return self._spacing or ("exponential", {})

    def _visit_sigmas(self, steps: int, manner: KarrasVeAsPublished = KARRAS_VE.reference) -> tuple[list[float], float]:
        """(σ of every step, σ of the noise to begin with)."""
        least, most = float(self.config.sigma_min), float(self.config.sigma_max)
        if self._spacing is not None:
            manner = KARRAS_VE.published
        visited = self._spaced_sigmas(steps, *manner.ends(most, least))
        assert visited is not None
        return visited, manner.start(most, visited[0])

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, manner: KarrasVeAsPublished
    ) -> KarrasVeRun:
        if timesteps is not None:
            raise ValueError("KarrasVeScheduler has no timesteps: give sigmas, or num_inference_steps")
        if sigmas is None:
            visited, start = self._visit_sigmas(steps, manner)
            return KarrasVeRun([*visited, 0.0], start, self._churn, manner)
        return KarrasVeRun([float(sigma) for sigma in sigmas], float(sigmas[0]), self._churn, manner)

    # -- the familiar API: the caller walks over ``timesteps`` and looks σ up in ``schedule`` ------------------------

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Lay out ``timesteps``, n-1 to 0, and ``schedule``, the σ of each."""
        visited, _ = self._visit_sigmas(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, device=device)
        self.schedule = torch.tensor(visited[::-1], dtype=torch.float32, device=device)

    def add_noise_to_input(
        self, sample: torch.Tensor, sigma: float, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> tuple[torch.Tensor, float]:
        """Raise a sample from σ to σ̂ (algorithm 2, lines 3 to 6). Draws noise even where σ̂ = σ.

        Args:
            sample: x at σ, (batch, ...).
            sigma: σ, of ``schedule``.
            generator: where noise comes from; a list gives each image its own.

        Returns:
            (the sample at σ̂, σ̂).
        """
        if self.num_inference_steps is None:
            raise ValueError("KarrasVeScheduler has no timesteps yet: call set_timesteps(steps) first")
        hat = self._churn.raised(float(sigma), self.num_inference_steps)
        added = self._churn.added(float(sigma), hat)
        noise = draw(torch.empty_like(sample, dtype=torch.float32), generator)
        return combine((1.0, sample), (added, noise)), sigma * (hat / float(sigma))

    def step(
        self, model_output: torch.Tensor, sigma_hat: float, sigma_prev: float, sample_hat: torch.Tensor,
        return_dict: bool = True,
    ) -> KarrasVeOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """Euler's step from σ̂ (algorithm 2, line 8).

        Args:
            model_output: F at σ̂, with x0 = x + σ·F.
            sigma_hat: σ̂, where the sample is.
            sigma_prev: the σ to go to.
            sample_hat: x at σ̂.
            return_dict: False gives the tuple ``(prev_sample, derivative)``.
        """
        slope = -model_output
        moved = sample_hat + (sigma_prev - sigma_hat) * slope
        return KarrasVeOutput(moved, slope, sample_hat + sigma_hat * model_output) if return_dict else (moved, slope)

    def step_correct(
        self, model_output: torch.Tensor, sigma_hat: float, sigma_prev: float, sample_hat: torch.Tensor,
        sample_prev: torch.Tensor, derivative: torch.Tensor, return_dict: bool = True,
    ) -> KarrasVeOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """The same step with the mean of the slopes at both its ends (algorithm 2, line 11).

        Args:
            model_output: F at ``sigma_prev`` and ``sample_prev``.
            sigma_hat, sigma_prev, sample_hat: as for :meth:`step`.
            sample_prev, derivative: what :meth:`step` gave.
            return_dict: False gives the tuple ``(prev_sample, derivative)``; the derivative is the one that came in.
        """
        moved = sample_hat + (sigma_prev - sigma_hat) * (derivative - model_output) / 2
        original = sample_prev + sigma_prev * model_output
        return KarrasVeOutput(moved, derivative, original) if return_dict else (moved, derivative)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """There are no training timesteps: use ``plan(…).add_noise``, which counts calls."""
        raise NotImplementedError(
            "KarrasVeScheduler has no training timesteps: use plan(steps).add_noise(x0, noise, i)"
        )
