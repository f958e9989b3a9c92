"""``langevin score``: how well texts fit a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from langevin.cli.errors import BadUsage, harmless
from langevin.cli.tasks import read


def score(picture: Path, texts: list[str], *, model: str, as_json: bool) -> None:
    """Print a line for each text, the best first."""
    from langevin.zoo.scoring import Scorer

    image = read(picture)
    if not all(text.strip() for text in texts):
        raise BadUsage("a text is empty; give at least one with words in it")
    fits = Scorer.load(model).fits(image, texts)
    if as_json:
        typer.echo(json.dumps([asdict(fit) for fit in fits], indent=2))
        return
    for fit in fits:
        typer.echo(f"{_number(fit, len(fits))}  {harmless(fit.text)}")


def _number(fit: Any, texts: int) -> str:
    """The chance that a text is true where it is known, else its cosine, and its share where there are several."""
    main = f"cosine {fit.cosine:+.3f}" if fit.chance is None else f"fits {100 * fit.chance:5.1f} %"
    return main if texts == 1 else f"{main}  share {100 * fit.share:5.1f} %"
