"""A picture in every mode."""

from __future__ import annotations

import numpy as np
from PIL import Image

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)

MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "I;16",
    "F",
)


def of_mode(mode, image=None):
    image = Image.fromarray(COLOURS) if image is None else image
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    steps = {"La": ("LA", "La"), "PA": ("RGB", "P", "PA"), "RGBa": ("RGBA", "RGBa"), "I": ("L", "I"), "F": ("L", "F")}
    for step in steps.get(mode, (mode,)):
        image = image.convert(step)
    return image
