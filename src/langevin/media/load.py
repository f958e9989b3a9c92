"""Pictures from files: any mode, any orientation, with or without transparency."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps

_ORIENTATION = 0x0112  # the EXIF tag


class WrongPicture(ValueError, TypeError):
    """A picture or mask that cannot be used: one line that says what was given, what is allowed and what to do."""


def reason(error: BaseException) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def printable(name: str) -> str:
    """A name from a file on one line: as it is, or spelt out where that cannot be printed."""
    return name if name.isprintable() else repr(name)


def opened(image: Image.Image, name: str = "image", *, quiet: bool = False) -> Image.Image:
    """A PIL image of any mode, checked and in a plain one: "L", "LA", "RGB", "RGBA" or "F".

    - What was opened from a file is turned upright, as viewers show it. Images made by other images' methods are not:
      whoever rotates one has seen it.
    - Palettes become RGB, or RGBA if they have transparency; CMYK, YCbCr, HSV and LAB become RGB; "1" and whole numbers
      ("I", "I;16") become "L", see :func:`to_8_bit`.
    - "F" stays floats in [0, 255]. What has no value above 1 is taken to be in [0, 1], and a warning says so.
    - Of an animation its first frame is used, and a warning says so, unless another was chosen with ``seek``.

    The image itself is not changed, but read if it was not yet. ``name`` is what messages call it; ``quiet`` leaves out
    the warnings.

    Raises:
        WrongPicture: it is closed, truncated, damaged, of no size or too large, or has values outside these ranges.
    """
    if not image.width or not image.height:
        raise WrongPicture(f"{name} is {image.width} x {image.height} pixels; give a picture of at least 1 x 1")
    with _one_error(name):
        _check_size(image, name)
        if not quiet:
            _tell_of_frames(image, name)
        image.load()
        return _plain_mode(_upright(image) if isinstance(image, ImageFile.ImageFile) else image, name, quiet)


def _check_size(image: Image.Image, name: str) -> None:
    """Refuse files that say they are huge before their pixels are unpacked."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and isinstance(image, ImageFile.ImageFile) and image.width * image.height > limit:
        raise WrongPicture(
            f"{name} is {image.width} x {image.height} pixels, more than {limit}, too many to be opened safely; "
            "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )


def _tell_of_frames(image: Image.Image, name: str) -> None:
    frames = 1
    if isinstance(image, ImageFile.ImageFile) and image.format != "MPO":  # a camera's picture with its preview
        with contextlib.suppress(Exception):  # damaged behind the first, which may be whole
            at = image.tell()
            frames = getattr(image, "n_frames", 1) if at == 0 else 1
            image.seek(at)
    if frames > 1:
        warnings.warn(f"{name} is an animation of {frames} frames; its first is used", stacklevel=4)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data say; they are no reason to fail."""
    turned = None
    with contextlib.suppress(Exception):  # damaged EXIF data raise a dozen different things
        if image.getexif().get(_ORIENTATION, 1) != 1:
            turned = ImageOps.exif_transpose(image)
    return image if turned is None else turned


@contextlib.contextmanager
def _one_error(name: str) -> Iterator[None]:
    """Whatever Pillow raises becomes one line; what the file system says stays as it is."""
    try:
        yield
    except (WrongPicture, Image.UnidentifiedImageError):
        raise
    except Image.DecompressionBombError as error:
        raise WrongPicture(
            f"{name} is too large to be opened safely ({reason(error)}); make it smaller, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise WrongPicture(f"{name} cannot be read ({reason(error)}); give a picture that is whole and open") from error


_FROM_STRANGERS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM", "TGA", "JPEG2000")
"""Formats that Pillow reads by itself: others start programs (EPS) or are rarely tried."""


def open_safely(source: str | os.PathLike | IO[bytes]) -> Image.Image:
    """Open a file that a stranger made or named: a regular file, of the usual formats, and no decompression bomb.

    As :func:`PIL.Image.open` does, it reads the head only; use it in a ``with`` block.

    Raises FileNotFoundError, PIL.UnidentifiedImageError for what is no picture of these formats, and
    :class:`WrongPicture` for what is no regular file, is too large or is damaged.
    """
    named = isinstance(source, (str, os.PathLike))
    name = printable(os.fspath(source)) if named else "the picture"  # type: ignore[arg-type]
    if named and not stat.S_ISREG(os.stat(source).st_mode):  # type: ignore[arg-type]
        raise WrongPicture(f"{name} is no regular file, so it is not opened")
    Image.init()
    with _one_error(name):
        image = Image.open(source, formats=[kind for kind in _FROM_STRANGERS if kind in Image.OPEN])
        try:
            _check_size(image, name)
        except WrongPicture:
            image.close()
            raise
        return image


def _plain_mode(image: Image.Image, name: str, quiet: bool) -> Image.Image:
    mode = image.mode
    if mode in ("L", "LA", "RGB", "RGBA"):
        return image
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise WrongPicture(f"{name} goes from {low} to {high}; whole numbers (mode {mode!r}) must be in 0..65535")
        return to_8_bit(image)
    if mode == "F":
        return _plain_floats(image, name, quiet)
    transparent = mode == "P" and "transparency" in image.info
    plain = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
    return image.convert("RGBA" if transparent else plain.get(mode, "RGB"))


def _plain_floats(image: Image.Image, name: str, quiet: bool) -> Image.Image:
    """Mode "F" in [0, 255]."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):
        raise WrongPicture(f"{name} goes from {low:g} to {high:g}; floats (mode 'F') must be in 0..255 or in [0, 1]")
    if not 0 < high <= 1:
        return image
    if not quiet:
        warnings.warn(
            f"{name} goes from {low:g} to {high:g} and was taken to be in [0, 1]; floats of mode 'F' are in 0..255",
            stacklevel=5,
        )
    return Image.fromarray(values * np.float32(255))


def to_8_bit(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey (modes "I;16…", "I", "F") -> "L"; every other mode as it is.

    PIL's own ``convert`` clips these to white. 16 bits are scaled by 255/65535; "I" counts as 16 bits if it
    has values above 255; "F" as [0, 1] if it has none above 1, else as [0, 255].
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image, dtype=np.float64)
    highest = values.max(initial=0)
    if image.mode.startswith("I;16") or (image.mode == "I" and highest > 255):
        values = values * (255 / 65535)
    elif image.mode == "F" and highest <= 1:
        values = values * 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def whole_numbers(image: Image.Image) -> Image.Image:
    """An :func:`opened` image without floats: "F" in [0, 255] -> "L"."""
    if image.mode != "F":
        return image
    return Image.fromarray(np.asarray(image).round().clip(0, 255).astype(np.uint8))


def to_rgb(image: Image.Image, background: str | tuple[int, int, int] | None = "white") -> Image.Image:
    """Any mode -> "RGB". Transparent parts show ``background``; None drops the alpha channel instead.

    Dropping it (what ``image.convert("RGB")`` and the reference's loader do) shows the colours, often black,
    that lie hidden under the transparent parts.
    """
    image = to_8_bit(image)
    transparent = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    if background is None or not transparent:
        return image.convert("RGB")
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(ground, image).convert("RGB")


def load_image(
    source: str | os.PathLike | IO[bytes] | Image.Image,
    *,
    allow_url: bool = False,
    background: str | tuple[int, int, int] | None = "white",
    timeout: float = 30.0,
) -> Image.Image:
    """Load a picture: upright (EXIF rotation applied), in mode "RGB", in memory.

    ``source`` is a path, an open file, a PIL image, or with ``allow_url=True`` an http(s) address.
    ``background`` is what transparent parts show, see :func:`to_rgb`; ``timeout`` is in seconds.

    Raises FileNotFoundError for a missing file, ValueError for a URL that was not allowed,
    PIL.UnidentifiedImageError for what is no picture, ConnectionError where the address does not answer, and
    :class:`WrongPicture`, a ValueError, for a picture that is damaged or too large (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    if isinstance(source, str) and "://" in source:
        if not allow_url:
            raise ValueError(f"{source!r} is a URL; load_image(url, allow_url=True) fetches it")
        source = io.BytesIO(_fetch(source, timeout))
    if isinstance(source, Image.Image):
        return to_rgb(whole_numbers(opened(_upright(source), "the picture")), background)
    name = printable(os.fsdecode(source)) if isinstance(source, (str, bytes, os.PathLike)) else "the picture"
    with _one_error(name), Image.open(source) as image:
        loaded: Image.Image = to_rgb(whole_numbers(opened(image, name)), background).copy()
    if isinstance(source, (str, os.PathLike)):
        loaded.filename = os.path.abspath(source)  # type: ignore[attr-defined]  # so that settings can say it
    return loaded


def _fetch(url: str, timeout: float) -> bytes:
    from urllib.request import Request, urlopen

    if not url.lower().startswith(("http://", "https://")):
        raise ValueError(f"only http and https addresses are fetched, not {url!r}")
    try:
        with urlopen(Request(url, headers={"User-Agent": "langevin"}), timeout=timeout) as answer:
            return answer.read()
    except OSError as error:  # urllib's errors are OSErrors too
        raise ConnectionError(f"could not fetch {url}: {error}") from error
