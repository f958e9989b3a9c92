"""Masks to train inpainting with: what part of a picture is to be painted anew."""

from __future__ import annotations

import random

import numpy as np

from langevin.zoo.world import SIDE, Scene, Thing

KINDS = {"thing": 0.5, "box": 0.25, "half": 0.13, "all": 0.12}
"""Kinds of masks, and how often each is drawn."""


def random_mask(scene: Scene, rng: random.Random, kind: str | None = None) -> np.ndarray:
    """A mask for a scene, (64, 64) float32: 1 where the picture is to be painted anew, 0 where it stays.

    ``thing``: one thing with a margin, as a box or a blob. ``box``: any rectangle, over anything or nothing.
    ``half``: one side of the picture. ``all``: the whole picture.
    """
    kind = kind or rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    if kind == "thing":
        return over(rng.choice(scene.things), rng.uniform(2, 8), blob=rng.random() < 0.35)
    if kind == "all":
        return np.ones((SIDE, SIDE), np.float32)
    if kind == "box":
        width, height = (rng.randint(10, 40) for _ in range(2))
        if rng.random() < 0.3:  # a band, nearly as wide or as high as the picture
            width, height = rng.choice(((rng.randint(44, SIDE), height), (width, rng.randint(44, SIDE))))
        left, top = rng.randint(0, SIDE - width), rng.randint(0, SIDE - height)
        return _box(left, top, left + width, top + height)
    if kind == "half":
        edge = rng.randint(26, 38)
        boxes = ((0, 0, edge, SIDE), (edge, 0, SIDE, SIDE), (0, 0, SIDE, edge), (0, edge, SIDE, SIDE))
        return _box(*rng.choice(boxes))
    raise ValueError(f"no kind of mask {kind!r}; there are: {', '.join(KINDS)}")


def over(thing: Thing, margin: float, blob: bool = False) -> np.ndarray:
    """A mask (64, 64) over a thing: its bounding box ``margin`` pixels wider on each side, or a disc around that."""
    reach = thing.radius + margin
    if not blob:
        left, top = (max(round(at - reach), 0) for at in (thing.x, thing.y))
        return _box(left, top, round(thing.x + reach), round(thing.y + reach))
    centres = np.arange(SIDE, dtype=np.float32) + 0.5
    apart = np.hypot(centres[None, :] - thing.x, centres[:, None] - thing.y)
    return (apart <= 1.2 * reach).astype(np.float32)


def _box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[top:bottom, left:right] = 1
    return mask
