"""Latent consistency models: Luo, Tan, Huang, Li & Zhao 2023, arXiv:2310.04378; and what distilled models share: a run
visits levels of the *grid* on which the model was distilled, every k-th training timestep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.steps import NoisyStep
from langevin.schedulers.timesteps import deviations
from langevin.schedulers.timesteps.base import TimestepScheduler


class LCMOutput(StepOutput):
    """``denoised`` is what the consistency function makes of x: the same as ``pred_original_sample``."""

    __slots__ = ()

    @property
    def denoised(self) -> torch.Tensor:
        return self.pred_original_sample

    def __getitem__(self, key: int | str) -> torch.Tensor:
        return super().__getitem__(1 if key == "denoised" else key)


class LCMRun(Run):
    """To x0 by the consistency function, and back up to the next level with fresh noise."""

    sigma_data = 0.5

    def __init__(self, *args: Any, timestep_scaling: float, **options: Any):
        self.timestep_scaling = timestep_scaling
        super().__init__(*args, **options)

    def configure(self) -> None:
        self.skips = []
        for t in self.timesteps:  # f(x, t) = c_skip(t)·x + c_out(t)·x0(x, t) is x itself at t = 0 (section 4.1)
            scaled = self.timestep_scaling * t
            norm = math.hypot(scaled, self.sigma_data)
            self.skips.append(((self.sigma_data / norm) ** 2, scaled / norm))

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> LCMOutput:
        self.refuse_blind_start(i)
        c_skip, c_out = self.skips[i]
        if self.limit is None:
            p, q = self.to_x0(self.levels[i])
            denoised = combine((c_skip + c_out * p, x), (c_out * q, prediction))
        else:
            denoised = combine((c_skip, x), (c_out, self._original(prediction, i, x)))
        previous, (alpha, sigma) = denoised, self.targets[i]
        if sigma:
            previous = combine((alpha, denoised), (sigma, (noise or draw)(denoised)))
        return LCMOutput(cast(previous, x.dtype), cast(denoised, x.dtype))


class DistilledScheduler(TimestepScheduler):
    """Base of the schedulers of distilled models: the config, and which levels a run visits.

    Run options: ``original_inference_steps``, in place of the config's; ``strength``, less than 1 for image to image:
    a run over the quieter part of the grid, or the tail of given ``timesteps``.
    """

    _compatibles: ClassVar[list[str]] = []
    run_options: ClassVar[tuple[str, ...]] = ("original_inference_steps", "strength", "as_published")

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear", trained_betas: np.ndarray | list[float] | None = None,
        original_inference_steps: int = 50, clip_sample: bool = False, clip_sample_range: float = 1.0,
        set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
        thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
        timestep_spacing: str = "leading", timestep_scaling: float = 10.0, rescale_betas_zero_snr: bool = False,
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    def _grid(self, original_inference_steps: int | None, strength: float) -> list[int]:
        """The timesteps on which the model was distilled, the noisiest first, up to ``strength``."""
        train_steps = self.config.num_train_timesteps
        count = original_inference_steps or self.config.original_inference_steps
        if count > train_steps:
            raise ValueError(
                f"original_inference_steps={count} is more than the {train_steps} timesteps (num_train_timesteps) that "
                f"{type(self).__name__} has"
            )
        return [i * (train_steps // count) - 1 for i in range(int(count * strength), 0, -1)]

    def _visit_grid(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, final: Level,
        original_inference_steps: int | None, strength: float,
    ) -> tuple[list[float], list[Level], list[Level]]:  # fmt: skip
        """(timesteps, levels, next levels) of a run."""
        if self._untold(timesteps, sigmas):
            grid = self._grid(original_inference_steps, strength)
            most = min(len(grid), original_inference_steps or self.config.original_inference_steps)
            if steps > most:
                raise ValueError(
                    f"num_inference_steps={steps} is more than the {most} steps on which the model was distilled "
                    f"(original_inference_steps, times strength={strength})"
                )
            chosen = [grid[int(i * (len(grid) / steps))] for i in range(steps)]
            return self._visit(steps, chosen, None, final)
        kept = min(int(steps * strength), steps)
        if kept < 1:
            raise ValueError(f"strength={strength} leaves none of the {steps} steps")
        visited, levels, targets = self._visit(steps, timesteps, sigmas, final)
        return visited[-kept:], levels[-kept:], targets[-kept:]

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None,
        original_inference_steps: int | None = None, timesteps: Sequence[int] | None = None, strength: float = 1.0,
        as_published: bool = False,
    ) -> None:  # fmt: skip
        """Choose the levels that the following ``step`` calls visit.

        Args:
            num_inference_steps: how many, of those on which the model was distilled.
            device: where ``timesteps`` are wanted.
            original_inference_steps: how many the model was distilled on, if not what the config says.
            timesteps: the timesteps to visit, descending, instead of ``num_inference_steps``.
            strength: less than 1 for image to image: a run over the quieter part.
            as_published: see the class.
        """
        options: dict[str, Any] = {"strength": strength, "as_published": as_published}
        options["original_inference_steps"] = original_inference_steps
        super().set_timesteps(num_inference_steps, device, timesteps, **options)

    def index_for_timestep(self, timestep: int | torch.Tensor) -> int:
        """The call that has this timestep."""
        return self.run.index_of(float(timestep))

    def previous_timestep(self, timestep: int | torch.Tensor) -> float:
        """The run's timestep after this one, -1 after the last; t - 1 before ``set_timesteps``."""
        return [*self.run.timesteps, -1][self.run.index_of(float(timestep)) + 1]

    def _whole(self) -> Run:
        return self.plan(timesteps=range(len(self) - 1, -1, -1))


class LCMScheduler(NoisyStep, DistilledScheduler):
    """Pictures in one to eight steps from a model distilled for it.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the noise
            schedule; see :meth:`NoiseSchedule.from_config`.
        original_inference_steps: on how many timesteps, evenly chosen, the model was distilled.
        clip_sample, clip_sample_range: bound the predicted image, for models of pixels.
        thresholding, dynamic_thresholding_ratio, sample_max_value: bound it by its own quantile instead.
        prediction_type: "epsilon", "sample" or "v_prediction".
        timestep_scaling: how fast, away from t = 0, the consistency function lets go of x.
        set_alpha_to_one, steps_offset, timestep_spacing: without effect.

    Run options: ``original_inference_steps``, ``strength`` (see :class:`DistilledScheduler`); ``as_published``: no
    noise is added by the last step. Without it, as in the reference implementation, a run that ``strength`` cut out
    of given ``timesteps`` ends with noise.

        >>> run = LCMScheduler().plan(4)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    _manners = deviations.LCM_END

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: Callable[..., list[Level]], original_inference_steps: int | None = None, strength: float = 1.0,
    ) -> LCMRun:  # fmt: skip
        visited, levels, targets = self._visit_grid(
            steps, timesteps, sigmas, Level(1.0, 0.0), original_inference_steps, strength
        )
        targets = manner(targets, levels[-1], timesteps is not None and len(visited) < steps)
        c = self.config
        limit = predictions.limiter(self._own)
        return LCMRun(visited, levels, targets, c.prediction_type, limit, timestep_scaling=c.timestep_scaling)
