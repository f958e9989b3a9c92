"""Solvers that count in training timesteps: where their runs end, and how long the reference makes a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from langevin.schedulers.noise import Level
from langevin.schedulers.scheduler import SchedulerMixin


class TimestepScheduler(SchedulerMixin):
    """Base of DDIM, PNDM and their kin. A config without ``set_alpha_to_one`` means that it is true."""

    @property
    def final_alpha_cumprod(self) -> torch.Tensor:
        """ᾱ of the level below the first timestep, where a run ends."""
        return torch.ones(()) if self._own.get("set_alpha_to_one", True) else self.alphas_cumprod[0]

    @property
    def _final(self) -> Level:
        return Level.of_alpha_bar(self.final_alpha_cumprod.item())

    def _stride_below(self, visited: Sequence[float], steps: int, final: Level) -> list[Level]:
        """The levels T//steps timesteps below the visited ones; ``final`` below the first timestep.

        There a step of the reference implementation goes to. For "leading" spacing it is the next timestep of the run;
        for others not quite, where ``steps`` does not divide T.
        """
        stride = len(self) // steps
        return [self.noise_schedule.level(t - stride) if t >= stride else final for t in visited]
