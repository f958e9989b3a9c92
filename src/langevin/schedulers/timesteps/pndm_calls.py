"""Which calls a run of PNDM makes, and between which levels their steps go (arXiv:2202.09778, algorithm 2).

The first three steps may be of Runge-Kutta: four calls each, at the step's beginning, twice half-way, and at its end.
Every later step is one call. Without Runge-Kutta, the first step is taken twice: with ε at its beginning, then with the
mean of that and ε at its end. So n steps are n + 9 or n + 1 calls.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import NamedTuple

from langevin.schedulers.noise import Level, NoiseSchedule

RUNGE_KUTTA_CALLS = 12
Move = tuple[Level, Level]


class Calls(NamedTuple):
    """By call: the timestep that the network is told, the level x is at, and where the step goes."""

    timesteps: list[float]
    levels: list[Level]
    targets: list[Level]
    again: list[Move | None]
    """The step that a call takes again if it is the run's second; None if it is no repetition."""
    halves: list[Move]
    """Where a call goes as part of a Runge-Kutta step: if it is an even call of the run, half a step on, and if it is
    an odd one, usually to its own level."""


def calls_between(
    noise: NoiseSchedule, visited: list[float], levels: list[Level], targets: list[Level], warm_up: bool
) -> Calls:
    """Steps go from each visited timestep to the next, whatever their lengths."""
    if not warm_up:
        at = [*levels[:2], *levels[1:]]
        again: list[Move | None] = [None] * len(at)
        if len(visited) > 1:
            again[1] = levels[0], levels[1]
        return Calls([*visited[:2], *visited[1:]], at, [*targets[:1], *levels[1:2], *targets[1:]], again, [])
    calls: list[float] = []
    at = []
    for k in range(3):
        middle = (visited[k] + visited[k + 1]) / 2
        calls += [visited[k], middle, middle, visited[k + 1]]
        at += [levels[k], *[noise.level(middle)] * 2, levels[k + 1]]
    calls, at, to = calls + visited[3:], at + levels[3:], at + targets[3:]
    return Calls(calls, at, to, [None] * len(calls), [(after, level) for level, after in pairwise(at)])


def calls_by_the_stride(noise: NoiseSchedule, visited: list[float], stride: int, end: Level, warm_up: bool) -> Calls:
    """Every step is ``stride`` timesteps long, whatever the spacing; below timestep 0 is ``end``."""
    half = stride // 2
    if warm_up:
        (t0, t1, t2, t3), rest = visited[:4], visited[3:]
        halfway = [t0, *[t1 + half] * 2, t1, t1, *[t2 + half] * 2, t2, t2, *[t3 + half] * 2, t3]
        calls = [*halfway, *rest]
    else:
        calls = [*visited[:2], *visited[1:]]

    @cache
    def level(t: float) -> Level:
        return noise.level(min(t, len(noise) - 1)) if t >= 0 else end

    return Calls(
        calls,
        [level(t) for t in calls],
        [level(t - stride) for t in calls],
        [(level(t + stride), level(t)) for t in calls],
        [(level(t - half), level(t)) for t in calls],
    )
