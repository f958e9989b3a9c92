"""Conditions that change during a run, such as those of an edited prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from langevin.guiders.base import Conditions, Guider, Step
from langevin.prompts.editing import merge_schedules, prompt_schedule


class PromptSchedule(Guider):
    """Gives branches other conditions from certain steps on.

    It acts before a step, and only where an entry begins: what a callback puts in place holds until the next entry.
    It goes before the guiders that ask the network themselves.

    Args:
        branches: for each branch, in order, ``(first step, conditions)`` with the conditions that change, such as
            ``{"encoder_hidden_states": (batch, tokens, dim)}``. All entries of a branch need the same shapes.
            Branches that a run does not have are passed over.
        steps: how many steps the first steps were counted in. Where the run has another number of network calls
            (solvers of higher order, adaptive ones), an entry begins at the same share of the run.
        start: the network call at which the run begins; the steps are counted over the rest.

    Raises:
        ValueError: there are no steps, a branch does not begin at step 0, or its entries are out of order.

    Example:
        >>> pipe("", guiders=[PromptSchedule({"positive": [(0, {...: red}), (8, {...: blue})]}, steps=20)])
    """

    def __init__(self, branches: Mapping[str, Sequence[tuple[int, Conditions]]], steps: int, start: int = 0) -> None:
        if steps < 1:
            raise ValueError(f"steps is {steps}; a run has at least 1")
        for name, entries in branches.items():
            firsts = [first for first, _ in entries]
            if not firsts or firsts[0] != 0 or firsts != sorted(set(firsts)):
                raise ValueError(f"the entries of {name!r} begin at {firsts}; they must begin at 0 and then rise")
        self.branches = {name: list(entries) for name, entries in branches.items()}
        self.steps = steps
        self.start = start
        self._shown: dict[str, int] = {}

    def begin(self) -> Guider:
        fresh: Any = super().begin()
        fresh._shown = {}
        return fresh

    def before(self, x: Tensor, step: Step) -> Tensor:
        calls = max(step.total - self.start, 1)
        now = (step.index - self.start) * self.steps // calls
        for name, entries in self.branches.items():
            place = max((k for k, (first, _) in enumerate(entries) if first <= now), default=0)
            if name in step.branches and self._shown.get(name) != place:
                self._shown[name] = place
                step.branches[name] = {**step.branches[name], **entries[place][1]}
        return x


Encode = Callable[[Any, Any], "dict[str, Conditions]"]
"""``encode(prompts, negative_prompts) -> {"positive": conditions, "negative": conditions}``, the negative ones only
where the call has them. Conditions are tensors with the same number of rows for each prompt, each prompt's adjacent."""


def edited_conditions(
    encode: Encode,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    steps: int,
    grammar: str = "compel",
    *,
    negative_is_given: bool = False,
) -> tuple[dict[str, Conditions], PromptSchedule | None]:
    """The conditions of prompts that may hold editing forms, encoded before the run, each distinct text once.

    Args:
        encode: encodes plain prompts, all of a call together, so that their embeddings have one shape.
        prompt, negative_prompt: as the call got them; see :mod:`langevin.prompts.editing` for the forms.
        steps: of the run.
        grammar: of the prompts.
        negative_is_given: as embeddings, which an edited prompt does not go with.

    Returns:
        The branches at the first step, and the guider that changes them, or None if nothing changes.

    Raises:
        ValueError: prompts and negative prompts do not fit together.
    """
    if prompt is None:  # embeddings take its place
        return encode(prompt, negative_prompt), None
    given = {"positive": prompt, "negative": negative_prompt}
    schedules = {
        name: [prompt_schedule(text, steps, grammar) for text in ([texts] if isinstance(texts, str) else texts or [])]
        for name, texts in given.items()
    }
    if all(len(schedule) == 1 for each in schedules.values() for schedule in each):
        plain = {name: [schedule[0][1] for schedule in each] for name, each in schedules.items()}
        first = {n: plain[n][0] if isinstance(given[n], str) else given[n] and plain[n] for n in given}
        return encode(first["positive"], first["negative"]), None
    if negative_is_given:
        raise ValueError("a prompt that changes during the run needs its negative_prompt as text, not as embeddings")

    count = len(schedules["positive"])
    negatives = schedules["negative"] or [[(0, "")]]
    if len(negatives) not in (1, count):
        raise ValueError(f"{len(negatives)} negative prompts for {count} prompts; give one, or one each")
    merged = {
        "positive": merge_schedules(schedules["positive"]),
        "negative": merge_schedules(negatives * count if len(negatives) == 1 else negatives),
    }
    texts = {name: list(dict.fromkeys(t for _, row in each for t in row)) for name, each in merged.items()}
    most = max(map(len, texts.values()))
    filled = {name: each + each[:1] * (most - len(each)) for name, each in texts.items()}
    encoded = encode(filled["positive"], filled["negative"])

    def conditions(branch: str, row: list[str]) -> dict[str, Tensor]:
        places = torch.tensor([texts[branch].index(text) for text in row])
        picked = {}
        for name, rows in encoded[branch].items():
            grouped = rows.unflatten(0, (most, -1))  # (texts, pictures of each, …)
            picked[name] = grouped[places.to(rows.device)].flatten(0, 1)
        return picked

    entries = {branch: [(first, conditions(branch, row)) for first, row in merged[branch]] for branch in encoded}
    return {branch: each[0][1] for branch, each in entries.items()}, PromptSchedule(entries, steps)
