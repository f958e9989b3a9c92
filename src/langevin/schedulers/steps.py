"""The familiar ``step``: how solvers with a history count their calls, and the three signatures that most of the public
classes have.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import ClassVar

import torch

from langevin.schedulers.arithmetic import per_image
from langevin.schedulers.noise import Level
from langevin.schedulers.run import StepOutput
from langevin.schedulers.scheduler import SchedulerMixin


class CountedSteps(SchedulerMixin):
    """The familiar API of solvers that look a timestep up once and count from there: calls may share a timestep."""

    _refuses_whole_timesteps: ClassVar[bool] = False

    def _locate(self, timestep: float | torch.Tensor) -> int:
        whole = isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point())
        if whole and self._refuses_whole_timesteps:
            raise ValueError(
                f"timestep {timestep} is a whole number: {type(self).__name__} has fractional timesteps. Pass one of "
                "scheduler.timesteps, not its index (no enumerate)"
            )
        return self._begin(timestep)

    def _begin(self, timestep: float | torch.Tensor | None) -> int:
        if self._step_index is None:
            if self._begin_index is not None:
                self._step_index = self._begin_index
            elif timestep is not None:
                self._step_index = self.run.index_of(float(timestep))
            else:
                raise ValueError("a timestep is needed, to find the place in the run: one of scheduler.timesteps")
        return self._step_index

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """The call that has this timestep; the second, where two have it."""
        return self.run.index_of(float(timestep))

    def _levels_at(self, timesteps: torch.Tensor | float, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        run, places = self.run, torch.as_tensor(timesteps).flatten().tolist()
        if self._begin_index is None:
            indices = [run.index_of(t) for t in places]
        else:  # a run is under way: its place counts
            indices = [self._begin_index if self._step_index is None else self._step_index] * len(places)
        levels = self._levels_of_calls()
        return per_image([levels[i] for i in indices], like)

    def _levels_of_calls(self) -> list[Level]:
        """The levels that ``add_noise`` takes at each call, and after the last."""
        return [*self.run.levels, self.run.targets[-1]]


class PlainStep(SchedulerMixin):
    """Of solvers that add no noise."""

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One call's step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``, given the scaled sample.
            timestep: one of ``scheduler.timesteps``. Solvers with a history look it up at the first step; after that,
                steps are counted.
            sample: x at that timestep, not scaled.
            return_dict: False gives a tuple, ``prev_sample`` first.
        """
        return self._step(model_output, timestep, sample, None, return_dict)


class NoisyStep(SchedulerMixin):
    """Of solvers that add noise."""

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One call's step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``, given the scaled sample.
            timestep: one of ``scheduler.timesteps``. Solvers with a history look it up at the first step; after that,
                steps are counted.
            sample: x at that timestep, not scaled.
            generator: where noise comes from; a list gives each image its own.
            return_dict: False gives a tuple, ``prev_sample`` first.
        """
        return self._step(model_output, timestep, sample, generator, return_dict)


class ChurnedStep(SchedulerMixin):
    """Of solvers that add noise before a step, if they are told to (Karras et al. 2022, arXiv:2206.00364,
    algorithm 2)."""

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = inf, s_noise: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One call's step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``, given the scaled sample.
            timestep: one of ``scheduler.timesteps``. Looked up at the first step; after that, steps are counted.
            sample: x at that timestep, not scaled.
            s_churn, s_tmin, s_tmax, s_noise: how much noise to add before steps whose σ lies in [s_tmin, s_tmax].
            generator: where noise comes from; a list gives each image its own.
            return_dict: False gives a tuple, ``prev_sample`` first.
        """
        options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        return self._step(model_output, timestep, sample, generator, return_dict, None, **options)
