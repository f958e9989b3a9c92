"""Measures ``langevin/shapes-clip``: does the true caption fit a picture best, and what are its chances worth.

    python -m langevin.zoo.evaluate_clip --count 300

Captions are kept out of training; "held out" means a pair of colour and shape that no training picture shows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import typer
from PIL import Image

from langevin.zoo import evaluate
from langevin.zoo.neighbours import ATTRIBUTES, differing, true_of
from langevin.zoo.world import (
    HELD_OUT_PAIRS,
    TRAINING_PAIRS,
    Scene,
    caption,
    is_held_out,
    random_scene,
    render,
)

NEW = sorted(HELD_OUT_PAIRS)


# ------------------------------------------------------------------------------------------------ texts for pictures


@dataclass(frozen=True)
class Choice:
    """A scene, a caption that is true of it, and for each attribute one that is wrong in it alone."""

    scene: Scene
    true: str
    wrong: dict[str, str]


def choices(held_out: bool, count: int, seed: int = evaluate.SEED) -> list[Choice]:
    """Choices whose true caption is kept out of training; "held out": it names a pair that training never shows."""
    rng = random.Random(f"{seed}/choices/{held_out}")
    pairs = [*TRAINING_PAIRS, *NEW * 4] if held_out else TRAINING_PAIRS
    made: list[Choice] = []
    while len(made) < count:
        scene = random_scene(rng, pairs=pairs)
        true = caption(scene, rng)
        if not is_held_out(true) or held_out != any(f"{colour} {shape}" in true for colour, shape in NEW):
            continue
        wrong = {attribute: _wrong(scene, attribute, pairs, rng) for attribute in ATTRIBUTES}
        made.append(Choice(scene, true, wrong))
    return made


def _wrong(scene: Scene, attribute: str, pairs: Sequence[tuple[str, str]], rng: random.Random) -> str:
    while true_of(text := caption(differing(scene, attribute, rng, pairs), rng), scene):
        pass
    return text


def chosen(scorer: Any, asked: Sequence[Choice]) -> dict[str, list[bool]]:
    """For each attribute, and for all of them together, whether the true caption fits each picture best."""
    right: dict[str, list[bool]] = {name: [] for name in (*ATTRIBUTES, "all")}
    for choice in asked:
        image = Image.fromarray(render([choice.scene])[0])
        true, *others = scorer.cosines(image, [choice.true, *choice.wrong.values()])[0].tolist()
        for name, other in zip(choice.wrong, others, strict=True):
            right[name].append(true > other)
        right["all"].append(true > max(others))
    return right


# ------------------------------------------------------------------------------------------------ commands

COUNT = typer.Option(100, help="Pictures of each kind.")


def share(right: Sequence[bool | float]) -> str:
    """How many of 100."""
    return f"{100 * sum(right) / max(len(right), 1):5.1f} %"


def main(model: str = "langevin/shapes-clip", count: int = COUNT) -> None:
    """How often the true caption fits a picture better than one that is wrong in one attribute; and the calibration."""
    from langevin.zoo.calibration import cosines_of, questions
    from langevin.zoo.scoring import Scorer

    scorer = Scorer.load(model)
    for held_out in (False, True):
        right = chosen(scorer, choices(held_out, count))
        words = ", ".join(f"{name} {share(each)}" for name, each in right.items())
        print(f"  {'held-out' if held_out else 'seen'} pairs: {words}", flush=True)
    scenes, true, false = questions(count, "measured")
    cosines = cosines_of(scorer, scenes, true, false).flatten().tolist()
    said, was = np.array([scorer.chance(c) or 0.0 for c in cosines]), np.repeat([1.0, 0.0], len(scenes))
    agreed, brier = share(((said > 0.5) == was).tolist()), ((said - was) ** 2).mean()
    print(f"  a chance over 1/2, or not, is right in {agreed}; Brier score {brier:.3f}")
    for low in np.arange(0, 1, 0.2):
        here = (said >= low) & (said < low + 0.2 + (low > 0.7))
        means = f"said {said[here].mean():.2f}, true {was[here].mean():.2f}" if here.any() else ""
        print(f"  chances of {low:.1f} to {low + 0.2:.1f}: {here.sum()} texts, {means}")


if __name__ == "__main__":
    typer.run(main)
