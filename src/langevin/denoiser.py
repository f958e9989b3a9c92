"""The network as the loop sees it: all branches that look at the same x go through in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from langevin.guiders.base import Conditions


class NetworkDenoiser:
    """``denoiser(x, t, branches, attention=None) -> {branch: prediction}`` around a UNet-like network.

    Made for one call. Wrappers (extra channels, control residuals, windows) are functions around such a function.

    Args:
        network: called as ``network(x, t, **conditions, return_dict=False)``; its first output is the prediction.
        fixed: keyword arguments that are the same for all branches.
    """

    def __init__(self, network: nn.Module, **fixed: Any) -> None:
        self.network = network
        self.fixed = fixed
        self._batched: tuple[list[Conditions], list[int], dict[str, Any]] = ([], [], {})

    def __call__(
        self, x: Tensor, t: float | Tensor, branches: Mapping[str, Conditions], attention: Callable | None = None
    ) -> dict[str, Tensor]:
        """Predict for each branch.

        Args:
            x: ``(batch, channels, height, width)``, scaled for the network.
            t: timestep, one for the batch.
            branches: conditions by branch name; each tensor has ``batch`` rows.
            attention: an attention function handed to every attention layer of the network.
        """
        count = len(branches)
        extra = self.fixed if attention is None else {**self.fixed, "attention": attention}
        conditions = self._batch(list(branches.values()))
        x = x if count == 1 else torch.cat([x] * count)
        output = self.network(x, t, **conditions, **extra, return_dict=False)[0]
        return dict(zip(branches, output.chunk(count) if count > 1 else (output,), strict=True))

    def _batch(self, branches: list[Conditions]) -> dict[str, Any]:
        """Stack the branches' tensors; the last stack is kept, since most steps ask for the same one."""
        _, known, stacked = self._batched
        numbers = list(map(id, branches))
        if numbers != known:
            stacked = stack_conditions(branches)
            self._batched = (branches, numbers, stacked)  # the branches too, so that their ids stay theirs
        return stacked


def stack_conditions(branches: list[Conditions]) -> dict[str, Any]:
    """Concatenate the tensors of several branches, name by name, nested dicts included.

    Raises:
        ValueError: if the branches do not have the same names.
    """
    first = branches[0]
    if any(b.keys() != first.keys() for b in branches):
        names = " / ".join(", ".join(b) for b in branches)
        raise ValueError(f"branches carry different conditions ({names}); each needs the same names")
    if len(branches) == 1:
        return dict(first)
    stacked: dict[str, Any] = {}
    for name, value in first.items():
        values = [b[name] for b in branches]
        if isinstance(value, Mapping):
            stacked[name] = stack_conditions(values)
        else:
            stacked[name] = torch.cat(values) if isinstance(value, Tensor) else value
    return stacked
