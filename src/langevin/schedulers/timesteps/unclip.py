"""unCLIP's DDPM: Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents",
arXiv:2204.06125, as the public Karlo models have it.

The run is DDPM's (arXiv:2006.11239), over a cosine noise schedule and timesteps that include the first and the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import draw
from langevin.schedulers.noise import Level, NoiseSchedule, alpha_of_step
from langevin.schedulers.run import StepOutput
from langevin.schedulers.scheduler import SchedulerMixin
from langevin.schedulers.timesteps.ddpm import DDPMRun

_CLEAN = Level(1.0, 0.0)


class UnCLIPScheduler(SchedulerMixin):
    """Ancestral sampling for unCLIP's prior (a vector), decoder and super-resolution networks.

    Args:
        num_train_timesteps: timesteps of the cosine noise schedule; see :meth:`NoiseSchedule.from_config`.
        variance_type: "fixed_small_log" (β̃) or "learned_range" (the network's second half of channels chooses between
            β̃ and β).
        clip_sample, clip_sample_range: bound the predicted x0.
        prediction_type: "epsilon" or "sample".
        beta_schedule: "squaredcos_cap_v2" and no other.

    ``plan(…, by_one=True)`` goes from each timestep that is visited to the one below it, not to the next one visited:
    less noise is taken away than is there. Stable unCLIP's pictures have been made so.

    A run of n steps visits round(k·(T-1)/(n-1)), from T-1 down to 0 (a single step: T-1).

        >>> run = UnCLIPScheduler(variance_type="learned_range").plan(25)
        >>> x = torch.randn(1, 3, 64, 64)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x, noise=torch.randn_like).prev_sample
    """

    prediction_types = ("epsilon", "sample")
    _takes = {
        "beta_schedule": Literal["squaredcos_cap_v2"],
        "variance_type": Literal["fixed_small_log", "learned_range"],
    }
    run_options = ("by_one",)
    _compatibles = []

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, variance_type: str = "fixed_small_log", clip_sample: bool = True,
        clip_sample_range: float = 1.0, prediction_type: str = "epsilon", beta_schedule: str = "squaredcos_cap_v2",
    ):  # fmt: skip
        self.noise_schedule = NoiseSchedule.from_config(num_train_timesteps, beta_schedule=beta_schedule)

    def _timestep_spacing(self) -> tuple[str, dict[str, Any]]:
        return ("linspace", {}) if self._spacing is None else super()._timestep_spacing()

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, by_one: bool = False
    ) -> DDPMRun:
        if steps == 1 and timesteps is None and sigmas is None and self._spacing is None:
            timesteps = [len(self) - 1]
        visited, levels, targets = self._visit(steps, timesteps, sigmas, _CLEAN)
        if by_one:
            targets = [self.noise_schedule.level(t - 1) if t >= 1 else _CLEAN for t in visited]
        return self._run_over(visited, levels, targets)

    def _run_over(self, timesteps: list[float], levels: list[Level], targets: list[Level]) -> DDPMRun:
        kind = self.config.variance_type
        return DDPMRun(
            timesteps, levels, targets, self.config.prediction_type, predictions.limiter(self._own), variance_type=kind,
            alphas=[self._alpha_of(*step) for step in zip(timesteps, levels, targets, strict=True)],
        )  # fmt: skip

    def _alpha_of(self, t: float, level: Level, target: Level) -> float:
        """α of a step as 1 - β, with β rounded to fp32: that of the table, where no timestep is skipped."""
        before = self.noise_schedule.level(t - 1) if t >= 1 else _CLEAN
        if target == before and level == self.noise_schedule.level(t):
            return 1.0 - float(self.noise_schedule.betas[int(t)])
        return 1.0 - float(np.float32(1.0 - alpha_of_step(level, target)))

    def step(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor,
        prev_timestep: int | torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One step between any two timesteps.

        Args:
            model_output: the network's output at ``timestep``, with twice the sample's channels for "learned_range".
            timestep: where the sample is.
            sample: x at that timestep.
            prev_timestep: where to go, usually the next of ``scheduler.timesteps``. None goes to ``timestep - 1``;
                below 0 is the clean image.
            generator: where noise comes from; a list gives each image its own.
            return_dict: False gives the tuple ``(prev_sample, pred_original_sample)``.
        """
        t = int(timestep)
        target = t - 1 if prev_timestep is None else int(prev_timestep)
        level = self.noise_schedule.level
        predictions.check(self.config.prediction_type, self.prediction_types, type(self).__name__)
        run = self._run_over([t], [level(t)], [level(target) if target >= 0 else _CLEAN])
        output = run.step(model_output, 0, sample, lambda like: draw(like, generator))
        return output if return_dict else output.to_tuple()
