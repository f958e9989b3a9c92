"""Further maps of a picture (control pictures, depth) cut and placed as the picture itself is."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from langevin.media.checks import batch_of, joined, listed, pictures, three_channels
from langevin.media.crops import Box, check_box, crop_to_box, inside
from langevin.media.processor import VaeImageProcessor


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
