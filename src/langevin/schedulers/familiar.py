"""The methods that users of diffusers know, ``set_timesteps``, ``step``, ``scale_model_input`` and ``add_noise``,
written once, on a run that the scheduler keeps for them. Pipelines need none of it: they call ``plan``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from langevin.checkpoints.config import ConfigMixin
from langevin.schedulers.arithmetic import draw, per_image, spread
from langevin.schedulers.noise import NoiseSchedule
from langevin.schedulers.run import Run, StepOutput


def as_tensor(timesteps: list[Any], device: str | torch.device | None = None) -> torch.Tensor:
    """int64, or fp32 where there are fractions."""
    whole = all(isinstance(t, int) for t in timesteps)
    return torch.tensor(timesteps, dtype=torch.int64 if whole else torch.float32, device=device)


class FamiliarMethods(ConfigMixin):
    """What changes between two calls of these methods (the run, and where in it they are) is theirs alone."""

    noise_schedule: NoiseSchedule

    # Whether the tuple that step(return_dict=False) gives has x0 too.
    _tuple_has_original: ClassVar[bool] = True
    # Whether step() works before set_timesteps(), over all training timesteps.
    _steps_at_once: ClassVar[bool] = False

    _run: Run | None = None
    _timesteps: torch.Tensor | None = None
    _step_index: int | None = None
    _begin_index: int | None = None
    num_inference_steps: int | None = None

    def plan(self, *args: Any, **options: Any) -> Run:
        """A fresh run: :meth:`langevin.schedulers.scheduler.SchedulerMixin.plan`."""
        raise NotImplementedError

    def _without_run(self) -> Any:
        """A copy that no run has been laid out for."""
        twin = copy.copy(self)
        for state in ("_run", "_timesteps", "_step_index", "_begin_index", "num_inference_steps"):
            twin.__dict__.pop(state, None)
        return twin

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        """Choose the levels that the following ``step`` calls visit; see :meth:`plan`, also for ``options``."""
        run = self.plan(num_inference_steps, timesteps=timesteps, sigmas=sigmas, **options)
        self._run = run
        self._timesteps = as_tensor(run.timesteps, device)
        self._step_index = self._begin_index = None
        self.num_inference_steps = num_inference_steps if num_inference_steps is not None else len(run)

    def showing(self, run: Run, steps: int, step_index: int | None = None) -> Any:
        """A twin whose familiar methods show a run under way: its ``timesteps``, ``sigmas`` and ``step_index``.

        It is to be looked at; its ``step`` would disturb the run.
        """
        twin = self._without_run()
        twin._run, twin.num_inference_steps, twin._step_index = run, steps, step_index
        twin._timesteps = as_tensor(run.timesteps)
        if twin.timesteps is None:  # of classes that have such an attribute of their own
            twin.timesteps = twin._timesteps
        return twin

    def _whole(self) -> Run:
        """The run over all training timesteps, which stands before ``set_timesteps``."""
        return self.plan(timesteps=list(range(len(self) - 1, -1, -1)))

    @property
    def run(self) -> Run:
        """The run that the familiar methods work on."""
        if self._run is None:
            self._run = self._whole()
        return self._run

    @property
    def timesteps(self) -> torch.Tensor | None:
        """What the network is told at each call, as a tensor (int64, or fp32 where the levels are fractional)."""
        if self._timesteps is None:
            self._timesteps = as_tensor(self.run.timesteps)
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: torch.Tensor) -> None:
        self._timesteps = value

    @property
    def sigmas(self) -> torch.Tensor:
        """σ of each level, and of the one where the run ends; fp32, on the CPU."""
        return torch.tensor(self.run.sigmas, dtype=torch.float32)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that a run begins with."""
        return self.run.init_noise_sigma

    @property
    def step_index(self) -> int | None:
        """The call that comes next, once a run has begun."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The call that a run was told to begin with."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this call (image to image) instead of finding it by the first timestep."""
        self._begin_index = begin_index

    def _locate(self, timestep: float | torch.Tensor) -> int:
        """The call that a timestep means: the one after the last if it fits, else wherever the timestep is found."""
        run, value, following = self.run, float(timestep), self._step_index
        if following is not None and following < len(run) and run.timesteps[following] == value:
            return following
        return run.index_of(value)

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """The network's input at this timestep."""
        return sample

    def _step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        return_dict: bool,
        variance_noise: torch.Tensor | None = None,
        **options: Any,
    ) -> StepOutput | tuple[torch.Tensor, ...]:
        """What every class's public ``step`` does."""
        if generator is not None and variance_noise is not None:
            raise ValueError("give generator or variance_noise, not both: variance_noise is the noise itself")
        if self.num_inference_steps is None and not self._steps_at_once:
            raise ValueError(f"{type(self).__name__} has no timesteps yet: call set_timesteps(steps) before step()")
        run = self.run
        if options != run.options:
            run.options = options
            run.configure(**options)
        i = self._locate(timestep)

        def noise(like: torch.Tensor) -> torch.Tensor:
            return draw(like, generator) if variance_noise is None else variance_noise

        output = run.step(model_output, i, sample, noise)
        self._step_index = i + 1
        if return_dict:
            return output
        return output.to_tuple() if self._tuple_has_original else (output.prev_sample,)

    # -- noising, for training and image to image --------------------------------------------------------------------

    def _levels_at(self, timesteps: torch.Tensor | float, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma) of per-image timesteps, broadcast over ``like``, in at least fp32."""
        timesteps = torch.as_tensor(timesteps)
        if timesteps.is_floating_point():
            return per_image([self.noise_schedule.level(t) for t in timesteps.flatten().tolist()], like)
        alpha_bar = self.noise_schedule.alphas_cumprod_on(like.device)[timesteps.flatten().to(like.device)]
        alpha_bar = alpha_bar.to(torch.promote_types(like.dtype, torch.float32))
        return spread(alpha_bar.sqrt(), like), spread((1 - alpha_bar).sqrt(), like)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float
    ) -> torch.Tensor:
        """α_t·x0 + σ_t·noise, each image of the batch at its own timestep.

        Args:
            original_samples: x0, (batch, ...).
            noise: shaped like x0.
            timesteps: (batch,) or one for all. ``set_timesteps`` need not have been called.
        """
        alpha, sigma = self._levels_at(timesteps, original_samples)
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float, **options: Any
    ) -> torch.Tensor:
        """v = α_t·noise - σ_t·x0, what a v-predicting network is trained to give (arXiv:2202.00512, section 4).

        Args:
            sample: x0, (batch, ...), clean.
        """
        alpha, sigma = self._levels_at(timesteps, sample)
        return (alpha * noise - sigma * sample).to(sample.dtype)

    # -- facts -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Training timesteps."""
        return self.config.num_train_timesteps

    @property
    def betas(self) -> torch.Tensor:
        """β_t, (T,), fp32."""
        return self.noise_schedule.betas

    @property
    def alphas(self) -> torch.Tensor:
        """1 - β_t, (T,), fp32."""
        return self.noise_schedule.alphas

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ_t, (T,), fp32."""
        return self.noise_schedule.alphas_cumprod
