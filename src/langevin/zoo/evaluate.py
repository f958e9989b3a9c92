"""Measures how often the text-to-image model in the box paints exactly what the prompt says.

    python -m langevin.zoo.evaluate --count 200 --steps 20 --guidance 2

Four kinds of prompts, all kept out of training: one or two things, with colour and shape pairs that training
pictures show ("seen"; only the caption is new) or with at least one pair that they never show ("held out").
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import typer

from langevin.zoo.reader import matches, read
from langevin.zoo.world import HELD_OUT_PAIRS, TRAINING_PAIRS, caption, is_held_out, parse, random_scene

SEED = 2026


def prompts(things: int, held_out: bool, count: int, seed: int = SEED) -> list[str]:
    """Captions kept out of training, for scenes of ``things`` things."""
    rng = random.Random(f"{seed}/{things}/{held_out}")
    new = sorted(HELD_OUT_PAIRS)
    texts: list[str] = []
    while len(texts) < count:
        scene = random_scene(rng, things, pairs=[*TRAINING_PAIRS, *new * 4] if held_out else TRAINING_PAIRS)
        text = caption(scene, rng)
        if is_held_out(text) and held_out == any(f"{colour} {shape}" in text for colour, shape in new):
            texts.append(text)
    return texts


def paint(pipe: Any, texts: Sequence[str], steps: int, guidance: float, batch: int = 25) -> Iterator[np.ndarray]:
    """Pictures (64, 64, 3) uint8 of ``texts``; the k-th starts from the noise of seed k."""
    return call(pipe, texts, batch, num_inference_steps=steps, guidance_scale=guidance)


def call(
    pipe: Any, texts: Sequence[str], batch: int = 25, first_seed: int = 0, **arguments: Any
) -> Iterator[np.ndarray]:
    """As :func:`paint`, with any ``arguments`` of the call: lists, with one entry per text, or one value for all."""
    import torch

    for start in range(0, len(texts), batch):
        part = slice(start, start + batch)
        now = {key: value[part] if isinstance(value, list) else value for key, value in arguments.items()}
        generators = [torch.Generator().manual_seed(first_seed + start + k) for k in range(len(texts[part]))]
        made = pipe(list(texts[part]), generator=generators, output_type="np", **now).images
        yield from (np.asarray(made) * 255).round().astype(np.uint8)


def load(model: str) -> Any:
    """The pipeline of a model in the box, or in a folder, with no progress bar."""
    from langevin import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def adherence(pipe: Any, texts: list[str], steps: int, guidance: float) -> list[bool]:
    """Whether each text's picture shows exactly what it says."""
    pictures = paint(pipe, texts, steps, guidance)
    return [matches(read(picture), parse(text)) for text, picture in zip(texts, pictures, strict=True)]


def main(
    model: str = typer.Option("langevin/shapes", help="A model in the box, or a folder."),
    count: int = typer.Option(200, help="Prompts of each kind."),
    steps: int = 20,
    guidance: float = 2.0,
) -> None:
    """Print the share of prompts painted exactly right, for each kind of prompt."""
    pipe = load(model)
    print(f"{model}, {steps} steps, guidance {guidance:g}, {count} prompts of each kind")
    for things in (1, 2):
        for held_out in (False, True):
            right = adherence(pipe, prompts(things, held_out, count), steps, guidance)
            kind = f"{things} thing{'s' * (things > 1)}, {'held-out' if held_out else 'seen'} pairs"
            print(f"  {kind:26s} {100 * sum(right) / count:5.1f} %", flush=True)


if __name__ == "__main__":
    typer.run(main)
