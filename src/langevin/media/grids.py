"""Several pictures in one: plain grids, and contact sheets with a caption under each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def make_image_grid(images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None) -> Image.Image:
    """``rows * cols`` pictures side by side, row by row, in cells of the first picture's size.

    With ``resize``, each is first made a square of that many pixels. Raises ValueError if the number of
    pictures is not ``rows * cols``.
    """
    if not images or len(images) != rows * cols:
        raise ValueError(f"{len(images)} pictures do not fill a grid of {rows} rows and {cols} columns")
    if resize is not None:
        images = [image.resize((resize, resize)) for image in images]
    width, height = images[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for i, image in enumerate(images):
        grid.paste(image, (i % cols * width, i // cols * height))
    return grid


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size)
    except (ImportError, OSError):  # Pillow without FreeType has one small bitmap font
        return ImageFont.load_default()


def _width(text: str, font) -> float:
    return font.getlength(text) if text else 0.0


def wrap(text: str, width: float, font) -> list[str]:
    """Break ``text`` into lines of at most ``width`` pixels, at spaces, inside words if need be."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if _width(longer, font) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            while _width(word, font) > width and len(word) > 1:
                fits = max(1, sum(_width(word[: i + 1], font) <= width for i in range(len(word))))
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    return lines


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    *,
    cell: int | None = None,
    font_size: int = 12,
    gap: int = 8,
    background: str = "white",
    color: str = "black",
) -> Image.Image:
    """Any number of pictures of any sizes on one sheet, each with its caption under it.

    ``columns`` defaults to a nearly square sheet. ``cell`` is the side in pixels of the square that each
    picture is scaled to fit into, up or down; by default pictures keep their size. Captions are wrapped, and
    no row is higher than its longest caption needs.

    Raises ValueError if there are no pictures or the captions are of another number.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    captions = list(captions) if captions is not None else [""] * len(images)
    if len(captions) != len(images):
        raise ValueError(f"{len(images)} pictures, but {len(captions)} captions")
    if cell is not None:
        images = [_fitted(image, cell) for image in images]
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    font = _font(font_size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        captions = [caption.encode("latin-1", "replace").decode("latin-1") for caption in captions]
    cell_width = max(image.width for image in images)
    texts = [wrap(caption, cell_width, font) if caption else [] for caption in captions]
    line = math.ceil(font_size * 1.3)

    rows = [range(i, min(i + columns, len(images))) for i in range(0, len(images), columns)]
    pixels = [max(images[i].height for i in row) for row in rows]
    heights = [
        high + (gap // 2 + line * max(len(texts[i]) for i in row)) for high, row in zip(pixels, rows, strict=True)
    ]
    sheet = Image.new("RGB", (gap + columns * (cell_width + gap), gap + sum(h + gap for h in heights)), background)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, high, height in zip(rows, pixels, heights, strict=True):
        for column, i in enumerate(row):
            left = gap + column * (cell_width + gap)
            image = images[i].convert("RGB")
            sheet.paste(image, (left + (cell_width - image.width) // 2, top + high - image.height))
            for n, text in enumerate(texts[i]):
                draw.text((left, top + high + gap // 2 + n * line), text, fill=color, font=font)
        top += height + gap
    return sheet


def _fitted(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Whole-number enlargement of small pictures keeps their pixels sharp.
    resample = Image.Resampling.NEAREST if scale >= 1 and scale == int(scale) else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, resample)
