"""Preconditioned networks, and what their samplers share: Karras, Aittala, Aila & Laine 2022, "Elucidating the Design
Space of Diffusion-Based Generative Models" (EDM), arXiv:2206.00364.

x = x0 + σ·n, and the network F gives x0 by (equation 7, table 1)

    D(x; σ) = c_skip(σ)·x + c_out(σ)·F(c_in(σ)·x; c_noise(σ)).

A run's levels are laid by one law: σ at a *place* from 0 (σ_max) to 1 (σ_min).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch

from langevin.schedulers import prediction as predictions
from langevin.schedulers import spacing as spacings
from langevin.schedulers.arithmetic import scaled
from langevin.schedulers.edm.deviations import EDM, Published
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run
from langevin.schedulers.steps import CountedSteps

Number = TypeVar("Number", float, torch.Tensor)

LAWS = ("karras", "exponential")
"""The laws that ``sigma_schedule`` names."""


def skip_and_out(sigma: Number, sigma_data: float) -> tuple[Number, Number]:
    """(c_skip, c_out): D has the least possible error where F is 0, and F's target has unit variance (table 1)."""
    variance = sigma**2 + sigma_data**2
    return sigma_data**2 / variance, sigma * sigma_data / variance**0.5


def karras_at(place: float, sigma_max: float, sigma_min: float, rho: float) -> float:
    """Equation 5 at a place from 0 (σ_max) to 1 (σ_min)."""
    return ((1 - place) * sigma_max ** (1 / rho) + place * sigma_min ** (1 / rho)) ** rho


