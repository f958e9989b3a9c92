"""PIL images, numpy arrays and tensors into each other.

Three layouts, always as batches:

- PIL: a list of images.
- numpy: (batch, height, width, channels), float in [0, 1], or uint8.
- tensors: (batch, channels, height, width), float; *signed* means [-1, 1], as networks take it, else [0, 1].

A float picture is never looked at to guess its range: what goes in is said by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from langevin.media.checks import batch_of, joined, listed
from langevin.media.load import WrongPicture, opened, to_8_bit, whole_numbers
from langevin.media.picture import Picture


def normalize(images):
    """[0, 1] -> [-1, 1], for arrays and tensors."""
    return 2.0 * images - 1.0


def denormalize(images):
    """[-1, 1] -> [0, 1], for arrays and tensors; values outside are clipped."""
    halved = images * 0.5 + 0.5
    return halved.clamp(0, 1) if isinstance(halved, torch.Tensor) else halved.clip(0, 1)


def pil_to_numpy(images: Image.Image | Sequence[Image.Image]) -> np.ndarray:
    """One or several images of one size -> float32 (batch, height, width, channels) in [0, 1].

    Grey images have no channel axis: (batch, height, width). Mode "F" is divided by 255 like the others.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if not images:
        raise ValueError("no images were given")
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise ValueError(f"the images of a batch must have one size, these have {sizes} (width, height)")
    images = [image if image.mode == "F" else to_8_bit(image) for image in images]
    images = [image.convert("L") if image.mode == "1" else image for image in images]
    return np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])


def numpy_to_pt(images: np.ndarray) -> torch.Tensor:
    """(batch, height, width[, channels]) -> (batch, channels, height, width), dtype and values unchanged."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise ValueError(f"expected (batch, height, width[, channels]), got shape {images.shape}")
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def pt_to_numpy(images: torch.Tensor) -> np.ndarray:
    """(batch, channels, height, width) -> float32 (batch, height, width, channels), values unchanged."""
    if images.ndim != 4:
        raise ValueError(f"expected (batch, channels, height, width), got shape {tuple(images.shape)}")
    return images.detach().float().permute(0, 2, 3, 1).cpu().numpy()


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8, rounded to nearest; uint8 stays as it is."""
    return images if images.dtype == np.uint8 else (images * 255).round().clip(0, 255).astype(np.uint8)


def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
    """([batch, ]height, width, channels) in [0, 1] or uint8 -> PIL images; one channel gives mode "L"."""
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4:
        raise ValueError(f"expected ([batch, ]height, width, channels), got shape {images.shape}")
    return [Image.fromarray(one[:, :, 0] if one.shape[-1] == 1 else one) for one in to_uint8(images)]


def pt_to_pil(images: torch.Tensor, signed: bool = True) -> list[Image.Image]:
    """(batch, channels, height, width) in [-1, 1], or [0, 1] if not ``signed`` -> PIL images."""
    return numpy_to_pil(pt_to_numpy(denormalize(images.float()) if signed else images))


def to_pictures(
    images: torch.Tensor, settings: Sequence[dict[str, Any] | None] | None = None, signed: bool = True
) -> list[Picture]:
    """(batch, channels, height, width) in [-1, 1], or [0, 1] if not ``signed`` -> one Picture per image.

    ``settings`` holds one dict (or None) per image.
    """
    pixels = to_uint8(pt_to_numpy(denormalize(images.float()) if signed else images))
    settings = [None] * len(pixels) if settings is None else settings
    if len(settings) != len(pixels):
        raise ValueError(f"{len(pixels)} images, but settings for {len(settings)}")
    return [Picture.from_array(one, its) for one, its in zip(pixels, settings, strict=True)]


def _unit_batch(image: Any, name: str) -> torch.Tensor:
    """One image or batch of any kind -> float (batch, channels, height, width) in [0, 1]."""
    if not isinstance(image, Image.Image):
        return batch_of(image, name).float()
    image = whole_numbers(opened(image, name))
    return numpy_to_pt(pil_to_numpy(image if image.mode == "L" else image.convert("RGB")))


def to_tensor(images: Any, *, signed: bool = True, channels: int = 3) -> torch.Tensor:
    """Pictures of any kind -> float32 (batch, channels, height, width) in [-1, 1] (``signed``) or [0, 1].

    ``images`` is one of these or a list of them: a PIL image of any mode; a numpy array ([batch, ]height,
    width[, channels]); a tensor ([batch, ]channels, height, width). Arrays and tensors are booleans, uint8, uint16, or
    floats in [0, 1]. Grey becomes ``channels`` equal channels.

    Raises :class:`~langevin.media.load.WrongPicture`, a ValueError, for anything else, such as floats outside [0, 1], a
    number of channels that does not fit, or several sizes in a list.
    """
    fitting = []
    for batch in (_unit_batch(image, "image") for image in listed(images, mixed=True)):
        if batch.shape[1] == 1:
            batch = batch.expand(-1, channels, -1, -1)
        if batch.shape[1] != channels:
            raise WrongPicture(f"image: expected {channels} channels (or 1), got shape {tuple(batch.shape)}")
        fitting.append(batch)
    sizes = sorted({tuple(batch.shape[2:]) for batch in fitting})
    if len(sizes) > 1:
        raise WrongPicture(f"the images of a batch must have one size, these have {sizes} (height, width)")
    batch = joined(fitting)
    return normalize(batch) if signed else batch
