"""Pictures from files: any mode, any orientation, with or without transparency."""

from __future__ import annotations

import io
import os
from typing import IO

import numpy as np
from PIL import Image, ImageOps


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
    PIL.UnidentifiedImageError for what is no picture, and ConnectionError where the address does not answer.
    """
    if isinstance(source, str) and "://" in source:
        if not allow_url:
            raise ValueError(f"{source!r} is a URL; load_image(url, allow_url=True) fetches it")
        source = io.BytesIO(_fetch(source, timeout))
    if isinstance(source, Image.Image):
        return to_rgb(ImageOps.exif_transpose(source), background)
    with Image.open(source) as image:
        loaded: Image.Image = to_rgb(ImageOps.exif_transpose(image), background)
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
