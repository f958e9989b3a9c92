"""Prompts that change during a run: AUTOMATIC1111's prompt editing, and weights that slide.

=====================  =================================================================================
``[red:blue:0.4]``     red for the first 0.4 of the run, then blue
``[red:blue:12]``      red for 12 steps, then blue
``[blue:0.4]``         nothing, then blue
``[red::0.4]``         red, then nothing
``[red|blue|green]``   another of them at each step, over and over; each may be empty
``(sky)1.0~1.5``       a weight that goes evenly from 1 at the first step to 1.5 at the last (compel's grammar)
``(sky:1.0~1.5)``      the same in the web UIs' grammars
=====================  =================================================================================

Forms may stand in forms. A number with a point is a share of the run, one without a number of steps. What is not
exactly one of these forms stays as it is, so that other square brackets mean what the prompt's grammar says; and a
backslash before the bracket of a form takes its meaning away.

This comes before the grammars: for a number of steps a prompt becomes a short list of plain prompts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from langevin.prompts.tree import finite
from langevin.prompts.weighting import grammar as check_grammar

Schedule = list[tuple[int, str]]
"""Which prompt holds from which step on (counted from 0), in order; the first entry is step 0's."""

# Numbers: \d+(\.\d*)? and not \d+\.?\d*, which would try each way of sharing a long run of digits.
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_TOKEN = re.compile(r"\\.?|[\[\]():|]|[^\\\[\]():|]+", re.DOTALL)
_WHEN = re.compile(rf"\s*({_NUMBER})\s*")
_SLIDE = re.compile(rf"\s*({_NUMBER})\s*~\s*({_NUMBER})\s*")
_SLIDE_AFTER = re.compile(rf"({_NUMBER})~({_NUMBER})")


@dataclass
class _Form:
    """One form in the tokens of a prompt: ``parts`` are the ranges of tokens that take turns, ``end`` the last token.

    ``when`` is None for those that alternate.
    """

    end: int
    parts: list[tuple[int, int]]
    when: str | None = None

    def part(self, step: int, steps: int) -> tuple[int, int]:
        if self.when is None:
            return self.parts[step % len(self.parts)]
        return self.parts[step >= first_step(self.when, steps)]


@dataclass
class _Slide:
    """A weight that goes from one number to another; ``rest`` is what follows it in its token."""

    first: float
    last: float
    rest: str

    def text(self, step: int, steps: int) -> str:
        share = step / max(steps - 1, 1)
        weight = self.first + (self.last - self.first) * share
        return f"{weight:.3f}{self.rest}"  # finer cannot be seen


@dataclass
class _Plan:
    """A prompt's tokens, and where its forms and slides begin."""

    tokens: list[str]
    forms: dict[int, _Form] = field(default_factory=dict)
    slides: dict[int, _Slide] = field(default_factory=dict)
    escaped: set[int] = field(default_factory=set)


def first_step(when: str, steps: int) -> int:
    """The first step, counted from 0, that lies behind ``when``: a share of ``steps`` with a point, else a number."""
    at = float(when) * steps if "." in when else float(when)
    return int(max(0, min(steps, at)))  # hundreds of digits are infinity


def prompt_schedule(prompt: str, steps: int, grammar: str = "compel") -> Schedule:
    """The plain prompts of a run of ``steps`` steps, each with the step from which it holds.

    Args:
        steps: at least 1.
        grammar: ``"compel"``, ``"a1111"`` or ``"comfyui"``, for the form of sliding weights, and for backslashes: the
            web UIs' grammars resolve them themselves. ``"none"`` takes all text as it is.

    Raises:
        ValueError: an unknown grammar, or no steps.

    Example:
        >>> prompt_schedule("a [red:blue:0.5] cat", 10)
        [(0, 'a red cat'), (5, 'a blue cat')]
    """
    plan = _read(prompt, grammar)
    if len(plan.tokens) == 1:
        return [(0, prompt)]
    if steps < 1:
        raise ValueError(f"steps is {steps}; a run has at least 1")
    schedule: Schedule = []
    for step in _changes(plan, steps):
        text = "".join(_at(plan, step, steps))
        if not schedule or schedule[-1][1] != text:
            schedule.append((step, text))
    return schedule


