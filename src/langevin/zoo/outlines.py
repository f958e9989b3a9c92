"""Outlines of the made-up world's things: white lines on black, which say where a shape is and not its colour."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from langevin.zoo.world import _CENTRES, _DISTANCE, GAP, MARGIN, SHAPES, SIDE, SIZES, Scene, Thing

WIDTH = 1.5
"""Of the lines, in pixels."""


def outlines(scenes: Sequence[Scene]) -> np.ndarray:
    """Draw the outlines of scenes' things: (n, 64, 64, 3) uint8."""
    lines = np.zeros((len(scenes), SIDE, SIDE), np.float32)
    for picture, scene in zip(lines, scenes, strict=True):
        for thing in scene.things:
            away = _DISTANCE[thing.shape](
                _CENTRES[None, :] - thing.x, _CENTRES[:, None] - thing.y, np.array(thing.radius, np.float32)
            )
            np.maximum(picture, np.clip(WIDTH / 2 + 0.5 - np.abs(away), 0, 1), out=picture)
    return np.rint(lines * 255).astype(np.uint8)[..., None].repeat(3, axis=-1)


def anywhere(scene: Scene, rng: random.Random) -> Scene:
    """The same things in places that captions cannot ask for: anywhere in the picture where they do not touch."""
    for _ in range(100):
        things = [replace(thing, x=_along(thing, rng), y=_along(thing, rng)) for thing in scene.things]
        a, b = things[0], things[-1]
        if a is b or max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP:
            return Scene(tuple(things), scene.background)
    return scene


def _along(thing: Thing, rng: random.Random) -> float:
    return rng.uniform(thing.radius + MARGIN, SIDE - thing.radius - MARGIN)


def vague(caption: str) -> str:
    """A caption with neither shapes nor sizes: "a small red star left of a ring" is "a red shape left of a shape"."""
    text = re.sub(rf"\b({'|'.join(SIZES)}) ", "", caption)
    text = re.sub(rf"\b({'|'.join(SHAPES)})\b", "shape", text)
    text = re.sub(r"\ban? (?=[aeiou])", "an ", text)
    return re.sub(r"\ban? (?=[^aeiou])", "a ", text)
