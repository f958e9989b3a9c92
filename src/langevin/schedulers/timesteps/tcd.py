"""Trajectory consistency distillation: Zheng, Hu, Fan, Wang, Ding, Tao & Cham 2024, arXiv:2402.19159.

The paper's γ is called ``eta`` here, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw
from langevin.schedulers.noise import Level, rise
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.timesteps import deviations
from langevin.schedulers.timesteps.lcm import DistilledScheduler
from langevin.schedulers.weights import Weights


class TCDOutput(StepOutput):
    """``pred_noised_sample`` is x at the level from which noise brings it up to the next."""

    __slots__ = ("pred_noised_sample",)

    pred_noised_sample: torch.Tensor

    def __getitem__(self, key: int | str) -> torch.Tensor:
        return self.pred_noised_sample if key == "pred_noised_sample" else super().__getitem__(key)


class TCDRun(Run):
    """Strategic stochastic sampling: down the trajectory to s = (1 - η)·t_next, up to t_next by noise.

    Args:
        level_of: the level of a timestep.
    """

    def __init__(self, *args: Any, level_of: Callable[[int], Level], **options: Any):
        self.level_of = level_of
        super().__init__(*args, **options)

    def configure(self, eta: float = 0.3) -> None:
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta={eta} is outside 0 (deterministic) to 1 (to the clean image in every step)")
        self.downs: list[Weights] = []
        self.rises: list[tuple[float, float]] = []  # what multiplies x_s and what the noise, on the way up to t_next
        for i, (level, target) in enumerate(zip(self.levels, self.targets, strict=True)):
            down = target  # the last step goes straight to the end
            if i < len(self) - 1 and eta > 0.0:
                # in fp32, as whoever made pictures with it did
                s = self.level_of(int(np.float32(1.0 - eta) * np.float32(self.timesteps[i + 1])))
                down = min(s, target, key=lambda level: level.ratio)
            p, q = self.to_x0(level)
            r, w = predictions.to_epsilon(self.prediction_type, level)
            self.downs.append(  # x_s = α_s·x0 + σ_s·ε
                Weights(down.alpha * p + down.sigma * r, down.alpha * q + down.sigma * w)
            )
            self.rises.append(rise(down, target))

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> TCDOutput:
        self.refuse_blind_start(i)
        noised = previous = self.downs[i].sum(x, prediction)
        of_noised, of_noise = self.rises[i]
        if of_noise:
            previous = combine((of_noised, noised), (of_noise, (noise or draw)(noised)))
        output = TCDOutput(cast(previous, x.dtype), self._later(prediction, i, x))
        output.pred_noised_sample = cast(noised, x.dtype)
        return output


class TCDScheduler(DistilledScheduler):
    """Few steps, or many: unlike LCM's, the pictures get better with more.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the noise
            schedule; see :meth:`NoiseSchedule.from_config`.
        original_inference_steps: on how many timesteps, evenly chosen, the model was distilled.
        prediction_type: "epsilon", "sample" or "v_prediction".
        set_alpha_to_one: with ``as_published``, the run ends at ᾱ = 1, the clean image; otherwise at timestep 0.
        clip_sample, clip_sample_range, thresholding, dynamic_thresholding_ratio, sample_max_value, steps_offset,
            timestep_spacing, timestep_scaling: without effect.

    Run options: ``eta`` (0, deterministic, to 1; the paper's γ, 0.3 unless given; less for fewer steps);
    ``original_inference_steps``: visit any timestep, evenly chosen, in at most so many steps; ``strength``, see
    :class:`DistilledScheduler`; ``as_published``: the run ends where ``set_alpha_to_one`` says. Without it, as in the
    reference implementation, it ends at timestep 0, which has a little noise.

        >>> run = TCDScheduler().plan(8)
        >>> x = torch.randn(1, 4, 8, 8)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    run_options = ("eta", *DistilledScheduler.run_options)
    _manners = deviations.TCD_END

    def _grid(self, original_inference_steps: int | None, strength: float) -> list[int]:
        if original_inference_steps is None:
            return super()._grid(None, strength)
        return list(range(int(self.config.num_train_timesteps * strength) - 1, -1, -1))

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: Callable[..., Level], original_inference_steps: int | None = None, strength: float = 1.0, **eta: Any,
    ) -> TCDRun:  # fmt: skip
        noise = self.noise_schedule
        final = manner(noise, self._final)
        visited, levels, targets = self._visit_grid(steps, timesteps, sigmas, final, original_inference_steps, strength)
        return TCDRun(visited, levels, targets, self.config.prediction_type, level_of=noise.level, **eta)

    def step(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor, eta: float = 0.3,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``.
            timestep: one of ``scheduler.timesteps``.
            sample: x at that timestep.
            eta: 0 (deterministic) to 1 (to the clean image in every step).
            generator: where noise comes from; a list gives each image its own.
            return_dict: False gives the tuple ``(prev_sample, pred_noised_sample)``.
        """
        output = self._step(model_output, timestep, sample, generator, True, eta=eta)
        assert isinstance(output, TCDOutput)
        return output if return_dict else (output.prev_sample, output.pred_noised_sample)
