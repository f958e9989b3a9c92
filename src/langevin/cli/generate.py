"""``langevin generate``: from words on the command line to files."""

from __future__ import annotations

import inspect
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer

from langevin.cli.choices import (
    load_pipeline,
    parse_dtype,
    parse_scheduler,
    parse_size,
    pick_device,
    refuse_videos,
    set_scheduler,
)
from langevin.cli.errors import BadUsage, tell
from langevin.cli.files import EXTENSIONS, check_out, form, targets


def generate(
    *,
    prompt: str | None,
    out: Path | None,
    model: str,
    negative: str | None,
    steps: int | None,
    guidance: float | None,
    scheduler: str | None,
    spacing: str | None,
    grammar: str | None,
    size: str | None,
    count: int,
    seed: int | None,
    device: str | None,
    dtype: str | None,
    force: bool,
    prepare: Callable[[Any], tuple[Any, dict[str, Any]]] = lambda pipe: (pipe, {}),
    extensions: Sequence[str] = EXTENSIONS,
    saving: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Make ``count`` pictures or videos, save them and print a line for each. What cannot work is refused before
    loading.

    Args:
        prepare: turns the loaded pipeline into the one that paints, and gives further arguments of its call.
        extensions: what files may end with, first what they do where nothing is said.
        saving: arguments of what is made's ``save``.
    """
    check_out(out, extensions=extensions)
    width, height = parse_size(size) if size else (None, None)
    chosen = parse_scheduler(scheduler) if scheduler else None
    number_format, place = parse_dtype(dtype), pick_device(device)
    if prompt == "-":
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise BadUsage("there is no prompt on standard input")
    seed = secrets.randbelow(2**32) if seed is None else seed
    if seed + count > 2**64:
        raise BadUsage(f"--seed {seed} is too large; seeds go up to 2**64 - 1")

    pipe, more = prepare(load_pipeline(model, number_format, place))
    if extensions is EXTENSIONS:
        refuse_videos(pipe, "generate")
    if chosen or spacing:
        name, overrides = chosen or (type(pipe.scheduler).__name__, {})
        set_scheduler(pipe, name, pipe.scheduler.config, overrides, spacing)
    arguments = {
        "prompt": prompt,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "prompt_weighting": grammar,
        "width": width,
        "height": height,
        "seed": seed,
        **more,
    }
    result = pipe(**fitting(pipe, arguments, count))

    made = results_of(result)
    seeds = [(getattr(image, "settings", None) or {}).get("seed", seed + k) for k, image in enumerate(made)]
    for image, path, its in zip(made, targets(out, prompt, seeds, force, extensions[0]), seeds, strict=True):
        image.save(path, **saving)
        typer.echo(f"{path}  (seed {its}, {form(image)})")
        if out is not None and out.suffix and len(seeds) == 1 and path != out and not out.is_dir():
            tell(f"langevin: {out} was there already and is kept; --force overwrites it")
    flagged = getattr(result, "nsfw_content_detected", None)
    if flagged and any(flagged):
        tell(f"langevin: the model's safety checker blacked out {sum(map(bool, flagged))} of {len(flagged)} pictures")


def results_of(result: Any) -> list[Any]:
    """The pictures of a call's output, or its videos."""
    return result.frames if hasattr(result, "frames") else result.images


_OPTIONS = {
    "negative_prompt": "--negative",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "prompt_weighting": "--grammar",
    "width": "--size",
    "height": "--size",
    "seed": "--seed",
    "strength": "--strength",
    "image_guidance_scale": "--image-guidance",
    "padding_mask_crop": "--crop",
    "keep_outside": "--keep",
    "control": "control pictures",
    "image": "picture to work on",
    "mask_image": "mask",
    "noise_level": "--noise",
    "num_frames": "--frames",
    "video": "--from",
}


def fitting(pipe: Any, arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """The arguments that were given, under the names that this pipeline has for them.

    Raises BadUsage if the pipeline does not take one of them, or needs a prompt and has none.
    """
    takes = inspect.signature(pipe.__call__).parameters
    name = type(pipe).__name__
    given = {key: value for key, value in arguments.items() if value is not None}
    if "prompt" in takes and "prompt" not in given:
        raise BadUsage('this model needs a prompt, such as "a red circle"')
    if "prompt" in given and "prompt" not in takes:
        raise BadUsage(f"this model ({name}) paints without a prompt; leave it out")
    for key in given:
        if key not in takes:
            raise BadUsage(f"this model ({name}) takes no {_OPTIONS[key]}")
    number = next((key for key in ("num_images_per_prompt", "batch_size") if key in takes), None)
    if number:
        given[number] = count
    elif count > 1:
        raise BadUsage(f"this model ({name}) makes one picture at a time; leave out --count")
    return given
