"""Inversion: the solvers' steps walked from an image up to the noise that it would be sampled from (DDIM inversion:
Song, Meng & Ermon 2020, arXiv:2010.02502, section 4.3; Dhariwal & Nichol 2021, arXiv:2105.05233, appendix F).

A step of these solvers goes from any level to any other, so an inversion is their run over the levels in reverse. What
is to be got right is which timestep the network is told on the way. DDIM here tells it the timestep of the level that a
step goes *to*, which is the one it is told when sampling takes the same step down; DPM-Solver, which keeps a history of
predictions at their levels, tells it the level that x is at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers import spacing as spacings
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run
from langevin.schedulers.steps import PlainStep
from langevin.schedulers.timesteps import deviations
from langevin.schedulers.timesteps.base import TimestepScheduler
from langevin.schedulers.timesteps.ddim import DDIMRun


class DDIMInverseScheduler(PlainStep, TimestepScheduler):
    """From an image to the noise that :class:`DDIMScheduler` would make it of: the more steps, the more truly.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the noise
            schedule; see :meth:`NoiseSchedule.from_config`.
        clip_sample, clip_sample_range: bound the predicted image, for models of pixels. Off for latents.
        set_alpha_to_one: the run begins at ᾱ = 1, the clean image; otherwise at the least noisy level of training.
        prediction_type: "epsilon", "v_prediction", or "sample", which cannot begin at ᾱ = 1.
        timestep_spacing, steps_offset: which timesteps a run visits: "leading" or "trailing".

    Run option ``as_published``: a step comes from the timestep before it in the run. Without it, it comes from
    t - T//n, as in the reference implementation, which is the same for "leading" spacing and not quite for others
    when n does not divide T. Timesteps and sigmas of one's own are ascending; ``sigmas`` has the one to begin at too.

        >>> run = DDIMInverseScheduler(clip_sample=False).plan(50)
        >>> x = encode(image)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    run_options = ("as_published",)
    _manners = deviations.STEPS
    _compatibles: ClassVar[list[str]] = []

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        clip_sample: bool = True, set_alpha_to_one: bool = True, steps_offset: int = 0,
        prediction_type: str = "epsilon", clip_sample_range: float = 1.0, timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False, **former: Any,
    ):  # fmt: skip
        if unknown := [name for name in former if name != "set_alpha_to_zero"]:
            raise TypeError(f"DDIMInverseScheduler has no setting {', '.join(map(repr, unknown))}")
        self.noise_schedule = self._build_noise_schedule()

    @property
    def initial_alpha_cumprod(self) -> torch.Tensor:
        """ᾱ of the level where a run begins."""
        former = self.config.get("set_alpha_to_zero")  # what the setting was once called, by mistake
        clean = self.config.set_alpha_to_one if former is None else former
        return torch.ones(()) if clean else self.alphas_cumprod[0]

    def _plan(
        self,
        steps: int,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        manner: Callable[..., list[Level]],
    ) -> DDIMRun:
        evenly = self._untold(timesteps, sigmas)
        if evenly and self.config.timestep_spacing not in ("leading", "trailing"):
            raise ValueError(
                f"timestep_spacing={self.config.timestep_spacing!r} in the config of DDIMInverseScheduler: must be one "
                "of 'leading', 'trailing'"
            )
        for name, given in (("timesteps", timesteps), ("sigmas", sigmas)):
            spacings.refuse_unless_ascending(name, given or [])
        start = Level.of_alpha_bar(self.initial_alpha_cumprod.item())
        timesteps, sigmas = (None if given is None else given[::-1] for given in (timesteps, sigmas))
        visited, levels, below = self._visit(steps, timesteps, sigmas, start)
        if evenly:
            below = manner(self, visited, steps, below, start)
        if self.config.prediction_type == "sample" and below[-1].sigma == 0.0:
            raise ValueError(
                "prediction_type='sample' says nothing about noise where there is none yet: an inversion with it needs "
                "set_alpha_to_one=False"
            )
        limit = predictions.limiter(self._own)
        return DDIMRun(visited[::-1], below[::-1], levels[::-1], self.config.prediction_type, limit)

    def _whole(self) -> Run:
        return self.plan(timesteps=list(range(len(self))))
