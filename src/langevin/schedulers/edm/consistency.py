"""Consistency models: Song, Dhariwal, Chen & Sutskever 2023, arXiv:2303.01469."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw
from langevin.schedulers.edm.base import Number, PreconditionedRun, PreconditionedScheduler, skip_and_out
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.steps import NoisyStep


def boundary_scalings(sigma: Number, sigma_min: float, sigma_data: float) -> tuple[Number, Number]:
    """(c_skip, c_out) with which the network gives x itself at σ_min (appendix C)."""
    c_skip, _ = skip_and_out(sigma - sigma_min, sigma_data)
    return c_skip, (sigma - sigma_min) * sigma_data / (sigma**2 + sigma_data**2) ** 0.5


class ConsistencyRun(PreconditionedRun):
    """To the image by one call, and back up to the next level with fresh noise (algorithm 1)."""

    def __init__(self, *args: Any, sigma_min: float, sigma_max: float, s_noise: float, **options: Any):
        self.sigma_min, self.sigma_max, self.s_noise = sigma_min, sigma_max, s_noise
        super().__init__(*args, **options)

    def configure(self) -> None:
        nexts = [min(max(target.sigma, self.sigma_min), self.sigma_max) for target in self.targets]
        self.added = [self.s_noise * math.sqrt(sigma**2 - self.sigma_min**2) for sigma in nexts]
        if len(self) == 1:
            self.added = [0.0]

    def to_x0(self, level: Level) -> tuple[float, float]:
        return boundary_scalings(level.sigma, self.sigma_min, self.sigma_data)

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        previous = x0 = self._original(prediction, i, x)
        if self.added[i]:
            previous = combine((1.0, x0), (self.added[i], (noise or draw)(prediction)))
        return StepOutput(cast(previous, x.dtype), cast(x0, x.dtype))


class CMStochasticIterativeScheduler(NoisyStep, PreconditionedScheduler):
    """Pictures in one step or a few, each from the one before with some noise put back.

    Args:
        num_train_timesteps: number of levels of training; places are counted among them from σ_max, 0, to σ_min.
        sigma_min, sigma_max, rho: the levels of training, by Karras spacing.
        sigma_data: standard deviation of the training data.
        s_noise: scale of the noise that is put back.
        clip_denoised: bound the predicted image to [-1, 1].

    The ``timesteps`` given to ``plan`` are places, descending, of which the *last* is visited first. The network is
    told 250·log(σ).

        >>> run = CMStochasticIterativeScheduler().plan(timesteps=[22, 0])
        >>> x = torch.randn(1, 3, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    prediction_types = ("consistency",)
    _tuple_has_original = False
    _steps_at_once = True
    _refuses_whole_timesteps = True

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0,
        sigma_data: float = 0.5, s_noise: float = 1.0, rho: float = 7.0, clip_denoised: bool = True,
    ):  # fmt: skip
        pass

    @property
    def init_noise_sigma(self) -> float:
        """σ_max: the standard deviation of the noise that a run begins with."""
        return self.config.sigma_max

    def _plan(self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> ConsistencyRun:
        train_steps = self.config.num_train_timesteps
        if sigmas is not None:
            return self._run_over([float(sigma) for sigma in sigmas])
        if timesteps is None:
            if steps > train_steps:
                raise ValueError(
                    f"num_inference_steps={steps} is more than the {train_steps} levels (num_train_timesteps) that "
                    f"{type(self).__name__} has"
                )
            places: Sequence[float] = [k * (train_steps // steps) for k in range(steps)]
            levels = self._spaced(steps)
        else:
            if any(late >= early for early, late in pairwise(timesteps)) or timesteps[0] >= train_steps:
                raise ValueError(
                    f"timesteps={list(timesteps)} must be in descending order and below "
                    f"num_train_timesteps={train_steps}"
                )
            places, levels = [int(t) for t in reversed(timesteps)], None
        if levels is None:
            levels = [self._sigma_at(place / max(train_steps - 1, 1)) for place in places]
        return self._run_over([*levels, self.config.sigma_min])

    def _run_over(self, sigmas: list[float]) -> ConsistencyRun:
        c = self.config
        levels = [Level(1.0, sigma) for sigma in sigmas]
        return ConsistencyRun(
            self.sigma_to_t(sigmas[:-1]).tolist(),
            levels[:-1],
            levels[1:],
            "consistency",
            (lambda x0: x0.clamp(-1, 1)) if c.clip_denoised else None,
            sigma_data=c.sigma_data,
            init_noise_sigma=c.sigma_max,
            sigma_min=c.sigma_min,
            sigma_max=c.sigma_max,
            s_noise=c.s_noise,
        )

    def _whole(self) -> Run:
        return self.plan(self.config.num_train_timesteps)

    def sigma_to_t(self, sigmas: float | Sequence[float] | np.ndarray) -> np.ndarray:
        """250·log(σ), what the network is told."""
        return 250.0 * np.log(np.asarray(sigmas, dtype=np.float64) + 1e-44)

    def get_scalings(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(c_skip, c_out) of EDM."""
        return skip_and_out(sigma, self.config.sigma_data)

    def get_scalings_for_boundary_condition(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(c_skip, c_out) with which the network gives x itself at σ_min."""
        return boundary_scalings(sigma, self.config.sigma_min, self.config.sigma_data)

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Choose the levels that the following ``step`` calls visit: a number of them, or places; see the class."""
        super().set_timesteps(num_inference_steps, device, timesteps)
