"""``langevin generate``: from words on the command line to files."""

from __future__ import annotations

import inspect
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from langevin.cli.choices import (
    load_loras,
    load_pipeline,
    parse_dtype,
    parse_loras,
    parse_scheduler,
    parse_size,
    pick_device,
    set_scheduler,
)
from langevin.cli.errors import BadUsage, tell
from langevin.cli.files import check_out, targets


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
    lora: Sequence[str] | None = None,
    prepare: Callable[[Any], tuple[Any, dict[str, Any]]] = lambda pipe: (pipe, {}),
) -> None:
    """Make ``count`` pictures, save them and print a line for each. What cannot work is refused before loading.

    ``prepare`` turns the loaded pipeline into the one that paints, and gives further arguments of its call.
    """
    check_out(out)
    width, height = parse_size(size) if size else (None, None)
    chosen = parse_scheduler(scheduler) if scheduler else None
    number_format, place = parse_dtype(dtype), pick_device(device)
    loras = parse_loras(lora or ())
    if prompt == "-":
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise BadUsage("there is no prompt on standard input")
    seed = secrets.randbelow(2**32) if seed is None else seed
    if seed + count > 2**64:
        raise BadUsage(f"--seed {seed} is too large; seeds go up to 2**64 - 1")

    pipe = load_pipeline(model, number_format, place)
    load_loras(pipe, loras)
    pipe, more = prepare(pipe)
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

    seeds = [(getattr(image, "settings", None) or {}).get("seed", seed + k) for k, image in enumerate(result.images)]
    for image, path, its in zip(result.images, targets(out, prompt, seeds, force), seeds, strict=True):
        image.save(path)
        typer.echo(f"{path}  (seed {its}, {image.width}x{image.height})")
        if out is not None and out.suffix and len(seeds) == 1 and path != out and not out.is_dir():
            tell(f"langevin: {out} was there already and is kept; --force overwrites it")
    flagged = getattr(result, "nsfw_content_detected", None)
    if flagged and any(flagged):
        tell(f"langevin: the model's safety checker blacked out {sum(map(bool, flagged))} of {len(flagged)} pictures")


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
