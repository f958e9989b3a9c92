"""What comes in as a picture or a mask is checked here, once, and brought into one form.

Whatever is wrong with it ends in one :class:`WrongPicture`, a ValueError of one line that says what was given, what is
allowed and what to do.

- A PIL image may have any mode; see :func:`langevin.media.load.opened`.
- An array is ``(height, width)``, ``(height, width, channels)`` or ``(batch, height, width, channels)``.
- A tensor is ``(height, width)``, ``(channels, height, width)`` or ``(batch, channels, height, width)``.
- Both hold booleans, uint8 (0 to 255), uint16 (0 to 65535) or floats in [0, 1]. Floats in [-1, 1] are let through where
  the caller says so; floats up to 255 never are, since nobody can tell them from a mistake.
- Channels are 1 (grey), 3 (RGB) or 4 (RGB and alpha).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from langevin.media.load import WrongPicture, opened, reason, whole_numbers

# How far floats may lie beyond their range: what rounding to bfloat16 does to a sum that should be 1.
_SLACK = 0.01
_KINDS = (Image.Image, np.ndarray, Tensor)
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's conversion to "L"


def listed(image: Any, name: str = "image", *, mixed: bool = False) -> list[Any]:
    """One picture or a list of them -> a list of PIL images, arrays or tensors, all of one kind unless ``mixed``.

    Raises:
        WrongPicture: for anything else, and for an empty list.
    """
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    kinds = {next((kind for kind in _KINDS if isinstance(one, kind)), None) for one in images}
    if not images or None in kinds or (len(kinds) > 1 and not mixed):
        got = ", ".join(sorted({type(one).__name__ for one in images})) or "an empty list: no images"
        alike = "" if mixed else ", all of one kind"
        raise WrongPicture(f"{name}: expected PIL images, numpy arrays or tensors{alike}; got {got}")
    return images


def batch_of(
    image: np.ndarray | Tensor,
    name: str = "image",
    *,
    latent_channels: int = 0,
    signed: bool = False,
    grey: bool = False,
    alone: bool = True,
) -> Tensor:
    """An array or tensor -> a float tensor ``(batch, channels, height, width)``, checked.

    Args:
        name: what messages call it.
        latent_channels: a float tensor with so many channels is latents, whose range is not looked at.
        signed: whether floats in [-1, 1] are let through, as they are.
        grey: it has no colours: integers that are all 0 or 1 count as 0 and 1, whatever their kind, and a stack
            ``(batch, height, width)`` is as good as one with channels (a tensor's only if it is ``alone``).
        alone: it is not one of a list.

    Raises:
        WrongPicture: for other shapes, kinds of numbers and ranges, and for NaN and infinity.
    """
    if isinstance(image, Tensor) and image.is_meta:
        raise WrongPicture(f"{name} is {_form(image)} on the meta device, which cannot be read; give one with values")
    try:
        batch = _laid_out(image, name, grey, alone)
        if is_latents(image, batch, latent_channels):
            _check_finite(batch, name)
            return batch
        return _unit(batch, name, signed, grey)
    except WrongPicture:
        raise
    except Exception as error:  # sparse, quantized, meta and other tensors that lack the simplest operations
        raise WrongPicture(f"{name} is {_form(image)}, which cannot be read ({reason(error)})") from error


def pictures(image: Any, name: str = "image", *, latent_channels: int = 0) -> list[Image.Image] | Tensor:
    """Pictures as a caller gave them -> RGB, for :meth:`langevin.VaeImageProcessor.preprocess`.

    Args:
        image: one picture, a batch, or a list of them; see the head of this module.
        name: what messages call it.
        latent_channels: how many channels mark a float tensor as latents; 0 where latents cannot be meant.

    Returns:
        A list of PIL images in mode "RGB", of any sizes, upright; or a float tensor ``(batch, 3, height, width)`` in
        [0, 1], or in [-1, 1] if it was given so; or latents ``(batch, latent_channels, height, width)``. Alpha is
        dropped, as ``convert("RGB")`` does; :func:`langevin.media.load.to_rgb` lays pictures on a ground.

    Raises:
        WrongPicture: for everything that is none of these.
    """
    images = listed(image, name)
    if isinstance(images[0], Image.Image):
        return [to_rgb_mode(opened(one, name)) for one in images]
    alone = len(images) == 1
    batches = [batch_of(one, name, latent_channels=latent_channels, signed=True, alone=alone) for one in images]
    if all_latents(images, batches, latent_channels, name):
        return joined(batches, name)
    return joined([three_channels(batch) for batch in batches], name)


def masks(mask: Any, name: str = "mask_image") -> list[Image.Image] | Tensor:
    """Masks as a caller gave them -> grey, for :meth:`langevin.VaeImageProcessor.preprocess`.

    White is made anew. Colours count by their brightness, and on a transparent layer by that times their alpha: what is
    transparent is not white. Integers and 8-bit pictures whose values are all 0 or 1 count as 0 and 1.

    Args:
        mask: one mask, a batch, or a list of them; see the head of this module. Arrays and tensors may also be stacks
            ``(batch, height, width)``, and masks of zeros and ones have any kind of number.
        name: what messages call it.

    Returns:
        A list of PIL images in mode "L", of any sizes; or a float tensor ``(batch, 1, height, width)`` in [0, 1].

    Raises:
        WrongPicture: for everything that is none of these.
    """
    given = listed(mask, name)
    if isinstance(given[0], Image.Image):
        return [_grey_picture(opened(one, name)) for one in given]
    return joined([_grey_batch(batch_of(one, name, grey=True, alone=len(given) == 1)) for one in given], name)


def joined(batches: Sequence[Tensor], name: str = "image") -> Tensor:
    """Batches of one shape -> one batch.

    Raises:
        WrongPicture: they have several shapes, or lie on several devices.
    """
    shapes = sorted({tuple(batch.shape[1:]) for batch in batches})
    if len(shapes) > 1:
        raise WrongPicture(f"{name}: the pictures of a batch must have one shape, these have {shapes}; resize them")
    devices = sorted({str(batch.device) for batch in batches})
    if len(devices) > 1:
        raise WrongPicture(f"{name}: the tensors of a list lie on {', '.join(devices)}; bring them to one device")
    return torch.cat(list(batches))


def three_channels(batch: Tensor) -> Tensor:
    """``(batch, 1, 3 or 4, height, width)`` -> three channels: grey three times, alpha dropped."""
    return batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch[:, :3]


def to_rgb_mode(image: Image.Image) -> Image.Image:
    """An :func:`opened <langevin.media.load.opened>` image in mode "RGB"; alpha is dropped."""
    return image if image.mode == "RGB" else whole_numbers(image).convert("RGB")


def zeros_and_ones(image: Image.Image) -> Image.Image:
    """A mask in mode "L" that has no value above 1 -> its ones are white; every other image as it is."""
    if image.mode != "L" or image.getextrema()[1] > 1:  # type: ignore[operator]
        return image
    return image.point([0, *[255] * 255])


def is_latents(image: Any, batch: Tensor, channels: int) -> bool:
    """Whether what came in as ``image`` and was laid out as ``batch`` is latents: floats with so many channels."""
    return channels > 0 and isinstance(image, Tensor) and image.is_floating_point() and batch.shape[1] == channels


def all_latents(images: Sequence[Any], batches: Sequence[Tensor], channels: int, name: str = "image") -> bool:
    """Whether all of them are latents.

    Raises:
        WrongPicture: some are and some are not.
    """
    kinds = {is_latents(image, batch, channels) for image, batch in zip(images, batches, strict=True)}
    if len(kinds) > 1:
        raise WrongPicture(f"{name}: some are latents ({channels} channels of floats), others are not; give one kind")
    return kinds == {True}


def _laid_out(image: np.ndarray | Tensor, name: str, grey: bool, alone: bool) -> Tensor:
    """(batch, channels, height, width), with the numbers as they were given."""
    axes = "(height, width), (height, width, channels) or (batch, height, width, channels)"
    if isinstance(image, Tensor):
        axes = "(height, width), (channels, height, width) or (batch, channels, height, width)"
    if image.ndim not in (2, 3, 4) or 0 in image.shape:
        raise WrongPicture(f"{name} is {_form(image)}; expected 2 to 4 axes, none of them empty: {axes}")
    if isinstance(image, np.ndarray):
        stack = grey and image.ndim == 3 and image.shape[-1] not in (1, 3, 4)
        image = image[..., None] if stack or image.ndim == 2 else image
        batch = _from_numpy(image if image.ndim == 4 else image[None], name).movedim(-1, 1)
    else:
        stack = grey and image.ndim == 3 and alone
        batch = image[:, None] if stack else image[(None,) * (4 - image.ndim)]
    return batch


def _from_numpy(array: np.ndarray, name: str) -> Tensor:
    """A tensor of the same values; torch knows neither foreign byte orders nor long doubles."""
    array = np.asarray(array)
    if array.dtype.kind not in "buif":
        raise WrongPicture(f"{name} is {_form(array)}; give uint8 (0..255), or floats in [0, 1]")
    wanted = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    array = np.ascontiguousarray(array, dtype=wanted)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _unit(batch: Tensor, name: str, signed: bool, grey: bool) -> Tensor:
    """Floats in [0, 1], or as they are in [-1, 1] if ``signed``."""
    if batch.shape[1] not in ((1, 2, 3, 4) if grey else (1, 3, 4)):
        raise WrongPicture(
            f"{name} is {_form(batch)}, read as (batch, channels, height, width); expected 3 channels, as what is made "
            "takes (batch, 3, height, width), or 1 (grey) or 4 (with alpha): an array's last axis, a tensor's third "
            "from the end"
        )
    if batch.dtype == torch.bool:
        return batch.float()
    if not batch.is_floating_point() and not batch.is_complex():
        return _unit_of_integers(batch, name, grey)
    if batch.is_complex():
        raise WrongPicture(f"{name} is {_form(batch)}; give uint8 (0..255), or floats in [0, 1]")
    _check_finite(batch, name)
    low, high = (float(edge) for edge in batch.float().aminmax())
    if high > 1 + _SLACK or low < -_SLACK - signed:
        advice = "divide what is in 0..255 by 255, or give it as uint8" if low >= 0 else "see denormalize"
        also = " (or [-1, 1])" if signed else ""
        raise WrongPicture(f"{name} goes from {low:g} to {high:g}; floats must be in [0, 1]{also}: {advice}")
    return batch


def _unit_of_integers(batch: Tensor, name: str, grey: bool) -> Tensor:
    if grey and int(batch.to(torch.int64).max()) <= 1 and int(batch.to(torch.int64).min()) >= 0:
        return batch.float()  # of zeros and ones
    scales = {torch.uint8: 255, torch.uint16: 65535}
    if batch.dtype not in scales:
        zeros = ", or a mask of zeros and ones" if grey else ""
        raise WrongPicture(f"{name} is {_form(batch)}; give uint8 (0..255), uint16, or floats in [0, 1]{zeros}")
    return batch.float() / scales[batch.dtype]


def _check_finite(batch: Tensor, name: str) -> None:
    if not bool(torch.isfinite(batch).all()):
        raise WrongPicture(f"{name} holds NaN or infinity; floats must be in [0, 1]: look where it comes from")


def _grey_picture(image: Image.Image) -> Image.Image:
    """Mode "L": brightness, times alpha on a transparent layer; zeros and ones count as black and white."""
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "black")
        image = Image.alpha_composite(ground, layer).convert("RGB")
    return zeros_and_ones(whole_numbers(image).convert("L"))


def _grey_batch(batch: Tensor) -> Tensor:
    """(batch, 1, height, width) of (batch, 1, 3 or 4, height, width), or of pairs of masks."""
    if batch.shape[1] <= 2:
        return batch.reshape(-1, 1, *batch.shape[2:])
    weights = torch.tensor(_GREY, dtype=batch.dtype, device=batch.device)
    brightness = (batch[:, :3] * weights[:, None, None]).sum(1, keepdim=True)
    return brightness * batch[:, 3:] if batch.shape[1] == 4 else brightness


def _form(image: Any) -> str:
    """What an array or tensor is: its numbers and its shape."""
    return f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
