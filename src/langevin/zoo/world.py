"""A made-up world of 64x64 pictures of coloured shapes, with captions in plain English.

A :class:`Scene` is one or two shapes on a plain background. :func:`random_scene` draws one,
:func:`caption` describes it, :func:`render` paints it, and :func:`parse` says what any prompt
of this world asks for, which is how a generated picture is marked (see ``reader.py``).
Everything follows from the ``random.Random`` that is passed in: same seed, same world.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SIDE = 64
"""Width and height of a picture, in pixels."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (214, 39, 40),
    "orange": (246, 138, 30),
    "yellow": (248, 222, 56),
    "green": (44, 160, 60),
    "cyan": (56, 204, 222),
    "blue": (38, 76, 210),
    "purple": (132, 52, 180),
    "pink": (248, 138, 192),
}
BACKGROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128)}

HELD_OUT_PAIRS = frozenset(
    {
        ("yellow", "circle"),
        ("pink", "square"),
        ("cyan", "triangle"),
        ("orange", "star"),
        ("purple", "cross"),
        ("green", "ring"),
    }
)
"""Colour and shape pairs that no training picture shows and no training caption names."""

HELD_OUT_CAPTIONS = 16
"""One caption in this many (by its checksum) is kept out of training."""

SIZES = {"small": (7.0, 8.0), "medium": (9.5, 11.5), "large": (14.0, 17.0)}
"""Half of a shape's bounding box, in pixels: lowest and highest per size."""

LARGE_BESIDE_ANOTHER = (13.0, 14.0)
"""The range of "large" where two shapes share the picture."""

MARGIN = 2.0  # between a shape and the picture's edge, in pixels
GAP = 4.0  # between two shapes
NEAR, FAR = 24.0, 40.0  # centres at or before NEAR are left (top), at or after FAR right (bottom)
PLACES = (18.5, 32.0, 45.5)  # where the centre of a column or row is
COUPLE = (17.0, 47.0)  # where two things stand, along the axis on which they are apart
JITTER = 3.0  # how far from there a centre may lie, in pixels
DOMINANCE = 1.4  # "left of" is drawn when the horizontal distance is this many times the vertical one

POSITIONS = {
    (-1, -1): "in the top left corner",
    (0, -1): "at the top",
    (1, -1): "in the top right corner",
    (-1, 0): "on the left",
    (0, 0): "in the center",
    (1, 0): "on the right",
    (-1, 1): "in the bottom left corner",
    (0, 1): "at the bottom",
    (1, 1): "in the bottom right corner",
}
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
_INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Thing:
    """One shape: ``x``, ``y`` (centre) and ``radius`` (half of the bounding box) are in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def pair(self) -> tuple[str, str]:
        """``(colour, shape)``."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """One or two things on a plain background."""

    things: tuple[Thing, ...]
    background: str

    @property
    def cell(self) -> tuple[int, int]:
        """Column and row of the first thing, each -1, 0 or 1."""
        return _cell(self.things[0].x), _cell(self.things[0].y)

    @property
    def relation(self) -> str | None:
        """Where the first thing is, seen from the second: left, right, above, below; None: neither clearly."""
        if len(self.things) < 2:
            return None
        a, b = self.things
        return relation(b.x - a.x, b.y - a.y, DOMINANCE)


Describe = Callable[[Scene, random.Random], str]
"""What says of a scene what it shows: :func:`caption`, :func:`listing`."""


def _cell(centre: float) -> int:
    return -1 if centre <= NEAR else 1 if centre >= FAR else 0


def relation(dx: float, dy: float, dominance: float = 1.0) -> str | None:
    """Name the side on which something lies, from the vector that leads away from it (y grows downwards)."""
    if abs(dx) >= dominance * abs(dy):
        return "left" if dx > 0 else "right"
    if abs(dy) >= dominance * abs(dx):
        return "above" if dy > 0 else "below"
    return None


# ------------------------------------------------------------------------------------------------ scenes

TRAINING_PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT_PAIRS)


def random_scene(
    rng: random.Random,
    things: int | None = None,
    pairs: Sequence[tuple[str, str]] = TRAINING_PAIRS,
) -> Scene:
    """Draw a scene of one or two ``things`` (if not said, one in 35 %) from ``(colour, shape)`` pairs."""
    count = things if things is not None else rng.choices((1, 2), (0.35, 0.65))[0]
    background = rng.choice(tuple(BACKGROUNDS))
    if count == 1:
        return Scene((_single(rng, *rng.choice(pairs)),), background)
    if count == 2:
        first, second = rng.choice(pairs), rng.choice(pairs)
        while second == first:
            second = rng.choice(pairs)
        return Scene(_couple(rng, first, second), background)
    raise ValueError(f"a scene has one or two things, not {count}")


def _single(rng: random.Random, colour: str, shape: str) -> Thing:
    size = rng.choice(tuple(SIZES))
    radius = rng.uniform(*SIZES[size])
    column, row = (1, 1) if rng.random() < 0.4 else (rng.randrange(3), rng.randrange(3))
    x, y = (_near(rng, PLACES[k], radius) for k in (column, row))
    return Thing(shape, colour, size, x, y, radius)


def _near(rng: random.Random, place: float, radius: float) -> float:
    """A centre near ``place`` that leaves the margin to the picture's edge."""
    return min(max(place + rng.uniform(-JITTER, JITTER), radius + MARGIN), SIDE - radius - MARGIN)


