"""How the learning rate goes with the optimiser's steps: factors on it, by the reference's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

Factor = Callable[[int], float]

Name = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
]
NAMES: tuple[str, ...] = get_args(Name)


def factor(
    name: str,
    *,
    warmup: int = 0,
    total: int = 0,
    cycles: float | None = None,
    power: float = 1.0,
    rules: str | None = None,
    rate: float = 1.0,
) -> Factor:
    """A function from how many steps were made to a factor on the learning rate.

    Args:
        name: one of :data:`NAMES`.
        warmup: steps of a linear rise from 0; ``constant`` and ``piecewise_constant`` have none.
        total: steps of the run; all but the constants end at 0 there (``polynomial`` at 1e-7).
        cycles: of ``cosine``, half a wave by default; or restarts, 1 by default.
        power: of ``polynomial``.
        rules: of ``piecewise_constant``, ``"1:10,0.1:20,0.01"``: 1 for 10 steps, 0.1 up to step 20, then 0.01.
        rate: the learning rate itself, which ``polynomial`` needs to know.

    Raises:
        ValueError: an unknown name, or rules of another form.
    """
    if name == "constant":
        return lambda step: 1.0
    if name == "piecewise_constant":
        return _pieces(rules)
    after = _AFTER.get(name)
    if after is None:
        raise ValueError(f"lr_scheduler is {name!r}; it must be one of {', '.join(NAMES)}")

    def of(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        return after((step - warmup) / max(1, total - warmup), cycles, power, rate)

    return of


def _linear(progress: float, cycles: float | None, power: float, rate: float) -> float:
    return max(0.0, 1 - progress)


def _cosine(progress: float, cycles: float | None, power: float, rate: float) -> float:
    return max(0.0, 0.5 * (1 + math.cos(2 * math.pi * (0.5 if cycles is None else cycles) * progress)))


def _restarts(progress: float, cycles: float | None, power: float, rate: float) -> float:
    if progress >= 1:
        return 0.0
    return max(0.0, 0.5 * (1 + math.cos(math.pi * ((1 if cycles is None else cycles) * progress % 1))))


def _polynomial(progress: float, cycles: float | None, power: float, rate: float, end: float = 1e-7) -> float:
    if progress > 1:
        return end / rate
    return ((rate - end) * (1 - progress) ** power + end) / rate


_AFTER: dict[str, Callable[[float, float | None, float, float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
    "constant_with_warmup": lambda progress, cycles, power, rate: 1.0,
}


def _pieces(rules: str | None) -> Factor:
    try:
        *pieces, last = (rules or "").split(",")
        until = [(int(step), float(value)) for value, step in (piece.split(":") for piece in pieces)]
        final = float(last)
    except ValueError:
        raise ValueError(f"the rules of piecewise_constant are {rules!r}; they must be like 1:10,0.1:20,0.01") from None
    return lambda step: next((value for end, value in until if step < end), final)
