"""Scenes that differ from a scene in one attribute of one thing, and captions that are true of the one alone.

With these, what looks at pictures and captions (``langevin/shapes-clip``) is trained and measured: a caption that names
another colour is easily told from the true one only by who knows colours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from langevin.zoo.reader import Reading, matches
from langevin.zoo.world import (
    GAP,
    MARGIN,
    PLACES,
    SIDE,
    SIZES,
    TRAINING_PAIRS,
    Constraints,
    Scene,
    Thing,
    _near,
    article,
    parse,
)

ATTRIBUTES = ("colour", "shape", "size", "place")


def differing(
    scene: Scene, attribute: str, rng: random.Random, pairs: Sequence[tuple[str, str]] = TRAINING_PAIRS
) -> Scene:
    """A scene that differs from ``scene`` in one attribute of one thing, or in where its things are (``place``).

    Raises:
        ValueError: there is no attribute of this name.
    """
    if attribute not in ATTRIBUTES:
        raise ValueError(f"no attribute {attribute!r}; there are: {', '.join(ATTRIBUTES)}")
    if attribute == "place":
        return _elsewhere(scene, rng)
    for _ in range(100):
        number = rng.randrange(len(scene.things))
        thing = scene.things[number]
        colour, shape = rng.choice(pairs)
        if attribute == "colour":
            other = replace(thing, colour=colour)
        elif attribute == "shape":
            other = replace(thing, shape=shape)
        else:
            other = _of_another_size(thing, rng)
        things = list(scene.things)
        things[number] = other
        fits = other.pair in pairs or attribute == "size"
        if fits and other != thing and len({t.pair for t in things}) == len(things) and _have_room(things):
            return Scene(tuple(things), scene.background)
    return _elsewhere(scene, rng)


def _of_another_size(thing: Thing, rng: random.Random) -> Thing:
    size = rng.choice([name for name in SIZES if name != thing.size])
    radius = rng.uniform(*SIZES[size])
    x, y = (min(max(at, radius + MARGIN), SIDE - radius - MARGIN) for at in (thing.x, thing.y))
    return replace(thing, size=size, radius=radius, x=x, y=y)


def _have_room(things: Sequence[Thing]) -> bool:
    a, b = things[0], things[-1]
    return a is b or max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP / 2


def _elsewhere(scene: Scene, rng: random.Random) -> Scene:
    """One thing in another of the nine places, or two things on other sides of one another."""
    if len(scene.things) == 1:
        thing = scene.things[0]
        cells = [(column, row) for column in range(3) for row in range(3)]
        column, row = rng.choice([c for c in cells if (c[0] - 1, c[1] - 1) != scene.cell])
        x, y = (_near(rng, PLACES[k], thing.radius) for k in (column, row))
        return Scene((replace(thing, x=x, y=y),), scene.background)
    turn = rng.choice(("mirror", "tilt", "mirror and tilt"))
    things = []
    for thing in scene.things:
        x, y = thing.x, thing.y
        if "mirror" in turn:
            x, y = SIDE - x, SIDE - y
        if "tilt" in turn:
            x, y = y, x
        things.append(replace(thing, x=x, y=y))
    return Scene(tuple(things), scene.background)


def true_of(text: str | Constraints, scene: Scene) -> bool:
    """Whether a caption is true of a scene; what the caption leaves open may be anything."""
    wanted = parse(text) if isinstance(text, str) else text
    found: tuple = scene.things
    return matches(Reading(found, scene.background), wanted)


def terse(text: str) -> str:
    """A caption without sizes and places: "a small red star at the top on white" is "a red star on white"."""
    ground = re.search(r" on (?:a )?(?:black|white|gray)(?: background)?$", text)
    text = text[: ground.start()] if ground else text
    text = re.sub(rf"\b({'|'.join(SIZES)}) ", "", text)
    text = re.sub(r" (?:in|at|on) the [\w ]+$", "", text)
    words = re.sub(r"\ban? (\w+)", lambda found: article(found[1]), text)
    return words + (ground[0] if ground else "")


# ------------------------------------------------------------------------------------------------ many at once


def truth(texts: Sequence[str], scenes: Sequence[Scene]) -> np.ndarray:
    """:func:`true_of` of every text and scene that may be each other's, (texts, scenes) of True and False.

    Colours, shapes and sizes are compared for all pairs at once, and what passes is looked at one by one.
    """
    wanted = [parse(text) for text in texts]
    likely = np.array([[len(w.things) == len(s.things) for s in scenes] for w in wanted])
    shown = [{t.colour for t in s.things} | {t.shape for t in s.things} | {t.size for t in s.things} for s in scenes]
    for n, asked in enumerate(wanted):
        needs = {word for thing in asked.things for word in (thing.colour, thing.shape, thing.size) if word}
        for m in np.nonzero(likely[n])[0].tolist():
            likely[n, m] = needs <= shown[m] and true_of(asked, scenes[m])
    return likely
