"""Pictures that callers give to DeepFloyd IF, as its networks know them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from langevin.media.checks import batch_of, joined, listed, masks, three_channels, to_rgb_mode
from langevin.media.convert import normalize, numpy_to_pt, pil_to_numpy
from langevin.media.load import opened

logger = logging.getLogger(__name__)

Size = tuple[int, int]  # width, height


def signed(image: Any, name: str, fit: Callable[[Size], Size] | None = None) -> Tensor:
    """Pictures ``(n, 3, height, width)`` in [-1, 1].

    Args:
        image: PIL, brought to the size that ``fit`` gives for theirs; arrays and tensors, whose floats are taken to be
            in [-1, 1], as ``output_type="pt"`` gives them, and integers to go up to 255; or a list of them.
        name: what messages call it.

    Raises:
        WrongPicture: for anything else; a ValueError.
    """
    given = listed(image, name)
    if isinstance(given[0], Image.Image):
        each = _fitted([to_rgb_mode(opened(one, name)) for one in given], fit)
        return normalize(numpy_to_pt(pil_to_numpy(each)))
    pixels = [_batch(one, name, len(given) == 1) for one in given]
    if min(float(batch.min()) for batch in pixels) >= 0:
        logger.warning("%s has no value below 0 and is taken to be in [-1, 1]; from [0, 1], give 2 * x - 1.", name)
    return joined(pixels, name)


def covered(mask: Any, fit: Callable[[Size], Size]) -> Tensor:
    """Masks ``(n, 1, height, width)``: 1 where they are at least half white, else 0."""
    given = masks(mask)
    if isinstance(given, list):
        given = numpy_to_pt(pil_to_numpy(_fitted(given, fit)))
    return (given >= 0.5).float()


def fitting(side: int, height: int | None = None, width: int | None = None) -> Callable[[Size], Size]:
    """``fit(size)``: the shorter side becomes ``side``, the other a multiple of 8; or ``height`` and ``width``, where
    those are given.
    """

    def fit(size: Size) -> Size:
        wide, high = size
        longer = round(side / 8 * max(wide / high, high / wide)) * 8
        own = (longer, side) if wide >= high else (side, longer)
        return width or own[0], height or own[1]

    return fit


def _fitted(images: list[Image.Image], fit: Callable[[Size], Size] | None) -> list[Image.Image]:
    return images if fit is None else [image.resize(fit(image.size), Image.Resampling.BICUBIC) for image in images]


def _batch(image: Any, name: str, alone: bool) -> Tensor:
    batch = three_channels(batch_of(image, name, latent_channels=3, signed=True, alone=alone)).float()
    floats = image.dtype.kind == "f" if isinstance(image, np.ndarray) else image.is_floating_point()
    return batch if floats else normalize(batch)
