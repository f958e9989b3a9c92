"""What a run tells of itself: a table of numbers, curves, trackers, and a sheet of pictures that grows."""

from __future__ import annotations

import csv
import importlib.util
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from langevin.checkpoints.saving import replace_file
from langevin.media.grids import make_image_grid

logger = logging.getLogger(__name__)

COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "pictures_per_second", "held_out_loss")
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml"}


def trackers(report_to: str) -> list[str]:
    """Names of the trackers to use, of those that are installed: a run does not fail for want of one, since its numbers
    are in ``metrics.csv`` too. Weights & Biases keeps its files here where nobody is logged in.
    """
    installed = [name for name, package in _PACKAGES.items() if importlib.util.find_spec(package)]
    asked = installed if report_to == "all" else [report_to] if report_to in _PACKAGES else []
    for name in asked:
        if name not in installed:
            logger.warning(
                "%s is not installed; numbers go to metrics.csv alone (pip install %s)", name, _PACKAGES[name]
            )
    if "wandb" in asked and not os.environ.get("WANDB_API_KEY") and not Path("~/.netrc").expanduser().exists():
        os.environ.setdefault("WANDB_MODE", "offline")
    return [name for name in asked if name in installed]


class Table:
    """``metrics.csv``: a row per step of the optimiser; what an interrupted run wrote after its checkpoint goes."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_table(path) if row["step"] <= first]
        lines = [",".join(COLUMNS), *(",".join(_text(row.get(name)) for name in COLUMNS) for row in kept)]
        replace_file(path, ("\n".join(lines) + "\n").encode())
        self._file = path.open("a", encoding="utf-8")

    def add(self, row: Mapping[str, float | None]) -> None:
        self._file.write(",".join(_text(row.get(name)) for name in COLUMNS) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_table(path: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.csv``, as far as they are whole."""
    if not path.is_file():
        return []
    rows = []
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            try:
                rows.append({name: float(value) for name, value in row.items() if name and value})
            except (TypeError, ValueError):
                continue
    return [row for row in rows if "step" in row]


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.8g}"


def draw_curves(path: Path, rows: Sequence[Mapping[str, float]], width: int = 900, height: int = 260) -> None:
    """A picture of the curves, one below the other: the loss, smoothed, with the one held out; the learning rate."""
    charts = [("loss", ["loss", "held_out_loss"]), ("learning rate", ["learning_rate"])]
    image = Image.new("RGB", (width, height * len(charts)), "white")
    pen = ImageDraw.Draw(image)
    for k, (title, names) in enumerate(charts):
        _chart(
            pen,
            title,
            {name: _points(rows, name) for name in names},
            (60, height * k + 30, width - 20, height * (k + 1) - 30),
        )
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    replace_file(path, buffer.getvalue())


def _points(rows: Sequence[Mapping[str, float]], name: str, most: int = 400) -> list[tuple[float, float]]:
    """(step, mean of the values about it), ``most`` of them."""
    all_points = [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
    size = max(1, math.ceil(len(all_points) / most))
    groups = [all_points[i : i + size] for i in range(0, len(all_points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _chart(pen: Any, title: str, lines: Mapping[str, list[tuple[float, float]]], box: tuple[int, ...]) -> None:
    left, top, right, bottom = box
    points = [point for line in lines.values() for point in line]
    pen.rectangle(box, outline="#bbbbbb")
    pen.text((left, top - 18), title, fill="black")
    if not points:
        return
    (x0, x1), (y0, y1) = ((min(p[i] for p in points), max(p[i] for p in points)) for i in (0, 1))
    y0, y1 = (y0, y1) if y1 > y0 else (y0 - 0.5 * abs(y0) - 1e-12, y1 + 0.5 * abs(y1) + 1e-12)
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - top)
        pen.line((left, y, right, y), fill="#eeeeee")
        pen.text((4, y - 6), f"{y0 + share * (y1 - y0):.3g}", fill="black")
    pen.text((left, bottom + 6), f"step {x0:.0f}", fill="black")
    pen.text((right - 60, bottom + 6), f"{x1:.0f}", fill="black")
    for (name, line), colour in zip(lines.items(), ("#1f77b4", "#d62728"), strict=False):
        place = [
            (left + (x - x0) / max(x1 - x0, 1e-12) * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top))
            for x, y in line
        ]
        if len(place) > 1:
            pen.line(place, fill=colour, width=2)
        elif place:
            pen.ellipse((place[0][0] - 2, place[0][1] - 2, place[0][0] + 2, place[0][1] + 2), fill=colour)
        if len(lines) > 1 and line:
            pen.text((right - 110, top + 4 + 14 * list(lines).index(name)), name, fill=colour)


def add_to_sheet(folder: Path, step: int, images: Sequence[Image.Image]) -> Path:
    """Save a validation's pictures, and put them as a row under those of earlier steps in ``sheet.png``.

    Returns:
        The row's own file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.png"
    _save(path, make_image_grid(list(images), 1, len(images)))
    rows = [Image.open(file).convert("RGB") for file in sorted(folder.glob("step-*.png"))]
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    _save(folder / "sheet.png", sheet)
    return path


def _save(path: Path, image: Image.Image) -> None:
    passing = path.with_name(f".{path.name}.partial")
    image.save(passing, "PNG")
    os.replace(passing, path)


def tell_costs(seconds: float, memory: int, steps: int, pictures: int) -> None:
    """Say what a whole run would take, from what a step of it took."""
    hours, minutes = divmod(round(seconds * steps / 60), 60)
    print(
        f"  a step took {seconds:.2f} s and {memory / 2**30:.1f} GiB; {steps:,} steps of {pictures} pictures will take "
        f"about {hours} h {minutes:02} min. Nothing was written.",
        file=sys.stderr,
    )
