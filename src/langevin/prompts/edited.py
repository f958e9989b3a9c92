"""Prompts that may change during a run, as conditions and the guider that changes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from langevin.guiders.prompt_schedule import PromptSchedule
from langevin.guiders.step import Conditions
from langevin.prompts.editing import merge_schedules, prompt_schedule
from langevin.prompts.lengths import settle

Encode = Callable[[Any, Any], "dict[str, Conditions]"]
"""``encode(prompts, negative_prompts) -> {"positive": conditions, "negative": conditions}``, the negative ones only
where the call has them. Conditions are tensors, or dicts of tensors, with the same number of rows for each prompt,
each prompt's adjacent. Under ``LENGTHS`` they may say what each row's own text needs: see
:mod:`langevin.prompts.lengths`."""


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
        encode: encodes plain prompts, all of a call together, so that their embeddings have one shape. Prompts and
            negative prompts with the same number need not belong together.
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
        return _settled(encode(prompt, negative_prompt)), None
    given = {"positive": prompt, "negative": negative_prompt}
    schedules = {
        name: [prompt_schedule(text, steps, grammar) for text in ([texts] if isinstance(texts, str) else texts or [])]
        for name, texts in given.items()
    }
    if all(len(schedule) == 1 for each in schedules.values() for schedule in each):
        plain = {name: [schedule[0][1] for schedule in each] for name, each in schedules.items()}
        first = {n: plain[n][0] if isinstance(given[n], str) else given[n] and plain[n] for n in given}
        return _settled(encode(first["positive"], first["negative"])), None
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

    def picked(value: Any, places: Tensor) -> Any:
        if isinstance(value, Mapping):
            return {name: picked(inner, places) for name, inner in value.items()}
        grouped = value.unflatten(0, (most, -1))  # (texts, pictures of each, …)
        return grouped[places.to(value.device)].flatten(0, 1)

    def conditions(branch: str, row: list[str]) -> Conditions:
        return picked(encoded[branch], torch.tensor([texts[branch].index(text) for text in row]))

    told = [[conditions(branch, row) for _, row in merged[branch]] for branch in encoded]
    entries = {
        branch: [(first, each) for (first, _), each in zip(merged[branch], row, strict=True)]
        for branch, row in zip(encoded, settle(told), strict=True)
    }
    return {branch: each[0][1] for branch, each in entries.items()}, PromptSchedule(entries, steps)


def _settled(branches: dict[str, Conditions]) -> dict[str, Conditions]:
    return {name: told[0] for name, told in zip(branches, settle([[b] for b in branches.values()]), strict=True)}
