"""The familiar ``step`` in the three signatures that most of the public classes have."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch

from .base import SchedulerMixin, StepOutput


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
