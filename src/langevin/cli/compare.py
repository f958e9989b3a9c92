"""``langevin schedulers`` and ``langevin compare-schedulers``: what there is, and what each makes of a prompt."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import typer

from langevin.cli.choices import (
    load_pipeline,
    parse_dtype,
    parse_scheduler,
    pick_device,
    refuse_videos,
    scheduler_config,
    schedulers,
    set_scheduler,
)
from langevin.cli.errors import BadUsage
from langevin.cli.files import check_out, targets
from langevin.cli.generate import fitting
from langevin.schedulers.catalogue import interchangeable


def catalogue() -> list[dict[str, Any]]:
    """Every scheduler: its short name, its class, what it is in one line, and whether the usual models take it."""
    import langevin

    usual = interchangeable()
    rows = [
        {
            "name": short,
            "class": name,
            "what": _first_line(getattr(langevin, name)),
            "usual": name in usual,
        }
        for short, name in schedulers().items()
    ]
    return sorted(rows, key=lambda row: not row["usual"])


def _first_line(thing: Any) -> str:
    """What the docstring says first, without its markup."""
    text = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r"(:\w+:)?`+~?([^`]*)`+", r"\2", text)


def show(as_json: bool) -> None:
    """Print the schedulers as a table, or as JSON."""
    from langevin.schedulers.spacing import SPACINGS

    rows = catalogue()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for usual, title in (
        (True, "For the usual models: each takes the place of any other"),
        (False, "For particular models and tasks"),
    ):
        table = Table(
            box=None, pad_edge=False, show_header=False, title=title, title_justify="left", title_style="bold"
        )
        table.add_column(no_wrap=True)
        table.add_column()
        for row in rows:
            if row["usual"] == usual:
                table.add_row(row["name"], row["what"])
        console.print(table)
        console.print()
    console.print(
        f"[bold]Spacings[/bold] (--spacing), with any of the first kind: {', '.join(SPACINGS)}", soft_wrap=True
    )


def parse_list(text: str, option: str, kind: type) -> list[Any]:
    """ "5,10,20" -> [5, 10, 20]."""
    try:
        values = [kind(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if not values or (kind is int and min(values) < 1):
        raise BadUsage(f"{option} {text!r} is not a list such as {'5,10,20' if kind is int else 'ddim,euler'}")
    return values


def compare(
    *,
    prompt: str | None,
    out: Path,
    model: str,
    steps: str,
    names: str | None,
    spacing: str | None,
    guidance: float | None,
    count: int,
    seed: int,
    device: str | None,
    dtype: str | None,
    force: bool,
) -> None:
    """Paint the prompt with every scheduler at every number of steps, and save one sheet of the first pictures.

    For a model in the box each cell says how many of its pictures the reader found to be what the prompt asks for.
    """
    from PIL import Image
    from tqdm import tqdm

    from langevin import zoo
    from langevin.media.grids import contact_sheet
    from langevin.media.picture import Picture

    check_out(out)
    numbers = parse_list(steps, "--steps", int)
    chosen = [parse_scheduler(name) for name in parse_list(names, "--schedulers", str)] if names else None
    pipe = load_pipeline(model, parse_dtype(dtype), pick_device(device))
    refuse_videos(pipe, "compare-schedulers")
    pipe.set_progress_bar_config(disable=True)
    config = scheduler_config(pipe, "compare-schedulers")
    judge = judge_of(prompt) if model in zoo.names() and prompt else None

    pictures: list[Any] = []
    captions: list[str] = []
    cells = [(cls, extra, n) for cls, extra in chosen or [(name, {}) for name in interchangeable()] for n in numbers]
    for cls, extra, n in tqdm(cells, desc="Painting", unit="cell", disable=None):
        set_scheduler(pipe, cls, config, extra, spacing)
        given = {"prompt": prompt, "num_inference_steps": n, "guidance_scale": guidance, "seed": seed}
        caption = f"{cls.removesuffix('Scheduler')}\n{n} step{'s' * (n > 1)}"
        try:
            images = pipe(**fitting(pipe, given, count)).images
        except ValueError as error:  # a scheduler that cannot do so few steps, say
            pictures.append(None)
            captions.append(f"{caption}: {error}")
            continue
        pictures.append(images[0])
        right = f", {sum(map(judge, images))} of {count} as asked" if judge else ""
        captions.append(caption + right)
    made = [picture for picture in pictures if picture is not None]
    if not made:
        raise BadUsage(f"no scheduler could do it: {captions[0]}")
    blank = Image.new("RGB", made[0].size, "lightgray")
    cell = made[0].width * max(1, round(160 / made[0].width))  # small pictures enlarged by a whole number
    sheet = contact_sheet([p or blank for p in pictures], captions, columns=len(numbers), cell=cell)
    path = targets(out, prompt, [seed], force)[0]
    Picture(sheet).save(path)
    for caption in captions:
        typer.echo("  ".join(caption.split("\n")))
    typer.echo(f"{path}  ({sheet.width}x{sheet.height})")


def judge_of(prompt: str) -> Any:
    """What says whether a picture shows what the prompt asks for; None if the prompt is not one of the box's world."""
    from langevin.zoo.reader import matches, read
    from langevin.zoo.world import parse

    try:
        wanted = parse(prompt)
    except ValueError:
        return None
    return lambda picture: matches(read(picture), wanted)
