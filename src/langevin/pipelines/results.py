"""What a pipeline hands back: pictures in the form asked for, each with the settings that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from langevin import __version__
from langevin.media.convert import denormalize, pt_to_numpy, to_pictures
from langevin.media.recording import LOST, describe_guider, parts_state, recorded, recorded_row
from langevin.media.video import to_videos
from langevin.pipelines.lora_calls import recorded_loras


def deliver(pixels: Tensor, output_type: str, settings: Sequence[dict[str, Any]]) -> Any:
    """Pictures in the form asked for, or videos.

    Args:
        pixels: ``(batch, channels, height, width)`` in [-1, 1]; values outside are clamped. Of videos ``(batch,
            channels, frames, height, width)``; then "pil" is :class:`langevin.Video`, and the others are ``(batch,
            frames, height, width, channels)`` and ``(batch, frames, channels, height, width)``.
        output_type: "pil" (:class:`langevin.Picture` with its settings), "np" ``(batch, height, width, channels)`` or
            "pt" ``(batch, channels, height, width)``, both in [0, 1].
        settings: one dict per picture.

    Raises:
        ValueError: for another ``output_type``.
    """
    check_output_type(output_type)
    if output_type == "pil":
        return to_pictures(pixels, settings) if pixels.ndim == 4 else to_videos(pixels, settings)
    images = denormalize(pixels)
    if images.ndim == 5:
        images = images.transpose(1, 2)
        return np.stack([pt_to_numpy(one) for one in images]) if output_type == "np" else images
    return pt_to_numpy(images) if output_type == "np" else images


def check_output_type(output_type: str, *more: str) -> None:
    """Raises ValueError unless it is "pil", "np", "pt" or one of ``more``."""
    allowed = ("pil", "np", "pt", *more)
    if output_type not in allowed:
        raise ValueError(f"output_type is {output_type!r}; allowed: {', '.join(allowed)}")


def call_settings(
    pipeline: Any,
    arguments: Mapping[str, Any],
    stages: Sequence[Any] = (),
    /,
    *,
    row: tuple[int, int] = (0, 1),
    spread: Mapping[str, bool] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Plain values that tell how to make a call, or one of its pictures, again.

    Args:
        arguments: the call's arguments; numbers, texts and lists of them are kept, tensors and callbacks are named
            under ``"not_recorded"``; see :func:`langevin.media.recording.recorded`.
        stages: of the call; their schedulers are recorded.
        row: which of how many pictures this is of.
        spread: arguments that may be a list of pictures, of which each that is made has its own; True where they go
            with the prompts; see :func:`langevin.media.recording.recorded_row`.
        more: further entries, such as height and width once they are known.
    """
    spread = spread or {}
    schedulers = _schedulers(pipeline, stages)
    told = [stage["part"] for stage in schedulers.get("stages", {}).values()]
    state, left_out = parts_state(pipeline, ["scheduler", *told])
    loras, unknown = recorded_loras(pipeline)
    state |= {"loras": loras} if loras else {}
    left_out += unknown
    kept: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None or (isinstance(value, (list, tuple)) and not value):
            continue
        if name in ("guiders", "control"):
            kept[name] = [describe_guider(guider, *row) for guider in value]
            left_out += [f"{guider['class']}'s {lost}" for guider in kept[name] for lost in guider.pop(LOST, ())]
            continue
        plain = recorded_row(value, *row, spread[name]) if name in spread else recorded(value)
        if plain is None:
            left_out.append(name)
        else:
            kept[name] = plain
    settings = {
        "langevin": __version__,
        "pipeline": type(pipeline).__name__,
        "model": getattr(pipeline, "name_or_path", None),
        **kept,
        **schedulers,
        **state,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "device": pipeline.device.type,
        **more,
    }
    if left_out:
        settings[LOST] = left_out
    return settings


def _schedulers(pipeline: Any, stages: Sequence[Any]) -> dict[str, Any]:
    """The scheduler of a call with one stage; of several, all by the stage's name, with the part that each is, and the
    pipeline's.
    """
    parts = {id(part): name for name, part in getattr(pipeline, "components", {}).items()}

    def described(scheduler: Any) -> dict[str, Any]:
        config = {k: v for k, v in scheduler.config.items() if k == "_spacing" or not k.startswith("_")}
        return {"scheduler": type(scheduler).__name__, "scheduler_config": config}

    if len(stages) == 1:
        return described(stages[0].scheduler)
    main = [stage for stage in stages if stage.scheduler is getattr(pipeline, "scheduler", None)]
    own = described(main[0].scheduler) if main else {}
    if not stages:
        return {}
    each = {s.name: {**described(s.scheduler), "part": parts.get(id(s.scheduler))} for s in stages}
    return {**own, "stages": each}
