"""Conditions that change during a run, such as those of an edited prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from langevin.guiders.base import Guider
from langevin.guiders.step import Conditions, Step


class PromptSchedule(Guider):
    """Gives branches other conditions from certain steps on.

    It acts before a step, and only where an entry begins: what a callback puts in place holds until the next entry.
    It goes before the guiders that ask the network themselves.

    Args:
        branches: for each branch, in order, ``(first step, conditions)`` with the conditions that change, such as
            ``{"encoder_hidden_states": (batch, tokens, dim)}``. All entries of a branch need the same shapes.
            Branches that a run does not have are passed over.
        steps: how many steps the first steps were counted in. Where the run has another number of network calls
            (solvers of higher order, adaptive ones, image to image), an entry begins at the same share of the run.

    Raises:
        ValueError: there are no steps, a branch does not begin at step 0, or its entries are out of order.

    Example:
        >>> pipe("", guiders=[PromptSchedule({"positive": [(0, {...: red}), (8, {...: blue})]}, steps=20)])
    """

    def __init__(self, branches: Mapping[str, Sequence[tuple[int, Conditions]]], steps: int) -> None:
        if steps < 1:
            raise ValueError(f"steps is {steps}; a run has at least 1")
        for name, entries in branches.items():
            firsts = [first for first, _ in entries]
            if not firsts or firsts[0] != 0 or firsts != sorted(set(firsts)):
                raise ValueError(f"the entries of {name!r} begin at {firsts}; they must begin at 0 and then rise")
        self.branches = {name: list(entries) for name, entries in branches.items()}
        self.steps = steps
        self._shown: dict[str, int] = {}

    def begin(self) -> Guider:
        fresh: Any = super().begin()
        fresh._shown = {}
        return fresh

    def before(self, x: Tensor, step: Step) -> Tensor:
        now = (step.index - step.start) * self.steps // max(step.total - step.start, 1)
        for name, entries in self.branches.items():
            place = max((k for k, (first, _) in enumerate(entries) if first <= now), default=0)
            if name in step.branches and self._shown.get(name) != place:
                self._shown[name] = place
                step.branches[name] = {**step.branches[name], **entries[place][1]}
        return x
