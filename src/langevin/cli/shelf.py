"""``langevin models``: what can be loaded without the network."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from langevin.cli.errors import harmless


def size_text(size: int) -> str:
    """Bytes for people: 14.2 MB."""
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def shelf() -> list[dict[str, Any]]:
    """Every model in the box and in the hub's cache: name, where, pipeline class, bytes, folder, description."""
    from langevin import zoo
    from langevin.checkpoints.folders import local_models

    descriptions = dict(getattr(zoo, "MODELS", {}))
    return [
        {
            "name": found.name,
            "where": "box" if found.name in descriptions else "cache",
            "class": found.kind,
            "bytes": found.size,
            "folder": str(found.folder),
            "description": descriptions.get(found.name, ""),
        }
        for found in local_models()
    ]


def show(as_json: bool) -> None:
    """Print the models as a table, or as JSON."""
    rows = shelf()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "size", "class", ""):
        table.add_column(title, justify="right" if title == "size" else "left", overflow="fold")
    for row in rows:
        what = row["description"] if row["where"] == "box" else "in the hub cache"
        name, kind, what = (escape(harmless(str(text))) for text in (row["name"], row["class"], what))
        table.add_row(name, size_text(row["bytes"]), kind, what)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    if rows:
        console.print(table)
    else:
        console.print("There are no models here: the box is empty, and so is the hub cache.")
