"""Solvers that count in training timesteps: where their runs end."""

from __future__ import annotations

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
