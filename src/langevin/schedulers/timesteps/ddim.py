"""DDIM: Song, Meng & Ermon 2020, "Denoising Diffusion Implicit Models", arXiv:2010.02502.

The paper writes α for what is ᾱ here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, draw
from langevin.schedulers.noise import Level, alpha_of_step
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.timesteps import deviations
from langevin.schedulers.timesteps.base import TimestepScheduler
from langevin.schedulers.weights import Weights


class DDIMRun(Run):
    """x_{t-1} = α_{t-1}·x0 + sqrt(1 - ᾱ_{t-1} - σ²)·ε + σ·z (equation 12)."""

    def configure(self, eta: float = 0.0, use_clipped_model_output: bool = False) -> None:
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta={eta} is outside 0 (deterministic) to 1 (as much noise as DDPM)")
        self.eta = eta
        self.weights: list[Weights] = []
        self.kept: list[float | None] = []
        for level, target in zip(self.levels, self.targets, strict=True):
            beta = 1.0 - alpha_of_step(level, target)
            sigma = eta * target.sigma / level.sigma * sqrt(max(beta, 0.0)) if level.sigma else 0.0  # equation 16
            of_x0, of_epsilon = target.alpha, sqrt(max(target.sigma**2 - sigma**2, 0.0))  # equation 12

            p, q = self.to_x0(level)
            r, w = predictions.to_epsilon(self.prediction_type, level)
            if self.limit is None:  # both are linear in x and the output
                weights = Weights(of_x0 * p + of_epsilon * r, of_x0 * q + of_epsilon * w, of_noise=sigma)
            elif use_clipped_model_output:  # ε that belongs to the bounded x0, as GLIDE has it
                r, w = predictions.to_epsilon("sample", level)
                weights = Weights(of_epsilon * r, 0.0, of_x0 + of_epsilon * w, sigma)
            else:
                weights = Weights(of_epsilon * r, of_epsilon * w, of_x0, sigma)
            self.weights.append(weights)
            self.kept.append(None if use_clipped_model_output and self.limit is not None else of_epsilon)

    def noise_kept(self, i: int) -> float | None:
        return self.kept[i]

    def noise_added(self, i: int) -> float | None:
        return self.weights[i].of_noise

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        if self.limit is None:
            self.refuse_blind_start(i)
            x0, original = None, self._later(prediction, i, x)
        else:
            x0 = self._original(prediction, i, x)
            original = cast(x0, x.dtype)
        z = (noise or draw)(prediction) if self.eta > 0.0 else None
        return StepOutput(cast(self.weights[i].sum(x, prediction, x0, z), x.dtype), original)


class DDIMScheduler(TimestepScheduler):
    """Deterministic by default, with as much of DDPM's noise mixed in as ``eta`` says.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the noise
            schedule; see :meth:`NoiseSchedule.from_config`.
        clip_sample, clip_sample_range: bound the predicted image, for models of pixels. Off for latents.
        thresholding, dynamic_thresholding_ratio, sample_max_value: bound it by its own quantile instead.
        set_alpha_to_one: the run ends at ᾱ = 1, the clean image; otherwise at the least noisy level of training.
        prediction_type: "epsilon", "sample" or "v_prediction".
        timestep_spacing, steps_offset: which timesteps a run visits; see :mod:`langevin.schedulers.spacing`.

    Run options: ``eta`` (0 to 1), ``use_clipped_model_output``, and ``as_published``: a step goes to the next
    timestep of the run. Without it, it goes to t - T//n, as in the reference implementation, which is the same for
    "leading" spacing and not quite for others when n does not divide T.

        >>> run = DDIMScheduler(clip_sample=False).plan(20)
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    run_options = ("eta", "use_clipped_model_output", "as_published")
    _manners = deviations.STEPS

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        clip_sample: bool = True, set_alpha_to_one: bool = True, steps_offset: int = 0,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0, sample_max_value: float = 1.0, timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: Callable[..., list[Level]], **options: Any,
    ) -> DDIMRun:  # fmt: skip
        visited, levels, targets = self._visit(steps, timesteps, sigmas, self._final)
        if self._untold(timesteps, sigmas):
            targets = manner(self, visited, steps, targets, self._final)
        limit = predictions.limiter(self._own)
        return DDIMRun(visited, levels, targets, self.config.prediction_type, limit, **options)

    def step(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor, eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``.
            timestep: one of ``scheduler.timesteps``.
            sample: x at that timestep.
            eta: how much of DDPM's noise to add, 0 to 1.
            use_clipped_model_output: recompute ε from the bounded x0.
            generator: where noise comes from; a list gives each image its own.
            variance_noise: the noise itself, instead of ``generator``.
            return_dict: False gives the tuple ``(prev_sample, pred_original_sample)``.
        """
        options = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
        return self._step(model_output, timestep, sample, generator, return_dict, variance_noise, **options)
