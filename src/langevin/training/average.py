"""The exponential moving average of a network's weights (Karras et al. 2018, 1710.10196, section 4.1)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def quick(step: int, most: float = 0.9999) -> float:
    """The decay after ``step`` updates, (1 + s) / (10 + s): a short run forgets where it began. 0 at the first."""
    return 0.0 if step <= 0 else min(most, (1 + step) / (10 + step))


def powered(step: int, inv_gamma: float = 1.0, power: float = 0.75, most: float = 0.9999) -> float:
    """1 - (1 + s/γ)^-p: an average over a constant share of the run. 0 at the first update."""
    return 0.0 if step <= 0 else min(most, 1 - (1 + step / inv_gamma) ** -power)


class Average:
    """A copy of a network that follows it.

    Args:
        network: the one that is trained.
        decay: from the number of the update to how much of the average stays.
        device: where the copy is kept; the network's own device where None. On the CPU it costs no accelerator memory.
    """

    def __init__(
        self, network: nn.Module, decay: Callable[[int], float] = quick, device: str | torch.device | None = None
    ) -> None:
        self.network: Any = copy.deepcopy(network).eval().requires_grad_(False)
        if device is not None:
            self.network.to(device)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Go on towards the network."""
        share = 1 - self.decay(self.updates)
        self.updates += 1
        mine = [*self.network.parameters()]
        theirs = [
            p.detach().to(m.device, m.dtype, non_blocking=True) for m, p in zip(mine, network.parameters(), strict=True)
        ]
        if share == 1:
            torch._foreach_copy_(mine, theirs)
        else:
            torch._foreach_lerp_(mine, theirs, share)
        for buffer, other in zip(self.network.buffers(), network.buffers(), strict=True):
            buffer.copy_(other)
