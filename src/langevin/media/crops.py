"""What is cropped together stays together: one box cut out of a picture, its mask and every other map of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from langevin.media.checks import batch_of, joined, listed, pictures, three_channels
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


def framed(
    image: Any, box: Box, size: tuple[int, int], height: int, width: int, *, fill: bool = True, name: str = "image"
) -> Tensor:
    """A further map of a picture (a control picture, depth, …) cut out and placed as the picture itself is by
    ``VaeImageProcessor.preprocess(picture, height, width, "fill", crops_coords=box)``.

    Args:
        image: one map, a batch or a list of them, of any kind and size; see :mod:`langevin.media.checks`.
        box: from :meth:`langevin.VaeImageProcessor.get_crop_region`.
        size: (width, height) of the picture that the box is one of. A map of another size is cut in proportion.
        height, width: of the result.
        fill: keep proportions and continue the edges; False stretches.
        name: what messages call the map.

    Returns:
        ``(batch, 3, height, width)`` in [0, 1].

    Raises:
        WrongPicture: for what is no picture, and a box that is not inside ``size``.
    """
    from langevin.media.processor import VaeImageProcessor

    check_box(box, size)
    processor = VaeImageProcessor(vae_scale_factor=1, vae_latent_channels=0, do_normalize=False)
    images = listed(image, name)
    if isinstance(images[0], Image.Image):
        cut = [crop_to_box(one, box, size) for one in pictures(images, name)]
        return processor.preprocess(cut, height, width, "fill" if fill else "default").float()
    cut = [crop_to_box(three_channels(batch_of(one, name, alone=len(images) == 1)), box, size) for one in images]
    batch = joined(cut, name).float()
    return _filled(batch, height, width) if fill else processor.resize(batch, height, width)


def _filled(batch: Tensor, height: int, width: int) -> Tensor:
    """Scaled by "nearest" with its proportions, and centred; its edges are continued."""
    wide, high = inside((batch.shape[-1], batch.shape[-2]), (width, height))
    batch = torch.nn.functional.interpolate(batch, size=(high, wide))
    left, top = width // 2 - wide // 2, height // 2 - high // 2
    return torch.nn.functional.pad(batch, (left, width - wide - left, top, height - high - top), mode="replicate")


def inside(size: tuple[int, int], target: tuple[int, int], *, cover: bool = False) -> tuple[int, int]:
    """``size`` scaled to ``target`` with its proportions kept: just inside it, or just covering it."""
    (w, h), (width, height) = size, target
    wider = width * h < height * w  # the picture is wider than the target
    return (width, max(1, h * width // w)) if wider != cover else (max(1, w * height // h), height)