def merge_schedules(schedules: Sequence[Schedule]) -> list[tuple[int, list[str]]]:
    """The schedules of several prompts as one: at each step where any of them changes, the texts of all."""
    places = [0] * len(schedules)
    merged = []
    for step in sorted({first for schedule in schedules for first, _ in schedule}):
        for k, schedule in enumerate(schedules):
            if places[k] + 1 < len(schedule) and schedule[places[k] + 1][0] <= step:
                places[k] += 1
        merged.append((step, [schedule[place][1] for place, schedule in zip(places, schedules, strict=True)]))
    return merged


def _changes(plan: _Plan, steps: int) -> Sequence[int]:
    """The steps at which the text may change."""
    if plan.slides or any(form.when is None for form in plan.forms.values()):
        return range(steps)
    whens = {form.when for form in plan.forms.values() if form.when is not None}
    return sorted({0} | {first for when in whens if (first := first_step(when, steps)) < steps})


def _at(plan: _Plan, step: int, steps: int) -> Iterator[str]:
    """The text at a step, in pieces. No recursion: brackets may be nested a thousand deep."""
    ranges = [(0, len(plan.tokens))]
    while ranges:
        at, end = ranges.pop()
        while at < end:
            if at in plan.forms:
                form = plan.forms[at]
                ranges.append((form.end + 1, end))
                at, end = form.part(step, steps)
                continue
            if at in plan.slides:
                yield plan.slides[at].text(step, steps)
            else:
                yield plan.tokens[at][1:] if at in plan.escaped else plan.tokens[at]
            at += 1


def _read(prompt: str, grammar: str) -> _Plan:
    """Find the forms, in one pass over the tokens."""
    check_grammar(grammar)
    if grammar == "none" or ("[" not in prompt and "~" not in prompt):
        return _Plan([prompt])
    plan = _Plan(_TOKEN.findall(prompt))
    opened: list[tuple[int, list[int]]] = []  # open brackets, with the colons and bars right inside each
    for n, token in enumerate(plan.tokens):
        if token in ("[", "(", "\\["):
            opened.append((n, []))
        elif token in (":", "|") and opened:
            opened[-1][1].append(n)
        elif token in ("]", ")", "\\]"):
            _close(plan, opened, n, grammar)
    return plan


def _close(plan: _Plan, opened: list[tuple[int, list[int]]], n: int, grammar: str) -> None:
    """Take in the bracket that token ``n`` closes."""
    tokens = plan.tokens
    closer = tokens[n]
    pair = "(" if closer == ")" else "["
    skipped = False  # brackets inside this one that were never closed
    while opened:
        start, marks = opened.pop()
        if tokens[start][-1] == pair:
            break
        skipped = True
    else:
        return
    if skipped:
        return
    if pair == "(":
        _slide(plan, marks, n, grammar)
        return
    form = _form(tokens, start, marks, n)
    if form is None:
        return
    if closer == "]" and tokens[start] == "[":
        plan.forms[start] = form
    elif grammar == "compel":  # whose grammar knows no escaped square brackets
        plan.escaped |= {k for k in (start, n) if tokens[k][0] == "\\"}


def _form(tokens: list[str], start: int, marks: list[int], end: int) -> _Form | None:
    """The form that square brackets hold, if they hold one."""
    kinds = {tokens[mark] for mark in marks}
    if kinds == {"|"}:
        edges = [start, *marks, end]
        return _Form(end, [(a + 1, b) for a, b in itertools.pairwise(edges)])
    if kinds != {":"} or len(marks) > 2 or marks[-1] + 2 != end:
        return None
    when = _WHEN.fullmatch(tokens[end - 1])
    if when is None or marks[-1] - start == len(marks):  # [:3] and [::3] change nothing, but look like faces
        return None
    before = (start + 1, marks[0]) if len(marks) == 2 else (start, start)
    after = (marks[0] + 1, marks[1]) if len(marks) == 2 else (start + 1, marks[0])
    return _Form(end, [before, after], when[1])


def _slide(plan: _Plan, marks: list[int], n: int, grammar: str) -> None:
    """Take in a sliding weight where round brackets end: before the bracket in the web UIs' grammars, else after."""
    tokens = plan.tokens
    if grammar == "compel":
        at, found = n + 1, _SLIDE_AFTER.match(tokens[n + 1]) if n + 1 < len(tokens) else None
    else:
        inside = bool(marks) and marks[-1] == n - 2 and tokens[n - 2] == ":"
        at, found = n - 1, _SLIDE.fullmatch(tokens[n - 1]) if inside else None
    if found:
        plan.slides[at] = _Slide(finite(found[1]), finite(found[2]), tokens[at][found.end() :])
