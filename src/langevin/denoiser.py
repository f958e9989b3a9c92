"""The network as the loop sees it: all branches that look at the same x go through in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from langevin.guiders.step import Conditions, Input, Step
from langevin.latest import Latest


class NetworkDenoiser:
    """``denoiser(x, step, branches, attention=None) -> {branch: prediction}`` around a network.

    Made for one stage of a call. Wrappers (windows, caches) are functions around such a function.

    Args:
        network: any callable: ``network(x, t, **conditions, return_dict=False)``, whose first output is the prediction.
            Preconditioning is a function around a network.
        inputs: see :attr:`langevin.guiders.base.Setup.inputs`.
        fixed: keyword arguments that are the same for all branches.
    """

    def __init__(self, network: Callable[..., Any], inputs: Sequence[Input] = (), **fixed: Any) -> None:
        self.network = network
        self.inputs = inputs
        self.fixed = fixed
        self._batches: Latest[list[Batch]] = Latest()

    def __call__(
        self, x: Tensor, step: Step, branches: Mapping[str, Conditions], attention: Callable | None = None
    ) -> dict[str, Tensor]:
        """Predict for each branch.

        Args:
            x: ``(batch, channels, …)``, scaled for the network.
            step: says what timestep the network is told.
            branches: conditions by branch name; each tensor has ``batch`` rows.
            attention: an attention function handed to every attention layer of the network; see
                :meth:`langevin.guiders.base.Guider.attention`.
        """
        predictions: dict[str, Tensor] = {}
        # most steps ask for the same as the one before
        for names, stacked, channels in self._batches([*branches, *branches.values()], lambda: batches(branches)):
            rows = x if len(names) == 1 else torch.cat([x] * len(names))
            told = stacked
            if self.inputs:
                for more in self.inputs:
                    told = more(rows, step, names, told)
                told = {name: value for name, value in told.items() if name != "maps"}
            if attention is not None:
                told = {**told, "attention": partial(attention, names=names)}
            if channels:
                rows = torch.cat([rows, *channels], dim=1)
            output = self.network(rows, step.timestep, **told, **self.fixed, return_dict=False)[0]
            predictions.update(zip(names, output.chunk(len(names)), strict=True))
        return predictions


Batch = tuple[tuple[str, ...], dict[str, Any], list[Tensor]]
"""Names of branches, what the network is told of all their rows, and the channels that are joined to theirs."""


def batches(branches: Mapping[str, Conditions]) -> list[Batch]:
    """Which branches go through together."""
    alike: dict[Any, list[str]] = {}
    for name, told in branches.items():
        alike.setdefault(_form(told), []).append(name)
    found = []
    for names in alike.values():
        stacked = stack_conditions([branches[name] for name in names])
        found.append((tuple(names), stacked, [*stacked.pop("channels", {}).values()]))
    return found


def _form(value: Any) -> Any:
    """What must be the same in two branches for them to share a batch: names and shapes."""
    if isinstance(value, Mapping):
        return frozenset((name, _form(inner)) for name, inner in value.items())
    return tuple(value.shape) if isinstance(value, Tensor) else id(value)


def stack_conditions(branches: Sequence[Conditions]) -> dict[str, Any]:
    """Concatenate the tensors of branches with the same names and shapes, name by name, nested dicts included."""
    first = branches[0]
    if len(branches) == 1:
        return dict(first)
    stacked: dict[str, Any] = {}
    for name, value in first.items():
        values = [b[name] for b in branches]
        if isinstance(value, Mapping):
            stacked[name] = stack_conditions(values)
        else:
            stacked[name] = _cat(values) if isinstance(value, Tensor) else value
    return stacked


def _cat(tensors: list[Tensor]) -> Tensor:
    """``torch.cat``; but what is one and the same row in memory, such as a map for all branches, is not copied."""
    first = tensors[0]
    place = first.data_ptr(), first.stride()[1:]
    if all((t.data_ptr(), t.stride()[1:]) == place and (len(t) == 1 or t.stride(0) == 0) for t in tensors):
        return first[:1].expand(sum(map(len, tensors)), *first.shape[1:])
    return torch.cat(tensors)
