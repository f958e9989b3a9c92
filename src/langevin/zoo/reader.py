"""Says which shapes in which colours stand where on a picture of the made-up world.

Plain image analysis, no network: the background is what the border shows; what differs from it falls into
connected blobs; a blob's colour is that of its inside, and its shape is the one that, drawn at the same
place and size, overlaps it best.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from PIL import Image

from langevin.zoo.world import _DISTANCE, BACKGROUNDS, COLOURS, SHAPES, SIDE, Constraints, Thing, Wanted, relation

FOREGROUND = 46.0
"""A pixel belongs to a shape when it is this far from the background (Euclidean, RGB in 0..255)."""
COLOUR_REACH = 80.0
"""A colour further than this from every named one has no name."""
BACKGROUND_REACH = 50.0
SPECK = 8
"""Blobs of fewer pixels are dirt, not things."""
OVERLAP = 0.76
"""Least overlap (shared area over joint area) with a drawn shape for a blob to be called that shape."""
SIZE_BOUNDS = (8.75, 12.25)
"""Half widths, in pixels, between small and medium and between medium and large."""
CELL_BOUNDS = {-1: (0.0, 27.0), 0: (25.0, 39.0), 1: (37.0, 64.0)}

STAYS = 3.0
"""How far, in pixels, a thing may be from its place along either axis and still count as being there."""

_NEIGHBOURS = np.array(list(product((-1, 0, 1), repeat=3)), np.float32)


@dataclass(frozen=True)
class Found:
    """A thing on a picture. ``shape`` or ``colour`` is None when it is none of the world's."""

    shape: str | None
    colour: str | None
    size: str
    x: float
    y: float
    radius: float
    overlap: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows. ``background`` is None when it is none of the world's."""

    things: tuple[Found, ...]
    background: str | None


def read(image: Image.Image | np.ndarray) -> Reading:
    """Read a picture: PIL, or (height, width, 3) uint8. Other sizes than 64x64 are scaled to that first."""
    pixels, ground = _pixels(image)
    blobs = _blobs(_apart(pixels, ground))
    things = tuple(_identify(pixels, ground, blob) for blob in blobs)
    return Reading(things, _nearest(ground, BACKGROUNDS, BACKGROUND_REACH))


def foreground(image: Image.Image | np.ndarray) -> np.ndarray:
    """Which pixels of a picture (as for :func:`read`) are no background: (64, 64) bool."""
    return _apart(*_pixels(image))