class PreconditionedRun(Run):
    """What a solver must know of a preconditioned network: how its input is scaled and how its output is read."""

    def __init__(self, *args: Any, sigma_data: float, init_noise_sigma: float, **options: Any):
        self.sigma_data = sigma_data
        super().__init__(*args, **options)
        self.init_noise_sigma = init_noise_sigma

    def scale_model_input(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """c_in·x with c_in = 1/sqrt(σ² + σ_data²): unit variance, as in training."""
        return scaled(x, 1.0 / math.hypot(self.levels[i].sigma, self.sigma_data))

    def to_x0(self, level: Level) -> tuple[float, float]:
        if self.prediction_type == "sample":
            return 0.0, 1.0
        c_skip, c_out = skip_and_out(level.sigma, self.sigma_data)
        return c_skip, -c_out if self.prediction_type == "v_prediction" else c_out


class PreconditionedScheduler(CountedSteps):
    """Base of the schedulers whose levels are a law of σ, not a table of β.

    Their config says ``sigma_min``, ``sigma_max``, ``sigma_data``, ``rho`` and ``num_train_timesteps``.
    """

    _compatibles: ClassVar[list[str]] = []

    def _sigma_at(self, place: float) -> float:
        c = self.config
        return karras_at(place, c.sigma_max, c.sigma_min, c.rho)

    def _spaced(self, steps: int) -> list[float] | None:
        """σ by the spacing that ``with_spacing`` chose, if any; timestep t of T is the place 1 - t/(T-1)."""
        if self._spacing is not None and self._spacing[0] in spacings.TIMESTEP_SPACINGS:
            name, options = self._spacing
            last = max(self.config.num_train_timesteps - 1, 1)
            spaced = spacings.TIMESTEP_SPACINGS[name](self.config.num_train_timesteps, steps, **options)
            return [self._sigma_at(1 - t / last) for t in spaced]
        return self._spaced_sigmas(steps, self.config.sigma_max, self.config.sigma_min)

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """sample / sqrt(σ² + σ_data²) at this timestep; call it before every network call."""
        return self.run.scale_model_input(sample, self._begin(timestep))


class EDMScheduler(PreconditionedScheduler):
    """Base of EDM's schedulers: their spacing, and the preconditioning as functions for training."""

    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")
    run_options: ClassVar[tuple[str, ...]] = ("as_published",)
    _manners = EDM

    def _check_schedule(self) -> None:
        for key, allowed in {"sigma_schedule": LAWS, "final_sigmas_type": ("zero", "sigma_min")}.items():
            if self.config[key] not in allowed:
                raise ValueError(
                    f"{key}={self.config[key]!r} in the config of {type(self).__name__}: must be one of "
                    f"{', '.join(map(repr, allowed))}"
                )

    @property
    def init_noise_sigma(self) -> float:
        """sqrt(σ_max² + 1): the standard deviation of the noise that a run begins with."""
        return math.hypot(self.config.sigma_max, 1.0)

    def _sigma_at(self, place: float) -> float:
        if self.config.sigma_schedule == "karras":
            return super()._sigma_at(place)
        ends = math.log(self.config.sigma_max), math.log(self.config.sigma_min)
        return math.exp((1 - place) * ends[0] + place * ends[1])

    def _first_sigma(self) -> float:
        """σ_max, as the schedule's law has it."""
        return self._sigma_at(0.0)

    def _even(self, count: int) -> list[float]:
        if count == 1:
            return [self._sigma_at(0.0 if self.config.sigma_schedule == "karras" else 1.0)]
        return [self._sigma_at(i / (count - 1)) for i in range(count)]

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, manner: Published
    ) -> Run:
        if sigmas is not None:
            levels = [float(sigma) for sigma in sigmas]
            return self._run_over(levels[:-1], levels[-1])
        if timesteps is not None:
            levels = [math.exp(4 * t) for t in timesteps]
        else:
            levels = self._spaced(steps) or manner.begun(self._even(steps), self._first_sigma())
        return self._run_over(levels, self._final_sigma(levels))

    def _final_sigma(self, sigmas: list[float]) -> float:
        """The σ where a run ends, by ``final_sigmas_type``."""
        return 0.0 if self.config.final_sigmas_type == "zero" else sigmas[-1]

    def _run_over(self, sigmas: list[float], final: float) -> Run:
        """The solver's run over these σ, which ends at ``final``."""
        raise NotImplementedError

    def _told(self, sigmas: list[float]) -> list[float]:
        """c_noise = log(σ)/4."""
        return [0.25 * math.log(sigma) for sigma in sigmas]

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None,
        sigmas: Sequence[float] | torch.Tensor | None = None, as_published: bool = False,
    ) -> None:  # fmt: skip
        """Choose the levels that the following ``step`` calls visit.

        Args:
            num_inference_steps: how many.
            device: where ``timesteps`` are wanted.
            sigmas: levels instead, as *places* on ``sigma_schedule`` from 0 (σ_max) to 1 (σ_min), ascending; of
                places on the exponential schedule only the number counts. So the reference implementation has it.
            as_published: ``sigmas`` are σ, descending, without the one to end at; and a single step of the
                exponential schedule begins at σ_max.
        """
        if sigmas is None:
            super().set_timesteps(num_inference_steps, device, as_published=as_published)
            return
        levels = [float(sigma) for sigma in sigmas]
        if num_inference_steps not in (None, len(levels)):
            raise ValueError(f"{len(levels)} sigmas, but num_inference_steps={num_inference_steps}: give one of both")
        levels = EDM.of(as_published).given(levels, self.config.sigma_schedule, self._sigma_at, self._even)
        super().set_timesteps(None, device, sigmas=[*levels, self._final_sigma(levels)])

    def precondition_inputs(self, sample: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """c_in·sample."""
        return sample * (1 / (sigma**2 + self.config.sigma_data**2) ** 0.5)

    def precondition_noise(self, sigma: float | torch.Tensor) -> torch.Tensor:
        """c_noise = log(σ)/4, what the network is told."""
        return 0.25 * torch.log(sigma if isinstance(sigma, torch.Tensor) else torch.tensor([sigma]))

    def precondition_outputs(
        self, sample: torch.Tensor, model_output: torch.Tensor, sigma: float | torch.Tensor
    ) -> torch.Tensor:
        """D = c_skip·sample + c_out·output: x0."""
        kind = predictions.check(self.config.prediction_type, self.prediction_types, type(self).__name__)
        c_skip, c_out = skip_and_out(torch.as_tensor(sigma), self.config.sigma_data)
        return c_skip * sample + (-c_out if kind == "v_prediction" else c_out) * model_output
