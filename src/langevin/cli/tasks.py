"""``langevin edit``, ``inpaint``, ``control``, ``upscale``, ``vary``, ``depth``: pictures from pictures; ``sound``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langevin.cli.errors import BadUsage, Failure
from langevin.cli.generate import generate
from langevin.cli.medium import SOUND, VIDEO


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
        where = read_mask(mask)
        where = where if where.size == image.size else where.resize(image.size)
    else:
        where = Image.new("L", image.size, 0)
        where.paste(255, parse_box(str(box), image.size))

    def prepare(pipe: Any) -> tuple[Any, dict[str, Any]]:
        pipe = _as(pipe, "StableDiffusionInpaintPipeline", "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
        arguments = {"image": image, "mask_image": where, "strength": strength, "padding_mask_crop": crop}
        if not options["size"]:
            width, height = (_up(side, pipe.vae_scale_factor) for side in image.size)
            arguments |= {"width": width, "height": height}
            if (width, height) != image.size and crop is None:  # paint all of it a little larger, and lay that over it
                arguments["padding_mask_crop"] = max(image.size)
        return pipe, {**arguments, "keep_outside": keep or None}

    generate(prepare=prepare, **options)


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def shaped(size: tuple[int, int], area: float, multiple: int) -> tuple[int, int]:
    """(width, height) with the proportions of ``size`` and about ``area`` pixels, in multiples of ``multiple``."""
    factor = math.sqrt(area / (size[0] * size[1])) / multiple
    width, height = (max(1, round(side * factor)) * multiple for side in size)
    return width, height


def control(picture: Path, *, net: str, scale: float, start: float, stop: float, guess: bool, **options: Any) -> None:
    """Paint a prompt under a control picture, with any model and the control network that fits it.

    The result has the picture's proportions and as many pixels as the model usually makes.
    """
    image = read(picture)

    def prepare(pipe: Any) -> tuple[Any, dict[str, Any]]:
        from langevin import Control, ControlNetModel

        network = ControlNetModel.from_pretrained(net, torch_dtype=pipe.dtype).to(pipe.device)
        control = [Control(network, image, scale=scale, start=start, stop=stop, guess=guess)]
        own = getattr(getattr(pipe, "unet", None), "config", {}).get("sample_size")
        if options["size"] or not own:
            return pipe, {"control": control}
        high, wide = (own, own) if isinstance(own, int) else own
        multiple = pipe.vae_scale_factor
        width, height = shaped(image.size, high * wide * multiple**2, multiple)
        return pipe, {"control": control, "width": width, "height": height}

    generate(prepare=prepare, **options)


def upscale(picture: Path, *, noise: int | None, window: int | None, **options: Any) -> None:
    """Make a picture larger with an upscaler, whole or in windows that overlap by half."""
    image = read(picture)

    def prepare(pipe: Any) -> tuple[Any, dict[str, Any]]:
        from langevin import Windows

        kinds = ("StableDiffusionUpscalePipeline", "StableDiffusionLatentUpscalePipeline", "IFSuperResolutionPipeline")
        _check_kind(pipe, "upscale", *kinds)
        parts = None if window is None else [Windows(window, max(window // 2, 1), smooth=True)]
        return pipe, {"image": image, "noise_level": noise, "guiders": parts}

    generate(prepare=prepare, **options)


def vary(picture: Path, **options: Any) -> None:
    """Make pictures like a picture."""
    image = read(picture)

    def prepare(pipe: Any) -> tuple[Any, dict[str, Any]]:
        versatile = "VersatileDiffusionImageVariationPipeline"
        pipe = _as(pipe, versatile, "VersatileDiffusionPipeline")
        _check_kind(pipe, "vary", "StableDiffusionImageVariationPipeline", versatile)
        return pipe, {"image": image}

    generate(prepare=prepare, prompt=None, negative=None, grammar=None, **options)


def depth(picture: Path, *, map: Path | None, strength: float | None, **options: Any) -> None:
    """Paint a picture anew with its depth, from a grey picture or estimated."""
    image = read(picture)
    near = None if map is None else read(map)

    def prepare(pipe: Any) -> tuple[Any, dict[str, Any]]:
        _check_kind(pipe, "depth", "StableDiffusionDepth2ImgPipeline")
        return pipe, {"image": image, "depth_map": near, "strength": strength}

    generate(prepare=prepare, **options)


def sound(model: str, *, seconds: float | None, **options: Any) -> None:
    """Make sounds with a model of sound."""

    def prepare(pipe: Any) -> tuple[Any, dict[str, Any]]:
        _check_kind(pipe, "sound", "DanceDiffusionPipeline", "AudioDiffusionPipeline")
        return pipe, {"audio_length_in_s": seconds}

    unasked: dict[str, Any] = dict.fromkeys(("prompt", "negative", "grammar", "guidance", "size"))
    generate(model=model, prepare=prepare, medium=SOUND, **unasked, **options)


def video(
    *, frames: int | None, fps: float | None, source: Path | None, strength: float | None, **options: Any
) -> None:
    """Make a video: from a text alone, or from a text and a video."""
    from langevin.media.video import check_writing, load_video

    clip = None if source is None else _from_file(source, load_video)
    out = options["out"]
    if out is None or out.is_dir() or out.suffix.lower() == ".mp4":
        check_writing(".mp4")
    if clip is None and strength is not None:
        raise BadUsage("--strength says how far to go from a video; name one with --from")
    if clip is not None and frames is not None:
        raise BadUsage("--frames is for videos made from a text alone; one made --from another is as long as that")

    def prepare(pipe: Any) -> tuple[Any, dict[str, Any]]:
        kinds = "TextToVideoSDPipeline", "VideoToVideoSDPipeline"
        _check_kind(pipe, "video", *kinds)
        pipe = _as(pipe, kinds[clip is not None], kinds[clip is None])
        return pipe, {"num_frames": frames, "video": clip, "strength": strength, "output_type": "pil"}

    saving = {} if fps is None else {"fps": fps}
    generate(prepare=prepare, medium=VIDEO, saving=saving, **options)


def _check_kind(pipe: Any, command: str, *kinds: str) -> None:
    """Raises BadUsage unless the pipeline is one of these."""
    if type(pipe).__name__ not in kinds:
        wanted = " or ".join(f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}" for kind in kinds)
        raise BadUsage(f"langevin {command} needs {wanted}; this model is a {type(pipe).__name__}")


def read(picture: Path) -> Any:
    """A picture from a file, upright and in RGB."""
    from langevin.media.load import load_image

    return _from_file(picture, load_image)


def read_mask(picture: Path) -> Any:
    """A mask from a file, upright; on a transparent layer only what is visible is white."""
    from PIL import Image

    from langevin.media.checks import masks
    from langevin.media.load import load_image

    def load(path: Path) -> Any:
        with Image.open(path) as image:
            transparent = "A" in image.getbands() or "transparency" in image.info
            return masks(image, str(path))[0] if transparent else load_image(path)

    return _from_file(picture, load)


def _from_file(picture: Path, load: Callable[[Path], Any]) -> Any:
    from PIL import UnidentifiedImageError

    if picture.is_dir():
        raise BadUsage(f"{picture} is a folder, not a picture")
    try:
        return load(picture)
    except FileNotFoundError:
        raise Failure(f"there is no file {picture}") from None
    except UnidentifiedImageError:
        raise Failure(f"{picture} is not a picture") from None
    except (ValueError, ImportError) as error:
        raise Failure(str(error)) from None


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
