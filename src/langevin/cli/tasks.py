"""``langevin edit``, ``inpaint`` and ``control``: pictures made from pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from langevin.cli.errors import BadUsage, Failure
from langevin.cli.generate import generate


def edit(picture: Path, *, strength: float | None, image_guidance: float | None, **options: Any) -> None:
    """Change a picture: as an instruction says, or towards a description with a model that paints from those."""
    image = read(picture)

    def prepare(pipe: Any) -> tuple[Any, dict[str, Any]]:
        pipe = _as(pipe, "StableDiffusionImg2ImgPipeline", "StableDiffusionPipeline")
        return pipe, {"image": image, "strength": strength, "image_guidance_scale": image_guidance}

    generate(prepare=prepare, **options)


def inpaint(
    picture: Path,
    *,
    mask: Path | None,
    box: str | None,
    strength: float | None,
    keep: bool,
    crop: int | None,
    **options: Any,
) -> None:
    """Paint a part of a picture anew: where the mask is white, or in a box."""
    from PIL import Image

    if (mask is None) == (box is None):
        raise BadUsage("say where to paint: either --mask FILE (white there) or --box LEFT,TOP,RIGHT,BOTTOM in pixels")
    image = read(picture)
    if mask is not None:
        where = read(mask)
        where = where if where.size == image.size else where.resize(image.size)
    else:
        where = Image.new("L", image.size, 0)
        where.paste(255, parse_box(str(box), image.size))

    def prepare(pipe: Any) -> tuple[Any, dict[str, Any]]:
        pipe = _as(pipe, "StableDiffusionInpaintPipeline", "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
        arguments = {"image": image, "mask_image": where, "strength": strength, "padding_mask_crop": crop}
        return pipe, {**arguments, "keep_outside": keep or None}

    width, height = image.size
    generate(prepare=prepare, **{**options, "size": options["size"] or f"{width}x{height}"})


def control(picture: Path, *, net: str, scale: float, start: float, stop: float, guess: bool, **options: Any) -> None:
    """Paint a prompt under a control picture, with any model and the control network that fits it."""
    image = read(picture)

    def prepare(pipe: Any) -> tuple[Any, dict[str, Any]]:
        from langevin import Control, ControlNetModel

        network = ControlNetModel.from_pretrained(net, torch_dtype=pipe.dtype).to(pipe.device)
        return pipe, {"control": [Control(network, image, scale=scale, start=start, stop=stop, guess=guess)]}

    generate(prepare=prepare, **options)


def read(picture: Path) -> Any:
    """A picture from a file, upright and in RGB."""
    from PIL import UnidentifiedImageError

    from langevin.media.load import load_image

    if picture.is_dir():
        raise BadUsage(f"{picture} is a folder, not a picture")
    try:
        return load_image(picture)
    except FileNotFoundError:
        raise Failure(f"there is no file {picture}") from None
    except UnidentifiedImageError:
        raise Failure(f"{picture} is not a picture") from None


def parse_box(text: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """ "10,10,40,40" -> left, top, right and bottom in pixels, inside a picture of ``size``."""
    found = re.fullmatch(r"\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)\s*", text)
    left, top, right, bottom = (int(n) for n in found.groups()) if found else (0, 0, 0, 0)
    if not (left < right <= size[0] and top < bottom <= size[1]):
        raise BadUsage(
            f"--box {text!r} is not LEFT,TOP,RIGHT,BOTTOM inside the picture, which is {size[0]}x{size[1]} pixels"
        )
    return left, top, right, bottom


def _as(pipe: Any, kind: str, *plain: str) -> Any:
    """The pipeline's parts in a pipeline of another class, where it is one of the ``plain`` ones."""
    import langevin

    if type(pipe).__name__ not in plain:
        return pipe
    return getattr(langevin, kind).from_pipe(pipe)