def _couple(rng: random.Random, first: tuple[str, str], second: tuple[str, str]) -> tuple[Thing, Thing]:
    """Two things that do not touch, beside or above one another."""
    sizes = [rng.choices(tuple(SIZES), (0.3, 0.5, 0.2))[0] for _ in range(2)]
    if sizes == ["large", "large"]:
        sizes[rng.randrange(2)] = "medium"
    radii = [rng.uniform(*(LARGE_BESIDE_ANOTHER if size == "large" else SIZES[size])) for size in sizes]
    along = [_near(rng, place, radius) for place, radius in zip(COUPLE, radii, strict=True)]
    apart = sum(radii) + GAP
    lacking = apart - (along[1] - along[0])
    if lacking > 0:  # move both apart; what the picture's edge denies the one, the other makes up for
        along[0] = max(along[0] - lacking / 2, radii[0] + MARGIN)
        along[1] = min(along[0] + apart, SIDE - radii[1] - MARGIN)
        along[0] = along[1] - apart
    across = [_near(rng, SIDE / 2, radius) for radius in radii]
    horizontal, swap = rng.random() < 0.5, rng.random() < 0.5
    places = [(a, c) if horizontal else (c, a) for a, c in zip(along, across, strict=True)]
    made = [
        Thing(pair[1], pair[0], size, x, y, radius)
        for pair, size, radius, (x, y) in zip((first, second), sizes, radii, places, strict=True)
    ]
    return (made[1], made[0]) if swap else (made[0], made[1])


# ------------------------------------------------------------------------------------------------ captions


def article(words: str) -> str:
    """Put "a" or "an" in front."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _name(thing: Thing) -> str:
    words = [thing.colour, thing.shape]
    if thing.size != "medium":
        words.insert(0, thing.size)
    return article(" ".join(words))


def caption(scene: Scene, rng: random.Random) -> str:
    """Describe a scene truthfully in one of many phrasings.

    What is left unsaid is ordinary: a medium size, one thing in the center, two things named from left to right.
    The background alone may be any where it is not said.
    """
    first = _name(scene.things[0])
    if len(scene.things) == 1:
        draw = rng.random()
        if draw < 0.03:
            first = article(scene.things[0].shape)
        elif draw < 0.06:
            first = article(f"{scene.things[0].colour} shape")
        text = first
        if scene.cell != (0, 0) or rng.random() < 0.15:
            text += " " + POSITIONS[scene.cell]
    else:
        second = _name(scene.things[1])
        side = scene.relation
        if side is None or (side in ("left", "right") and rng.random() < 0.35):
            text = f"{second} and {first}" if side == "right" else f"{first} and {second}"
        else:
            if rng.random() < 0.5:
                first, second, side = second, first, _INVERSE[side]
            text = f"{first} {rng.choice(RELATIONS[side])} {second}"
    return _framed(text, scene, rng)


def _framed(text: str, scene: Scene, rng: random.Random) -> str:
    """What a scene shows, now and then with its background and with an opening."""
    if rng.random() < 0.4:
        text += rng.choice((f" on a {scene.background} background", f" on {scene.background}"))
    opening = rng.choices(("", "a picture of ", "a drawing of ", "there is "), (0.7, 0.1, 0.1, 0.1))[0]
    return opening + text


def listing(scene: Scene, rng: random.Random) -> str:
    """Say what a scene shows, in any order, and not where."""
    names = [_name(thing) for thing in scene.things]
    rng.shuffle(names)
    return _framed(" and ".join(names), scene, rng)


def is_held_out(text: str) -> bool:
    """Whether a caption is kept out of training: by its checksum, or because it names a held-out pair."""
    if zlib.crc32(text.encode()) % HELD_OUT_CAPTIONS == 0:
        return True
    return any(f"{colour} {shape}" in text for colour, shape in HELD_OUT_PAIRS)


def training_caption(scene: Scene, rng: random.Random, describe: Describe | None = None) -> str:
    """A caption, or what ``describe`` says of the scene, that is not held out."""
    while is_held_out(text := (describe or caption)(scene, rng)):
        pass
    return text


# ------------------------------------------------------------------------------------------------ prompts


@dataclass(frozen=True)
class Wanted:
    """One thing that a prompt asks for; None leaves it open."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Constraints:
    """What a prompt asks for: the things in the order said, and what is said about them.

    ``relation`` is where the first thing is, seen from the second; ``cell`` is (column, row) of a lone thing.
    """

    things: tuple[Wanted, ...]
    background: str | None = None
    relation: str | None = None
    cell: tuple[int, int] | None = None


