"""DDIM: Song, Meng & Ermon 2020, "Denoising Diffusion Implicit Models", arXiv:2010.02502.

The paper writes α for what is ᾱ here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw
from langevin.schedulers.noise import alpha_of_step
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.timesteps.base import TimestepScheduler


class DDIMRun(Run):
    """x_{t-1} = α_{t-1}·x0 + sqrt(1 - ᾱ_{t-1} - σ²)·ε + σ·z (equation 12)."""

    def configure(self, eta: float = 0.0, use_clipped_model_output: bool = False) -> None:
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta={eta} is outside 0 (deterministic) to 1 (as much noise as DDPM)")
        self.eta = eta
        self.coefficients = []
        self.directions = []
        for level, target in zip(self.levels, self.targets, strict=True):
            beta = 1.0 - alpha_of_step(level, target)
            sigma = eta * target.sigma / level.sigma * sqrt(max(beta, 0.0)) if level.sigma else 0.0  # equation 16
            direction = sqrt(max(target.sigma**2 - sigma**2, 0.0))
            self.directions.append(None if use_clipped_model_output and self.limit is not None else direction)

            p, q = predictions.to_x0(self.prediction_type, level)
            r, w = predictions.to_epsilon(self.prediction_type, level)
            if self.limit is None:  # equation 12 is linear in x and the output: fold x0 and ε into two numbers
                weights = (target.alpha * p + direction * r, target.alpha * q + direction * w, 0.0)
            elif use_clipped_model_output:  # ε that belongs to the bounded x0, as GLIDE has it
                r, w = predictions.to_epsilon("sample", level)
                weights = (direction * r, 0.0, target.alpha + direction * w)
            else:
                weights = (direction * r, direction * w, target.alpha)
            self.coefficients.append((*weights, sigma, p, q))

    def noise_kept(self, i: int) -> float | None:
        return self.directions[i]

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        of_x, of_prediction, of_x0, sigma, p, q = self.coefficients[i]
        terms = [(of_x, x), (of_prediction, prediction)]
        if self.limit is None:
            self.refuse_blind_start(i)
            original = self._later(prediction, i, x)
        else:
            x0 = self.limit(combine((p, x), (q, prediction)))
            terms, original = [(of_x0, x0), *terms], cast(x0, x.dtype)
        if self.eta > 0.0:
            terms.append((sigma, (noise or draw)(prediction)))
        return StepOutput(cast(combine(*terms), x.dtype), original)


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
        self,
        steps: int,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        as_published: bool = False,
        **options: Any,
    ) -> DDIMRun:
        visited, levels, targets = self._visit(steps, timesteps, sigmas, self._final)
        if timesteps is None and sigmas is None and self._spacing is None and not as_published:
            targets = self._stride_below(visited, steps, self._final)
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
