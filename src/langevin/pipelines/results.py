"""What a pipeline hands back: pictures in the form asked for, each with the settings that made it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from langevin import __version__
from langevin.guiders.setup import Setup
from langevin.media.convert import denormalize, pt_to_numpy, to_pictures

PLAIN = (str, int, float, bool, type(None))
LOST = "not_recorded"
SMALL = 8192
"""Pictures that take no more bytes as a PNG, such as masks, are written whole into those made from them."""


def deliver(pixels: Tensor, output_type: str, settings: Sequence[dict[str, Any]]) -> Any:
    """Pictures in the form asked for.

    Args:
        pixels: ``(batch, channels, height, width)`` in [-1, 1]; values outside are clamped.
        output_type: "pil" (:class:`langevin.Picture` with its settings), "np" ``(batch, height, width, channels)`` or
            "pt" ``(batch, channels, height, width)``, both in [0, 1].
        settings: one dict per picture.

    Raises:
        ValueError: for another ``output_type``.
    """
    check_output_type(output_type)
    if output_type == "pil":
        return to_pictures(pixels, settings)
    images = denormalize(pixels)
    return pt_to_numpy(images) if output_type == "np" else images


def check_output_type(output_type: str, *more: str) -> None:
    """Raises ValueError unless it is "pil", "np", "pt" or one of ``more``."""
    allowed = ("pil", "np", "pt", *more)
    if output_type not in allowed:
        raise ValueError(f"output_type is {output_type!r}; allowed: {', '.join(allowed)}")


def call_settings(
    pipeline: Any, arguments: Mapping[str, Any], stages: Sequence[Setup] = (), **more: Any
) -> dict[str, Any]:
    """Plain values that tell how to make a call again.

    Args:
        arguments: the call's arguments; numbers, texts and lists of them are kept, tensors and callbacks are named
            under ``"not_recorded"``; see :func:`recorded`.
        stages: of the call; their schedulers are recorded.
        more: further entries, such as height and width once they are known.
    """
    kept, left_out = {}, []
    for name, value in arguments.items():
        if value is None or (isinstance(value, (list, tuple)) and not value):
            continue
        if name in ("guiders", "control"):
            kept[name] = [describe_guider(guider) for guider in value]
            left_out += [f"{guider['class']}'s {lost}" for guider in kept[name] for lost in guider.pop(LOST, ())]
        elif (plain := recorded(value)) is not None:
            kept[name] = plain
        else:
            left_out.append(name)
    settings = {
        "langevin": __version__,
        "pipeline": type(pipeline).__name__,
        "model": getattr(pipeline, "name_or_path", None),
        **kept,
        **_schedulers(stages),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "device": pipeline.device.type,
        **more,
    }
    if left_out:
        settings[LOST] = left_out
    return settings


def _schedulers(stages: Sequence[Setup]) -> dict[str, Any]:
    """The scheduler of a call with one stage; those of several by the stage's name."""

    def described(scheduler: Any) -> dict[str, Any]:
        config = {k: v for k, v in scheduler.config.items() if k == "_spacing" or not k.startswith("_")}
        return {"scheduler": type(scheduler).__name__, "scheduler_config": config}

    if len(stages) == 1:
        return described(stages[0].scheduler)
    return {"stages": {stage.name: described(stage.scheduler) for stage in stages}} if stages else {}


def describe_guider(guider: Any) -> dict[str, Any]:
    """A guider's class and settings; those that cannot be recorded are named under ``"not_recorded"``."""
    fields = dataclasses.fields(guider) if dataclasses.is_dataclass(guider) else ()
    values = {f.name: getattr(guider, f.name) for f in fields if f.init}
    plain = {name: recorded(value) for name, value in values.items()}
    lost = [name for name, value in values.items() if value is not None and plain[name] is None]
    if not fields and type(guider).__init__ is not object.__init__:
        lost.append("settings")
    return {"class": type(guider).__name__, **plain, **({LOST: lost} if lost else {})}


def recorded(value: Any) -> Any:
    """A value as it is written into pictures; None for what cannot be.

    Numbers, texts and lists of them stay what they are. A picture that was loaded from a file is written as
    ``{"file": …, "sha256": …}``, a small one (:data:`SMALL`) as ``{"png": base64}``, a network as
    ``{"network": class, "from": name or folder}``, a dict as ``{"items": [[key, value], …]}``.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        each = [recorded(one) for one in value]
        return None if None in each else each
    if isinstance(value, Mapping):
        pairs = [[recorded(key), recorded(one)] for key, one in value.items()]
        return None if any(None in pair for pair in pairs) else {"items": pairs}
    if isinstance(value, Image.Image):
        file = str(getattr(value, "filename", "") or "")
        if file:
            return {"file": os.path.abspath(file), "sha256": fingerprint(value)}
        value.save(png := io.BytesIO(), "PNG")
        return {"png": base64.b64encode(png.getvalue()).decode()} if len(png.getvalue()) <= SMALL else None
    source = getattr(getattr(value, "config", None), "_name_or_path", None)
    return {"network": type(value).__name__, "from": source} if isinstance(source, str) and source else None


def fingerprint(image: Image.Image) -> str:
    """SHA-256 of a picture's size, mode and pixels, in hexadecimal."""
    return hashlib.sha256(f"{image.size}{image.mode}".encode() + image.tobytes()).hexdigest()


def per_picture(
    settings: Mapping[str, Any],
    seeds: Sequence[int | None],
    prompts: Sequence[str | None] = (),
    negative_prompts: Sequence[str | None] = (),
) -> list[dict[str, Any]]:
    """One settings dict per picture: each with its own seed and its own prompt."""
    each = []
    for k, seed in enumerate(seeds):
        mine = {**settings, "seed": seed}
        for name, texts in (("prompt", prompts), ("negative_prompt", negative_prompts)):
            mine.pop(name, None)
            if texts and texts[k] is not None:
                mine[name] = texts[k]
        each.append({k: v for k, v in mine.items() if v is not None})
    return each
