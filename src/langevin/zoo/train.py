"""Trains the models in the box again, each from nothing.

    python -m langevin.zoo.train autoencoder --out made/autoencoder
    python -m langevin.zoo.train text-to-image --autoencoder made/autoencoder --out made/shapes
    python -m langevin.zoo.train decoder --model made/shapes --out made/decoder
    python -m langevin.zoo.train unconditional --out made/shapes-unconditional
    python -m langevin.zoo.train inpainting --model made/shapes --out made/shapes-inpainting
    python -m langevin.zoo.train instruct --model made/shapes --out made/shapes-instruct
    python -m langevin.zoo.train attention --model made/shapes --out made/shapes-attention
    python -m langevin.zoo.train outline --model made/shapes --out made/shapes-outline
    python -m langevin.zoo.train clip --model made/shapes --out made/shapes-clip

A run that was killed goes on from its last thousand steps when the same command is given again.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from langevin.signatures import also_takes

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)
OUT = typer.Option(..., help="Folder for the trained model and for resuming.")
AUTOENCODER = typer.Option(..., help="Folder of the trained autoencoder.")
MODEL = typer.Option(..., help="Folder of the trained text-to-image model, whose decoder is replaced.")
SISTER = typer.Option(..., help="Folder of the trained text-to-image model, whose parts are used and not changed.")
START = typer.Option(None, help="A trained pipeline's folder to go on from, instead of from nothing.")
MINUTES = typer.Option(None, help="Finish within this time, with fewer steps if need be.")


def run(out: Path = OUT, steps: int | None = None, seed: int = 0, minutes: float | None = MINUTES) -> None:
    """What every command takes."""


def train(recipe: str, *folders: Path, steps: int | None, **options: Any) -> None:
    """Follow ``train_<recipe>.py``, for its own number of steps where none is given."""
    module = import_module(f"langevin.zoo.train_{recipe}")
    module.train(*folders, steps=steps or module.STEPS, **options)


@app.command()
@also_takes(run, evaluate=True)
def autoencoder(out: Path = OUT, **options: Any) -> None:
    """The autoencoder of langevin/shapes."""
    train("autoencoder", out, **options)


@app.command()
@also_takes(run, evaluate=True)
def text_to_image(autoencoder: Path = AUTOENCODER, out: Path = OUT, start: Path | None = START, **options: Any) -> None:
    """The text encoder and the UNet of langevin/shapes, saved with the autoencoder as one pipeline."""
    train("text_to_image", out, autoencoder, start=start, **options)


@app.command()
@also_takes(run, evaluate=True)
def decoder(model: Path = MODEL, out: Path = OUT, **options: Any) -> None:
    """The last touch to langevin/shapes: its decoder learns what its UNet's latents look like."""
    train("decoder", model, out, **options)


@app.command()
@also_takes(run, evaluate=True)
def unconditional(out: Path = OUT, start: Path | None = START, **options: Any) -> None:
    """The pixel model langevin/shapes-unconditional."""
    train("unconditional", out, start=start, **options)


@app.command()
@also_takes(run, evaluate=True)
def inpainting(model: Path = SISTER, out: Path = OUT, **options: Any) -> None:
    """The UNet of langevin/shapes-inpainting."""
    train("inpainting", model, out, **options)


@app.command()
@also_takes(run, evaluate=True)
def instruct(model: Path = SISTER, out: Path = OUT, start: Path | None = START, **options: Any) -> None:
    """The UNet of langevin/shapes-instruct."""
    train("instruct", model, out, start=start, **options)


@app.command()
@also_takes(run, evaluate=True)
def attention(model: Path = SISTER, out: Path = OUT, **options: Any) -> None:
    """The UNet of langevin/shapes-attention."""
    train("attention", model, out, **options)


@app.command()
@also_takes(run, evaluate=True)
def outline(model: Path = SISTER, out: Path = OUT, **options: Any) -> None:
    """The ControlNet langevin/shapes-outline."""
    train("outline", model, out, **options)


@app.command()
@also_takes(run, evaluate=True)
def clip(model: Path = SISTER, out: Path = OUT, **options: Any) -> None:
    """Both towers of langevin/shapes-clip."""
    train("clip", model, out, **options)


if __name__ == "__main__":
    app()