_THING = re.compile(
    rf"\b(?:(small|medium|large) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|shape)\b", re.IGNORECASE
)
_BACKGROUND = re.compile(rf"\bon (?:a )?({'|'.join(BACKGROUNDS)})\b", re.IGNORECASE)


def parse(prompt: str) -> Constraints:
    """Read a prompt of this world.

    Raises:
        ValueError: the prompt names no shape, or more than two.
    """
    text = " ".join(prompt.lower().replace("grey", "gray").replace("centre", "center").split())
    found = list(_THING.finditer(text))
    if not 1 <= len(found) <= 2:
        raise ValueError(f"a prompt of this world names one or two shapes, this one names {len(found)}: {prompt!r}")
    things = tuple(Wanted(None if m[3] == "shape" else m[3], m[2], m[1]) for m in found)
    ground = _BACKGROUND.search(text)
    side = cell = None
    if len(found) == 2:
        between = text[found[0].end() : found[1].start()]
        side = next((name for name, says in RELATIONS.items() if any(s in between for s in says)), None)
    else:
        cell = next((c for c, says in POSITIONS.items() if says in text), None)
    return Constraints(things, ground[1] if ground else None, side, cell)


def named_things(text: str, scene: Scene) -> list[tuple[int, int, int]]:
    """Where a truthful caption names a scene's things: first and last place of the words, and the thing's number."""
    places = []
    for found in _THING.finditer(text):
        _, colour, shape = (word and word.lower() for word in found.groups())
        said = [
            k
            for k, thing in enumerate(scene.things)
            if colour in (None, thing.colour) and shape in ("shape", thing.shape)
        ]
        places += [(found.start(), found.end(), k) for k in said[:1]]
    return places


# ------------------------------------------------------------------------------------------------ pictures


def _circle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - r


def _square(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.94 * r


def _triangle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Isosceles, point up, filling the box: two sloping edges through (0, -r) and (±r, r)."""
    slope = (2 * np.abs(x) - (y + r)) / np.sqrt(np.float32(5))
    return np.maximum(slope, y - 0.9 * r)


def _star(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Five points, one up. One edge decides, after folding the plane into a tenth of the turn."""
    outer, inner, sector = 1.05 * r, 0.46 * r, np.float32(np.pi / 5)
    angle = np.abs((np.arctan2(x, 0.1 * r - y) + sector) % (2 * sector) - sector)
    length = np.sqrt(x * x + (y - 0.1 * r) ** 2)
    px, py = length * np.cos(angle), length * np.sin(angle)
    ex, ey = inner * np.cos(sector) - outer, inner * np.sin(sector)  # along the edge, from point to notch
    return ((px - outer) * ey - py * ex) / np.sqrt(ex * ex + ey * ey)


def _cross(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    ax, ay, arm = np.abs(x), np.abs(y), 0.33 * r
    return np.minimum(np.maximum(ax - r, ay - arm), np.maximum(ax - arm, ay - r))


def _ring(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.78 * r) - 0.22 * r


_DISTANCE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
_CENTRES = np.arange(SIDE, dtype=np.float32) + 0.5


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How much of each pixel a shape covers: three arrays of n numbers, in pixels, to (n, 64, 64) in [0, 1].

    The edge is one pixel wide: half a pixel minus the signed distance to the outline, clipped.
    """
    x, y, radius = (np.asarray(v, dtype=np.float32).reshape(-1, 1, 1) for v in (x, y, radius))
    distance = _DISTANCE[shape](_CENTRES[None, None, :] - x, _CENTRES[None, :, None] - y, radius)
    return np.clip(0.5 - distance, 0, 1)


def render(scenes: Sequence[Scene]) -> np.ndarray:
    """Paint scenes: (n, 64, 64, 3) uint8."""
    picture = np.empty((len(scenes), SIDE, SIDE, 3), dtype=np.float32)
    picture[:] = np.array([BACKGROUNDS[s.background] for s in scenes], np.float32).reshape(-1, 1, 1, 3)
    for shape in SHAPES:
        rows = [(n, t) for n, scene in enumerate(scenes) for t in scene.things if t.shape == shape]
        if not rows:
            continue
        things = [t for _, t in rows]
        alpha = coverage(shape, *(np.array([getattr(t, k) for t in things]) for k in ("x", "y", "radius")))
        for (n, thing), a in zip(rows, alpha, strict=True):
            low_x, high_x = int(max(thing.x - thing.radius - 2, 0)), int(thing.x + thing.radius + 3)
            low_y, high_y = int(max(thing.y - thing.radius - 2, 0)), int(thing.y + thing.radius + 3)
            patch = picture[n, low_y:high_y, low_x:high_x]
            patch += a[low_y:high_y, low_x:high_x, None] * (np.array(COLOURS[thing.colour], np.float32) - patch)
    return np.rint(picture).astype(np.uint8)
