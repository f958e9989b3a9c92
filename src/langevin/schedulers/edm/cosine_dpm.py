"""The stochastic DPM-Solver++ for networks preconditioned as EDM's, told arctan σ: the sampler of Stable Audio Open
(Evans et al. 2024, arXiv:2407.14358). See :mod:`langevin.schedulers.edm.base` and
:mod:`langevin.schedulers.logsnr.dpm_multistep`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.arithmetic import DrawNoise
from langevin.schedulers.brownian import Path, Seed, brownian_path
from langevin.schedulers.edm.base import EDMScheduler
from langevin.schedulers.edm.deviations import Published
from langevin.schedulers.edm.dpm_multistep import EDMMultistepRun
from langevin.schedulers.logsnr.dpm_multistep import low_orders
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.scheduler import SchedulerMixin


class CosineDPMRun(EDMMultistepRun):
    """The steps' noise is the increments of one Brownian path in σ: drawn as they come, or with a seed, the path of
    :func:`brownian_path` between ``ends``."""

    def __init__(self, *args: Any, ends: tuple[float, float], **options: Any):
        self.ends = ends
        self.seed: Seed | None = None
        self.path: Path | None = None
        super().__init__(*args, algorithm="sde-dpmsolver++", **options)

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        sigma, target = self.levels[i].sigma, self.targets[i].sigma
        if target == 0.0:
            noise = torch.zeros_like
        elif self.seed is not None:
            self.path = path = self.path or brownian_path(x, *self.ends, seed=self.seed)

            def noise(like: torch.Tensor) -> torch.Tensor:
                return path(sigma, target)

        return super().step(prediction, i, x, noise)


class CosineDPMSolverMultistepScheduler(EDMScheduler):
    """Second order at one network call a step, with fresh noise at every step but the last.

    Args:
        sigma_min, sigma_max: the ends of the schedule.
        sigma_data: standard deviation of the training data.
        sigma_schedule: "exponential" (log σ is even) or "karras" (arXiv:2206.00364, equation 5).
        num_train_timesteps: how many levels there are before ``set_timesteps``.
        solver_order: 1 or 2.
        prediction_type: "v_prediction", or "epsilon": the negative of that.
        rho: bend of the Karras schedule.
        solver_type: "midpoint" or "heun", for second-order steps.
        lower_order_final: first order for the last step of runs of fewer than 15.
        euler_at_final: first order for the last step.
        final_sigmas_type: end at "zero", or stay at "sigma_min" for a last step.

    Noise is drawn step by step from the generators, so that with one for each image, a picture of a batch can be made
    again alone; for a run that goes through its levels once this is the same in law as a Brownian path.

    Run options: ``noise_sampler_seed`` (a list: one for each image): the noise is a Brownian path from this seed
    instead, and needs ``pip install langevin[brownian]``; the familiar ``step`` takes the seed that its generator was
    made with, as the reference implementation does. ``as_published``: a single step of the exponential schedule begins
    at σ_max; in the reference implementation it begins at σ_min.

        >>> run = CosineDPMSolverMultistepScheduler().plan(100)
        >>> x = torch.randn(1, 64, 1024) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x, torch.randn_like).prev_sample
    """

    run_options = ("noise_sampler_seed", "as_published")
    _tuple_has_original = False

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.3, sigma_max: float = 500, sigma_data: float = 1.0,
        sigma_schedule: str = "exponential", num_train_timesteps: int = 1000, solver_order: int = 2,
        prediction_type: str = "v_prediction", rho: float = 7.0, solver_type: str = "midpoint",
        lower_order_final: bool = True, euler_at_final: bool = False, final_sigmas_type: str = "zero",
    ):  # fmt: skip
        self._refuse_unless("solver_type", ("midpoint", "heun"), dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"))
        self._refuse_unless("solver_order", (1, 2))
        self._check_schedule()

    def _first_sigma(self) -> float:
        return float(self.config.sigma_max)

    def _even(self, count: int) -> list[float]:
        # In fp32 at every turn, as the reference implementation has it: a Brownian path is rough, and a place on it
        # that differs in the last bit gives another picture.
        low, high, rho = self.config.sigma_min, self.config.sigma_max, self.config.rho
        if self.config.sigma_schedule == "exponential":
            return torch.linspace(math.log(low), math.log(high), count).exp().flip(0).tolist()
        start, end = high ** (1 / rho), low ** (1 / rho)
        return ((start + torch.linspace(0, 1, count) * (end - start)) ** rho).tolist()

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: Published, noise_sampler_seed: Seed | None = None,
    ) -> Run:  # fmt: skip
        if timesteps is not None:
            levels = [math.tan(math.pi / 2 * float(t)) for t in timesteps]
            sigmas = [*levels, self._final_sigma(levels)]
        run: Any = super()._plan(steps, None, sigmas, manner)
        run.seed = noise_sampler_seed
        return run

    def _final_sigma(self, sigmas: list[float]) -> float:
        return 0.0 if self.config.final_sigmas_type == "zero" else min(sigmas[-1], self.config.sigma_min)

    def _run_over(self, sigmas: list[float], final: float) -> CosineDPMRun:
        c = self.config
        levels = [Level(1.0, sigma) for sigma in [*sigmas, final]]
        return CosineDPMRun(
            self._told(sigmas),
            levels[:-1],
            levels[1:],
            c.prediction_type,
            sigma_data=c.sigma_data,
            init_noise_sigma=self.init_noise_sigma,
            solver_type=c.solver_type,
            order=c.solver_order,
            **low_orders(self._own, len(sigmas), final == 0.0),
            ends=(c.sigma_min, c.sigma_max),
        )

    def _whole(self) -> Run:
        return self._run_over(self._even(self.config.num_train_timesteps), 0.0)

    def _told(self, sigmas: list[float]) -> list[float]:
        """c_noise = 2/π·arctan σ."""
        return [2 / math.pi * math.atan(sigma) for sigma in sigmas]

    def precondition_noise(self, sigma: float | torch.Tensor) -> torch.Tensor:
        """c_noise = 2/π·arctan σ, what the network is told: 0 for a clean image, 1 for noise alone."""
        return torch.atan(sigma if isinstance(sigma, torch.Tensor) else torch.tensor([sigma])) * (2 / math.pi)

    set_timesteps = SchedulerMixin.set_timesteps  # type: ignore[assignment]  # of σ, where others of EDM's take places

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``, given the scaled sample.
            timestep: one of ``scheduler.timesteps``. Looked up at the first step; after that, steps are counted.
            sample: x at that timestep, not scaled.
            generator: the run's noise is the Brownian path from the seed that it was made with; a list gives each
                image its own. The first one that a run is given counts, and nothing is drawn from it. None: noise is
                drawn step by step.
            return_dict: False gives the tuple ``(prev_sample,)``.
        """
        run: Any = self.run
        if generator is not None and run.seed is None:
            if isinstance(generator, torch.Generator):
                run.seed = generator.initial_seed()
            else:
                run.seed = [each.initial_seed() for each in generator]
        return self._step(model_output, timestep, sample, None, return_dict)