def _pixels(image: Image.Image | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture, (64, 64, 3) float32 in 0..255, and its background's colour."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture = picture.convert("RGB")
    if picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(picture, dtype=np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return pixels, np.median(border, axis=0)


def _apart(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    return np.linalg.norm(pixels - ground, axis=-1) > FOREGROUND


def matches(reading: Reading, wanted: Constraints) -> bool:
    """Whether a picture shows exactly what was asked for: no thing missing, none wrong, none too many."""
    if reading.background is None or len(reading.things) != len(wanted.things):
        return False
    if wanted.background not in (None, reading.background):
        return False
    return any(_fits(order, wanted) for order in permutations(reading.things))


def stands(found: Found, thing: Thing) -> bool:
    """Whether what was found is a thing of a scene: same shape, colour and size, at the same place (``STAYS``)."""
    near = max(abs(found.x - thing.x), abs(found.y - thing.y)) <= STAYS
    return near and (found.shape, found.colour, found.size) == (thing.shape, thing.colour, thing.size)


def _fits(found: tuple[Found, ...], wanted: Constraints) -> bool:
    if not all(_is(f, w) for f, w in zip(found, wanted.things, strict=True)):
        return False
    if wanted.relation:
        a, b = found
        return relation(b.x - a.x, b.y - a.y) == wanted.relation
    if wanted.cell:
        spans = [CELL_BOUNDS[place] for place in wanted.cell]
        return all(low <= at <= high for at, (low, high) in zip((found[0].x, found[0].y), spans, strict=True))
    return True


def _is(found: Found, wanted: Wanted) -> bool:
    if found.shape is None or found.colour is None:
        return False
    asked = ((wanted.shape, found.shape), (wanted.colour, found.colour), (wanted.size, found.size))
    return all(want in (None, have) for want, have in asked)


def _nearest(colour: np.ndarray, names: dict[str, tuple[int, int, int]], reach: float) -> str | None:
    apart = {name: float(np.linalg.norm(colour - np.array(rgb))) for name, rgb in names.items()}
    best = min(apart, key=apart.__getitem__)
    return best if apart[best] <= reach else None


def _blobs(mask: np.ndarray) -> list[np.ndarray]:
    """Connected regions (diagonals count) of at least SPECK pixels, each (n, 2): rows and columns."""
    left = set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))
    blobs = []
    while left:
        front = [left.pop()]
        blob = list(front)
        while front:
            row, column = front.pop()
            for step in product((-1, 0, 1), repeat=2):
                spot = (row + step[0], column + step[1])
                if spot in left:
                    left.remove(spot)
                    front.append(spot)
                    blob.append(spot)
        if len(blob) >= SPECK:
            blobs.append(np.array(blob))
    return blobs


def _identify(pixels: np.ndarray, ground: np.ndarray, blob: np.ndarray) -> Found:
    mask = np.zeros((SIDE + 2, SIDE + 2), dtype=bool)
    mask[blob[:, 0] + 1, blob[:, 1] + 1] = True
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    values = pixels[inner]
    if len(values) < SPECK:  # too thin to have an inside: take the half that is furthest from the background
        values = pixels[blob[:, 0], blob[:, 1]]
        apart = np.linalg.norm(values - ground, axis=-1)
        values = values[apart >= np.median(apart)]
    paint = np.median(values, axis=0)
    colour = _nearest(paint, COLOURS, COLOUR_REACH)
    # Opacity: how far each pixel near the blob has gone from the background's colour to the blob's.
    axis = paint - ground
    alpha = np.clip((pixels - ground) @ axis / max(float(axis @ axis), 1.0), 0, 1)
    near = mask.copy()
    near[1:] |= mask[:-1]
    near[:-1] |= mask[1:]
    near[:, 1:] |= near[:, :-1].copy()
    near[:, :-1] |= near[:, 1:].copy()
    alpha *= near[1:-1, 1:-1]
    if _patchwork(values, colour):
        colour = None
    shape, x, y, radius, overlap = _best_shape(alpha)
    size = ("small", "medium", "large")[sum(radius > bound for bound in SIZE_BOUNDS)]
    return Found(shape if overlap >= OVERLAP else None, colour, size, x, y, radius, overlap)


def _patchwork(values: np.ndarray, colour: str | None) -> bool:
    """Whether more than a quarter of a blob's inside is nearer to another colour than to its own."""
    if colour is None:
        return False
    names = list(COLOURS)
    table = np.array([COLOURS[name] for name in names], np.float32)
    closest = np.linalg.norm(values[:, None] - table, axis=-1).argmin(axis=1)
    return float((closest == names.index(colour)).mean()) < 0.75


def _best_shape(alpha: np.ndarray) -> tuple[str, float, float, float, float]:
    """Shape, centre, radius and overlap of the best fit to an opacity mask (64, 64)."""
    left, right = _extent(alpha.max(axis=0))
    top, bottom = _extent(alpha.max(axis=1))
    x, y, radius = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2
    low_x, high_x = max(int(left) - 3, 0), min(int(right) + 4, SIDE)
    low_y, high_y = max(int(top) - 3, 0), min(int(bottom) + 4, SIDE)
    patch = alpha[low_y:high_y, low_x:high_x]
    grid_x = np.arange(low_x, high_x, dtype=np.float32)[None, None, :] + 0.5
    grid_y = np.arange(low_y, high_y, dtype=np.float32)[None, :, None] + 0.5

    def overlaps(shape: str, places: np.ndarray) -> np.ndarray:
        cx, cy, r = (places[:, k].reshape(-1, 1, 1) for k in range(3))
        drawn = np.clip(0.5 - _DISTANCE[shape](grid_x - cx, grid_y - cy, r), 0, 1)
        return np.minimum(drawn, patch).sum((1, 2)) / np.maximum(drawn, patch).sum((1, 2))

    start = np.array([[x, y, radius]], np.float32)
    likely = sorted(SHAPES, key=lambda shape: -overlaps(shape, start)[0])[:3]
    best = ("circle", x, y, radius, 0.0)
    for shape in likely:
        fit = start[0]
        for reach in ((0.6, 0.6, 0.8), (0.3, 0.3, 0.4)):  # coarse, then fine
            places = fit + _NEIGHBOURS * np.array(reach, np.float32)
            shared = overlaps(shape, places)
            fit = places[shared.argmax()]
        if shared.max() > best[4]:
            x, y, radius = (float(v) for v in fit)
            best = (shape, x, y, radius, float(shared.max()))
    return best


def _extent(profile: np.ndarray) -> tuple[float, float]:
    """Where a profile of opacities begins and ends, to a fraction of a pixel."""
    inside = np.nonzero(profile >= 0.5)[0]
    if not len(inside):
        inside = np.array([int(profile.argmax())])
    first, last = int(inside[0]), int(inside[-1])
    before = float(profile[first - 1]) if first > 0 else 0.0
    after = float(profile[last + 1]) if last + 1 < SIDE else 0.0
    return first + 1 - float(profile[first]) - before, last + float(profile[last]) + after
