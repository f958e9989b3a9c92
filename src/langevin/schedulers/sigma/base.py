"""Schedulers that count in σ: x = x0 + σ·ε (Karras et al. 2022, arXiv:2206.00364; Katherine Crowson's k-diffusion).

What they share: which σ a run visits, how the network's input is scaled, and how a step finds its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from langevin.schedulers import spacing as spacings
from langevin.schedulers.arithmetic import per_image, scaled
from langevin.schedulers.noise import SMALLEST_ALPHA_BAR, Level
from langevin.schedulers.run import Run
from langevin.schedulers.sigma import deviations
from langevin.schedulers.steps import CountedSteps


class SigmaRun(Run):
    """A run over ``sigmas``: one per call, and the one where it ends."""

    def __init__(
        self,
        timesteps: list[float],
        sigmas: list[float],
        prediction_type: str,
        init_noise_sigma: float | None = None,
        **options: Any,
    ):
        self._sigmas = sigmas
        self.init_noise_sigma = max(sigmas) if init_noise_sigma is None else init_noise_sigma
        levels = [Level(1.0, sigma) for sigma in sigmas]
        self._input_scales = [1.0 / math.hypot(sigma, 1.0) for sigma in sigmas]
        calls = len(timesteps)
        super().__init__(timesteps, levels[:calls], levels[1 : calls + 1], prediction_type, **options)

    @property
    def sigmas(self) -> list[float]:
        """σ of every call's level, and of the level where the run ends."""
        return self._sigmas

    def scale_model_input(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """x / sqrt(σ² + 1): unit variance, as in training (c_in with σ_data = 1, arXiv:2206.00364, table 1)."""
        return scaled(x, self._input_scales[i])


class SigmaScheduler(CountedSteps):
    """Base of the σ-schedulers of discretely trained models.

    Their config says ``timestep_spacing`` and ``steps_offset``, and at most one of ``use_karras_sigmas``,
    ``use_exponential_sigmas`` and ``use_beta_sigmas``, which lay σ anew between the ends that the timesteps give
    (or ``sigma_min`` and ``sigma_max``, where the class has them).
    """

    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "v_prediction", "original_sample")
    _smallest_alpha_bar = SMALLEST_ALPHA_BAR
    _timestep_dtype: ClassVar[type] = np.float32  # what spaced timesteps are rounded to

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, **options: Any
    ) -> SigmaRun:
        final = self._final_sigma() if sigmas is None else float(sigmas[-1])
        visited, levels = self._visit_sigmas(steps, timesteps, sigmas)
        return self._run_over(visited, [*levels, final], **options)

    def _run_over(self, *args: Any, **options: Any) -> SigmaRun:
        """``(timesteps, sigmas, **options)``: the solver's run over these levels, of which the last is its end."""
        raise NotImplementedError

    def _whole(self) -> Run:
        sigmas = self.noise_schedule.sigmas[::-1].tolist()
        timesteps = np.arange(len(sigmas) - 1.0, -1.0, -1.0).tolist()
        return self._run_over(timesteps, [*sigmas, 0.0])

    def _visit_sigmas(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
    ) -> tuple[list[float], list[float]]:
        """(timesteps, sigmas without the last) of a run."""
        noise = self.noise_schedule
        if sigmas is not None:
            sigmas = [float(sigma) for sigma in sigmas[:-1]]
            return [noise.timestep_of(sigma) for sigma in sigmas], sigmas
        name = self._sigma_spacing()[0]
        if timesteps is not None and name is not None:
            raise ValueError(
                f"timesteps cannot be given to a {type(self).__name__} with {name} spacing, which chooses its own; "
                "give sigmas or num_inference_steps"
            )
        visited = self._spaced_timesteps(steps) if timesteps is None else timesteps
        visited = np.array(visited, self._timestep_dtype).tolist()
        sigmas = self._sigmas_between(visited)
        spaced = self._spaced_sigmas(steps, sigmas[0], sigmas[-1])
        if spaced is None:
            return visited, sigmas
        return [noise.timestep_of(sigma) for sigma in spaced], spaced

    def _sigmas_between(self, timesteps: list[float]) -> list[float]:
        return self.noise_schedule.sigma_at(timesteps)

    def _final_sigma(self) -> float:
        """The σ where a run ends, by ``final_sigmas_type``."""
        kind = self._own.get("final_sigmas_type", "zero")
        if kind not in ("zero", "sigma_min"):
            raise ValueError(f"final_sigmas_type={kind!r} in the config: must be one of 'zero', 'sigma_min'")
        return 0.0 if kind == "zero" else float(self.noise_schedule.sigmas[0])

    def _init_noise_sigma(self, sigmas: list[float]) -> float:
        """σ_max where a run begins at the last timestep; sqrt(σ_max² + 1) where x_T still holds some of the image."""
        return max(sigmas) if self._timestep_spacing()[0] in spacings.FROM_ALL_NOISE else math.hypot(max(sigmas), 1.0)

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """sample / sqrt(σ² + 1) at this timestep; call it before every network call."""
        return self.run.scale_model_input(sample, self._begin(timestep))

    def get_velocity(
        self,
        sample: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor | float,
        as_published: bool = False,
        **options: Any,
    ) -> torch.Tensor:
        """v = α_t·noise - σ_t·x0 of the variance-preserving x (arXiv:2202.00512, section 4).

        Args:
            sample: x0, (batch, ...), clean.
            timesteps: (batch,), of ``scheduler.timesteps``.
            as_published: take ᾱ at the timestep. The reference implementation takes it at the *index* of the
                timestep in ``scheduler.timesteps``, which counts the other way round; that is the default here too.
        """
        places = deviations.VELOCITY.of(as_published)(self.run, torch.as_tensor(timesteps).flatten())
        alpha, sigma = per_image([self.noise_schedule.level(t) for t in places], sample)
        return (alpha * noise - sigma * sample).to(sample.dtype)
