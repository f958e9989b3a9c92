"""``langevin generate``: from words on the command line to files."""

from __future__ import annotations

import functools
import inspect
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer

from langevin.cli.choices import (
    load_cascade,
    load_loras,
    load_pipeline,
    parse_dtype,
    parse_loras,
    parse_scheduler,
    parse_size,
    pick_device,
    refuse_videos,
    scheduler_config,
    set_scheduler,
)
from langevin.cli.errors import BadUsage, tell
from langevin.cli.files import check_out, free, targets
from langevin.cli.medium import PICTURE, Medium


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
    cascade: Sequence[str] = (),
    every_size: bool = False,
    lora: Sequence[str] | None = None,
    prepare: Callable[[Any], tuple[Any, dict[str, Any]]] = lambda pipe: (pipe, {}),
    medium: Medium = PICTURE,
    saving: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Make ``count`` pictures or videos, save them and print a line for each. What cannot work is refused before
    loading.

    ``cascade`` are models in the place of ``model``, whose last one makes the pictures from those of the others;
    ``every_size`` saves those too. ``prepare`` turns the loaded pipeline into the one that paints, and gives further
    arguments of its call; ``medium`` is what it makes, ``saving`` are arguments of its ``save``.
    """
    check_out(out, extensions=medium.extensions, noun=medium.noun)
    if every_size and not cascade:
        raise BadUsage("--every-size is for a --cascade, whose stages make pictures of several sizes")
    if cascade and lora:
        raise BadUsage("a --cascade takes no --lora; give it to a single model")
    if cascade and (scheduler or spacing):
        raise BadUsage("the stages of a --cascade keep their own schedulers; leave out --scheduler and --spacing")
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

    load = functools.partial(load_cascade, cascade) if cascade else functools.partial(load_pipeline, model)
    pipe = load(number_format, place)
    load_loras(pipe, loras)
    pipe, more = prepare(pipe)
    if medium is PICTURE:
        refuse_videos(pipe, "generate")
    if chosen or spacing:
        config = scheduler_config(pipe, "--scheduler" if scheduler else "--spacing")
        name, overrides = chosen or (type(pipe.scheduler).__name__, {})
        set_scheduler(pipe, name, config, overrides, spacing)
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

    save(result, out, prompt, seed, force, every_size, medium, saving)


def save(
    result: Any,
    out: Path | None,
    prompt: str | None,
    seed: int,
    force: bool,
    every_size: bool = False,
    medium: Medium = PICTURE,
    saving: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Save what a call made, and where wanted the pictures of a cascade's first stages; print a line for each."""
    made = getattr(result, medium.output)
    seeds = [(getattr(one, "settings", None) or {}).get("seed", seed + k) for k, one in enumerate(made)]
    paths = targets(out, prompt, seeds, force, medium.suffix, medium.noun)
    for one, path, its in zip(made, paths, seeds, strict=True):
        one.save(path, **saving)
        typer.echo(f"{path}  (seed {its}, {medium.described(one)})")
        if out is not None and out.suffix and len(seeds) == 1 and path != out and not out.is_dir():
            tell(f"langevin: {out} was there already and is kept; --force overwrites it")
    for smaller in result.sizes[:-1] if every_size else ():
        for image, path in zip(smaller, paths, strict=True):
            beside = path.with_stem(f"{path.stem}-{image.width}x{image.height}")
            beside = beside if force else free(beside, [], beside.stem)
            image.save(beside)
            typer.echo(f"{beside}  ({image.width}x{image.height})")
    kinds = ("nsfw_content_detected", "nsfw_detected", "watermark_detected")
    flags = [flagged for kind in kinds if (flagged := getattr(result, kind, None))]
    black = sum(map(any, zip(*flags, strict=True)))
    if black:
        tell(f"langevin: the model's safety checker blacked out {black} of {len(paths)} pictures")


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
    "audio_length_in_s": "--seconds",
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
    if "num_inference_steps" in given and "steps" in takes:
        given["steps"] = given.pop("num_inference_steps")
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
