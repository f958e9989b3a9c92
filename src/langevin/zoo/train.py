"""Trains the models in the box again, each from nothing.

    python -m langevin.zoo.train autoencoder --out made/autoencoder
    python -m langevin.zoo.train text-to-image --autoencoder made/autoencoder --out made/shapes
    python -m langevin.zoo.train decoder --model made/shapes --out made/decoder
    python -m langevin.zoo.train unconditional --out made/shapes-unconditional
    python -m langevin.zoo.train inpainting --model made/shapes --out made/shapes-inpainting
    python -m langevin.zoo.train instruct --model made/shapes --out made/shapes-instruct
    python -m langevin.zoo.train outline --model made/shapes --out made/shapes-outline

A run that was killed goes on from its last thousand steps when the same command is given again.
"""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)
OUT = typer.Option(..., help="Folder for the trained model and for resuming.")
AUTOENCODER = typer.Option(..., help="Folder of the trained autoencoder.")
MODEL = typer.Option(..., help="Folder of the trained text-to-image model, whose decoder is replaced.")
SISTER = typer.Option(..., help="Folder of the trained text-to-image model, whose parts are used and not changed.")
START = typer.Option(None, help="A trained pipeline's folder to go on from, instead of from nothing.")
MINUTES = typer.Option(None, help="Finish within this time, with fewer steps if need be.")


@app.command()
def autoencoder(out: Path = OUT, steps: int | None = None, seed: int = 0, minutes: float | None = MINUTES) -> None:
    """The autoencoder of langevin/shapes."""
    from . import train_autoencoder as recipe

    recipe.train(out, steps=steps or recipe.STEPS, seed=seed, minutes=minutes)


@app.command()
def text_to_image(
    autoencoder: Path = AUTOENCODER,
    out: Path = OUT,
    steps: int | None = None,
    seed: int = 0,
    minutes: float | None = MINUTES,
    start: Path | None = START,
) -> None:
    """The text encoder and the UNet of langevin/shapes, saved with the autoencoder as one pipeline."""
    from . import train_text_to_image as recipe

    recipe.train(out, autoencoder, steps=steps or recipe.STEPS, seed=seed, minutes=minutes, start=start)


@app.command()
def decoder(
    model: Path = MODEL,
    out: Path = OUT,
    steps: int | None = None,
    seed: int = 0,
    minutes: float | None = MINUTES,
) -> None:
    """The last touch to langevin/shapes: its decoder learns what its UNet's latents look like."""
    from . import train_decoder as recipe

    recipe.train(model, out, steps=steps or recipe.STEPS, seed=seed, minutes=minutes)


@app.command()
def unconditional(
    out: Path = OUT,
    steps: int | None = None,
    seed: int = 0,
    minutes: float | None = MINUTES,
    start: Path | None = START,
) -> None:
    """The pixel model langevin/shapes-unconditional."""
    from . import train_unconditional as recipe

    recipe.train(out, steps=steps or recipe.STEPS, seed=seed, minutes=minutes, start=start)


@app.command()
def inpainting(
    model: Path = SISTER,
    out: Path = OUT,
    steps: int | None = None,
    seed: int = 0,
    minutes: float | None = MINUTES,
) -> None:
    """The UNet of langevin/shapes-inpainting."""
    from . import train_inpainting as recipe

    recipe.train(model, out, steps=steps or recipe.STEPS, seed=seed, minutes=minutes)


@app.command()
def instruct(
    model: Path = SISTER,
    out: Path = OUT,
    steps: int | None = None,
    seed: int = 0,
    minutes: float | None = MINUTES,
) -> None:
    """The UNet of langevin/shapes-instruct."""
    from . import train_instruct as recipe

    recipe.train(model, out, steps=steps or recipe.STEPS, seed=seed, minutes=minutes)


@app.command()
def outline(
    model: Path = SISTER,
    out: Path = OUT,
    steps: int | None = None,
    seed: int = 0,
    minutes: float | None = MINUTES,
) -> None:
    """The ControlNet langevin/shapes-outline."""
    from . import train_outline as recipe

    recipe.train(model, out, steps=steps or recipe.STEPS, seed=seed, minutes=minutes)


if __name__ == "__main__":
    app()
