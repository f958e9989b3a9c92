"""DPM-Solver++ with noise at both calls of a step: Lu et al. 2022, "DPM-Solver++", arXiv:2211.01095, algorithm 1 with
r = 1/2, each half as an ancestral step; Crowson's k-diffusion, ``sample_dpmpp_sde``.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.arithmetic import DrawNoise, combine, draw
from langevin.schedulers.brownian import Path, Seed, brownian_path
from langevin.schedulers.run import StepOutput
from langevin.schedulers.sigma.kdpm2 import AncestralStep, MidpointRun, MidpointScheduler
from langevin.schedulers.sigma.recipe import Stage, ddim
from langevin.schedulers.weights import Recipe


class DPMSDERun(MidpointRun):
    """The noise of a step's two calls belongs to one Brownian path: the whole step's is that of its first half and that
    of its second half, each as much as its part of the way in σ.

    Without a seed, the halves are drawn as they come; with one, the path is :func:`brownian_path`'s, in σ.
    """

    def __init__(self, *args: Any, noise_sampler_seed: Seed | None = None, **options: Any):
        self.seed = noise_sampler_seed
        self.path: Path | None = None
        self.first_half: torch.Tensor | None = None
        super().__init__(*args, **options)

    def configure(self, s_noise: float = 1.0) -> None:
        super().configure()
        self.s_noise = s_noise
        self.halves = []  # how much of the step's noise is that of its first half, of its second
        for i, (k, _) in enumerate(self.stages):
            start, middle, end = self.levels[i - k].sigma, self.levels[i].sigma, self.targets[i].sigma
            whole = start - end
            self.halves.append((sqrt((start - middle) / whole), sqrt((middle - end) / whole)) if whole else (1.0, 0.0))
        if self.seed is not None:
            visited = [*(stage.sigma for k, stage in self.stages if k == 0), self.sigmas[-1]]
            low, high = (float(np.float32(end(sigma for sigma in visited if sigma))) for end in (min, max))
            self.ends = low, high
            self.asked = [place for step in pairwise(visited) for place in _places(*step)]

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        def increment(like: torch.Tensor) -> torch.Tensor:
            z = self._increment(i, x, noise or draw)
            return z if self.s_noise == 1.0 else self.s_noise * z

        return super().step(prediction, i, x, increment)

    def _increment(self, i: int, x: torch.Tensor, noise: DrawNoise) -> torch.Tensor:
        """The path's over call ``i``'s step, of unit variance."""
        if self.seed is not None:
            self.path = self.path or brownian_path(x, *self.ends, seed=self.seed)
            return self.path(*self.asked[i])
        fresh = noise(x)
        if self.stages[i][0] == 0:
            self.first_half = fresh
            return fresh
        of_first, of_second = self.halves[i]
        assert self.first_half is not None
        return combine((of_first, self.first_half), (of_second, fresh))


def _places(sigma: float, target: float) -> list[tuple[float, float]]:
    """From where to where the two calls of a step ask the path.

    A path is rough: a place that differs in the last bit gives another picture. So these are rounded to fp32 at every
    turn, and go to t = -log σ and back, as in the reference implementation.
    """
    t, t_end = (-torch.tensor(s, dtype=torch.float32).log() for s in (sigma, target))
    t_middle = t + (t_end - t) * 0.5
    start, middle, end = (place.neg().exp().item() for place in (t, t_middle, t_end))
    return [(start, middle), (start, end)]


class DPMSolverSDEScheduler(MidpointScheduler):
    """Second order, two network calls a step and fresh noise after each: detailed pictures in few steps.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the noise schedule; see
            :meth:`NoiseSchedule.from_config`.
        prediction_type: "epsilon" or "v_prediction".
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: lay σ by that spacing; see
            :mod:`langevin.schedulers.spacing`.
        noise_sampler_seed: the noise is a Brownian path from this seed (a list: one for each image of the batch),
            whatever else is given, and needs ``pip install langevin[brownian]``. None: it is drawn step by step, from
            the generators; for a run that goes through its levels once that is the same in law, and with a generator
            for each image, a picture of a batch can be made again alone.
        timestep_spacing, steps_offset: which timesteps a run visits.

    Run options: ``s_noise``, a factor on the noise; ``noise_sampler_seed``, for this run; ``num_train_timesteps``: lay
    the spacing over so many of the training timesteps.

        >>> run = DPMSolverSDEScheduler(use_karras_sigmas=True).plan(10)  # 19 calls
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x, torch.randn_like).prev_sample
    """

    run_options = ("s_noise", "noise_sampler_seed", "num_train_timesteps")
    run_class = DPMSDERun
    _timestep_dtype = np.float64  # else σ, and so the places on a path, would differ in the last bit
    _ends = 1

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon", use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False, noise_sampler_seed: Seed | None = None, timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):  # fmt: skip
        self.noise_schedule = self._build_noise_schedule()

    def _run_over(self, timesteps: list[float], sigmas: list[float], *args: Any, **options: Any) -> MidpointRun:
        options = {"noise_sampler_seed": self.config.noise_sampler_seed, **options}
        return super()._run_over(timesteps, sigmas, *args, **options)

    def _sigma_spacing(self) -> tuple[str | None, dict[str, Any]]:
        name, options = super()._sigma_spacing()
        return name, {} if name == "karras" and self._spacing is None else options  # whose ends are the run's own

    def _stages(self, sigma: float, target: float, ancestral: AncestralStep) -> list[Stage]:
        if target == 0.0 or sigma == 0.0:
            return [Stage(sigma, ddim(sigma, target))]
        middle = sqrt(sigma * target)
        down, up = ancestral(sigma, middle)
        halfway = Stage(sigma, ddim(sigma, down, up))  # line 4: u, and noise
        down, up = ancestral(sigma, target)
        ratio = down / sigma
        return [halfway, Stage(middle, Recipe(ratio, (1.0 - ratio,), up))]  # line 6: x0 at u for the whole step

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        return_dict: bool = True, s_noise: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One call's step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``, given the scaled sample.
            timestep: one of ``scheduler.timesteps``. Looked up at the first step; after that, steps are counted.
            sample: x at that timestep, not scaled.
            return_dict: False gives the tuple ``(prev_sample, pred_original_sample)``.
            s_noise: a factor on the noise.
            generator: where noise comes from, if there is no ``noise_sampler_seed``; a list gives each image its own.
        """
        run: Any = self.run
        run.s_noise = s_noise
        return self._step(model_output, timestep, sample, generator, return_dict, None, **run.options)
