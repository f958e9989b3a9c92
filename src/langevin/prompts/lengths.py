"""Prompts of different lengths in one batch, so that no picture depends on its neighbours.

A prompt of two windows gives twice the tokens of a short one, and a network that looks at more tokens sees something
else, even where the further ones are an empty prompt's. So each picture is shown its own number of tokens. The
conditions of a batch stay plain tensors, padded to the longest; where pictures differ, an entry beside them says how
many tokens count:

    {"encoder_hidden_states": (batch, longest, dim), "lengths": {"encoder_hidden_states": (batch,)}}

:func:`by_length` lets the network see pictures of one length at a time. A batch of one length has no such entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from langevin.latest import Latest

LENGTHS = "lengths"
"""The name in a branch's conditions; not the network's. Under it, for each argument whose dimension 1 is tokens, a
``(batch,)`` tensor of whole numbers, on the CPU: how many of a row's tokens count."""

Conditions = Mapping[str, Any]


def settle(branches: Sequence[Sequence[Conditions]]) -> list[list[Conditions]]:
    """Give each picture one length in all that it is told: the longest of any.

    Args:
        branches: for each branch, its conditions from beginning to end of a run, each with ``LENGTHS`` (what a row's
            own text needs) or all without.

    Returns:
        The same, with the lengths that count, or without any where everything counts.
    """
    own = [told[LENGTHS] for entries in branches for told in entries if LENGTHS in told]
    if not own:
        return [list(entries) for entries in branches]
    longest = {name: torch.stack([lengths[name] for lengths in own]).amax(0) for name in own[0]}
    padded = any(
        int(lengths.min()) < told[name].shape[1]
        for name, lengths in longest.items()
        for entries in branches
        for told in entries
        if name in told
    )
    settled: dict[str, Any] = {LENGTHS: longest} if padded else {}
    return [[{**without(told, LENGTHS), **settled} for told in entries] for entries in branches]


def without(told: Conditions, name: str) -> dict[str, Any]:
    """Conditions without one of their entries."""
    return {other: value for other, value in told.items() if other != name}


def replaced(told: Conditions, name: str, value: Tensor) -> dict[str, Any]:
    """Conditions with another tensor under a name, as a callback gives one. If it has another number of tokens than
    the one before, lengths say nothing of it any more, and all of it counts.
    """
    if LENGTHS not in told or value.shape[1:2] == told[name].shape[1:2]:
        return {**told, name: value}
    lengths = without(told[LENGTHS], name)
    return {**without(told, LENGTHS), name: value, **({LENGTHS: lengths} if lengths else {})}


def ragged(branches: Mapping[str, Conditions]) -> bool:
    """Whether prompts differ in length."""
    return any(LENGTHS in told for told in branches.values())


def by_length(denoiser: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """A denoiser that asks another one about pictures of one length at a time.

    Put it around everything else (it cuts pictures apart, and windows are cut out of pictures). Where no branch has
    ``LENGTHS`` it does nothing. Where pictures are asked about in several groups, an attention function gets
    ``pictures=(…)``: the numbers of those whose rows it sees.
    """
    return _ByLength(denoiser)


class _ByLength:
    def __init__(self, inner: Callable[..., dict[str, Tensor]]) -> None:
        self.inner = inner
        self._groups: Latest[list[tuple[list[int], dict[str, Conditions]]]] = Latest()

    def __call__(
        self, x: Tensor, step: Any, branches: Mapping[str, Conditions], attention: Callable | None = None
    ) -> dict[str, Tensor]:
        if not ragged(branches):
            return self.inner(x, step, branches, attention)
        # most steps ask for the same as the one before
        groups = self._groups([*branches, *branches.values()], lambda: groups_of(branches, len(x)))
        if len(groups) == 1:
            return self.inner(x, step, groups[0][1], attention)
        predictions: dict[str, Tensor] = {}
        for rows, told in groups:
            watching = None if attention is None else partial(attention, pictures=tuple(rows))
            for name, prediction in self.inner(x[rows], step, told, watching).items():
                whole = predictions.setdefault(name, prediction.new_empty(len(x), *prediction.shape[1:]))
                whole[rows] = prediction
        return predictions


def groups_of(branches: Mapping[str, Conditions], batch: int) -> list[tuple[list[int], dict[str, Conditions]]]:
    """Numbers of the rows that go together, and what they are told."""
    rows = _alike(list(branches.values()))
    return [(each, {name: shown(told, each, batch) for name, told in branches.items()}) for each in rows]


def _alike(branches: Sequence[Conditions]) -> list[list[int]]:
    """Numbers of the rows that have the same lengths in every branch, shorter ones first."""
    lengths = [each.tolist() for told in branches for each in told.get(LENGTHS, {}).values()]
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, key in enumerate(zip(*lengths, strict=True)):
        groups.setdefault(key, []).append(row)
    return [groups[key] for key in sorted(groups)]


def shown(told: Conditions, rows: Sequence[int], batch: int) -> dict[str, Any]:
    """What some rows of one length are told, without padding and ``LENGTHS``.

    Args:
        told: a branch's conditions; a tensor in them, or in dicts in them, is of each row if its first dimension is
            ``batch``, else of all.
        rows: their numbers.
    """
    everyone = len(rows) == batch

    def own(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: own(inner) for name, inner in value.items()}
        if everyone or not isinstance(value, Tensor) or value.shape[:1] != (batch,):
            return value
        return value[list(rows)]

    lengths = {name: int(each[rows[0]]) for name, each in told.get(LENGTHS, {}).items()}
    chosen = {name: own(value) for name, value in without(told, LENGTHS).items()}
    return {name: value[:, : lengths[name]] if name in lengths else value for name, value in chosen.items()}
