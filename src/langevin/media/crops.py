"""What is cropped together stays together: one box cut out of a picture, its mask and every other map of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from langevin.media.load import WrongPicture

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are the first that do not belong to it."""


def check_box(box: Any, size: tuple[int, int] | None = None) -> Box:
    """The box as plain numbers.

    Raises:
        WrongPicture: it is not four whole numbers, is empty, or does not lie inside ``size`` (width, height).
    """
    whole = isinstance(box, Sequence) and len(box) == 4 and all(isinstance(edge, (int, np.integer)) for edge in box)
    left, top, right, bottom = map(int, box) if whole else (0, 0, 0, 0)
    if not (left < right and top < bottom):
        raise WrongPicture(f"the box is {box!r}; (left, top, right, bottom) in pixels is needed, not empty")
    if size is not None and (left < 0 or top < 0 or right > size[0] or bottom > size[1]):
        raise WrongPicture(f"the box is {box!r}; it must lie inside the picture, which is {size[0]} x {size[1]} pixels")
    return left, top, right, bottom


def scaled_box(box: Box, size: tuple[int, int], to: tuple[int, int]) -> Box:
    """The same part of a picture of another size, at least one pixel; both sizes are (width, height)."""
    left, top, right, bottom = check_box(box, size)
    wide, high = to[0] / size[0], to[1] / size[1]
    left, top = min(round(left * wide), to[0] - 1), min(round(top * high), to[1] - 1)
    return left, top, max(left + 1, round(right * wide)), max(top + 1, round(bottom * high))


def crop_to_box(image: Image.Image | Tensor, box: Box, size: tuple[int, int] | None = None) -> Any:
    """A PIL image or a tensor ``(…, height, width)`` cut to the box, which is one of a picture of ``size`` (width,
    height) if that is another.
    """
    if isinstance(image, Image.Image):
        own = image.size
    else:
        own = (image.shape[-1], image.shape[-2])
    left, top, right, bottom = scaled_box(box, size, own) if size else check_box(box, own)
    if isinstance(image, Image.Image):
        return image.crop((left, top, right, bottom))
    return image[..., top:bottom, left:right]


def inside(size: tuple[int, int], target: tuple[int, int], *, cover: bool = False) -> tuple[int, int]:
    """``size`` scaled to ``target`` with its proportions kept: just inside it, or just covering it."""
    (w, h), (width, height) = size, target
    wider = width * h < height * w  # the picture is wider than the target
    return (width, max(1, h * width // w)) if wider != cover else (max(1, w * height // h), height)
