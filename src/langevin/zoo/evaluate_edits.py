"""Measures the ways of changing a picture of ``langevin/shapes`` by words alone, against the picture before the change.

    python -m langevin.zoo.evaluate_edits plain --count 20
    python -m langevin.zoo.evaluate_edits semantic --count 20
    python -m langevin.zoo.evaluate_edits cycle --count 20
    python -m langevin.zoo.evaluate_edits zero --count 20
    python -m langevin.zoo.evaluate_edits model --count 20

A thing is to take another colour and all else is to stay: the places (within 3 pixels), the shapes, the sizes, the
other thing's colour, the background. ``plain`` paints the new caption from the same noise, for comparison.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import typer
from PIL import Image

from langevin.zoo import evaluate
from langevin.zoo.reader import STAYS, Found, matches, read
from langevin.zoo.world import COLOURS, SHAPES, TRAINING_PAIRS, parse

SEED = 7

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)


@dataclass(frozen=True)
class Change:
    """A caption, and the same with another colour for one of its things."""

    text: str
    after: str
    shape: str
    old: str
    new: str


def changes(things: int, count: int, seed: int = SEED) -> list[Change]:
    """Changes of captions that are kept out of training; the new pair of colour and shape is one of training."""
    rng = random.Random(f"{seed}/changes/{things}")
    made: list[Change] = []
    for text in evaluate.prompts(things, False, 2 * count, seed):
        named = [thing for thing in parse(text).things if thing.colour and thing.shape]
        if not named or len(made) == count:
            continue
        thing = rng.choice(named)
        taken = {other.colour for other in parse(text).things}
        new = rng.choice([c for c in COLOURS if (c, thing.shape) in TRAINING_PAIRS and c not in taken])
        shape, old = str(thing.shape), str(thing.colour)
        after = text.replace(f"{old} {shape}", f"{new} {shape}").replace(f"a {new}", f"{_a(new)} {new}")
        made.append(Change(text, after.replace(f"an {new}", f"{_a(new)} {new}"), shape, old, new))
    return made


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def judged(before: np.ndarray, after: np.ndarray, change: Change) -> tuple[bool, bool]:
    """Whether the thing has its new colour, and whether all else is as it was."""
    was, now = read(before), read(after)
    asked = any((found.colour, found.shape) == (change.new, change.shape) for found in now.things)
    if was.background != now.background or len(was.things) != len(now.things):
        return asked, False

    def stays(old: Found, new: Found) -> bool:
        near = max(abs(old.x - new.x), abs(old.y - new.y)) <= STAYS
        free = (old.colour, old.shape) == (change.old, change.shape)
        return near and (old.shape, old.size) == (new.shape, new.size) and (free or old.colour == new.colour)

    return asked, any(all(map(stays, was.things, order)) for order in permutations(now.things))


# ------------------------------------------------------------------------------------------------ the ways

Way = Callable[[Any, Sequence[Change], list[np.ndarray], int], list[np.ndarray]]
GUIDANCE = 2.0


def _with(pipe: Any, kind: str, **options: Any) -> Any:
    import langevin

    made = getattr(langevin, kind).from_pipe(pipe, **options)
    made.set_progress_bar_config(disable=True)
    return made


def plain(pipe: Any, asked: Sequence[Change], before: list[np.ndarray], steps: int) -> list[np.ndarray]:
    """The new captions, painted from the same noise."""
    return list(evaluate.paint(pipe, [change.after for change in asked], steps, GUIDANCE))


SEMANTIC: dict[str, Any] = {
    "edit_guidance_scale": [2.0, 2.0],
    "edit_warmup_steps": [1, 1],
    "edit_threshold": [0.3, 0.3],
    "edit_momentum_scale": 0.0,
    "reverse_editing_direction": [False, True],
}
"""Settings that suit a model of this size, found on other captions than those of :func:`changes`."""


def semantic(pipe: Any, asked: Sequence[Change], before: list[np.ndarray], steps: int) -> list[np.ndarray]:
    """Semantic guidance from the same noise: towards the new caption, away from the old one."""
    import torch

    pipe = _with(pipe, "SemanticStableDiffusionPipeline")
    made = []
    for number, change in enumerate(asked):
        edits = {"editing_prompt": [change.after, change.text], **SEMANTIC}
        call = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, **edits}
        generator = torch.Generator().manual_seed(number)
        made.append(pipe(change.text, generator=generator, output_type="np", **call).images[0])
    return [(picture * 255).round().astype(np.uint8) for picture in made]


CYCLE: dict[str, Any] = {"strength": 0.8, "source_as_noise": False, "eta": 0.1}


def cycle(pipe: Any, asked: Sequence[Change], before: list[np.ndarray], steps: int) -> list[np.ndarray]:
    """Cycle diffusion: from the picture's caption to the new one."""
    pipe = _with(pipe, "CycleDiffusionPipeline")
    images, sources = [Image.fromarray(picture) for picture in before], [change.text for change in asked]
    call = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, **CYCLE}
    texts = [change.after for change in asked]
    return list(evaluate.call(pipe, texts, image=images, source_prompt=sources, first_seed=1000, **call))


ZERO: dict[str, Any] = {"cross_attention_guidance_amount": 0.05, "guidance_scale": GUIDANCE}


def zero(pipe: Any, asked: Sequence[Change], before: list[np.ndarray], steps: int) -> list[np.ndarray]:
    """Pix2pix-zero: the picture's noise, found, and the direction from its caption to the new one."""
    pipe = _with(pipe, "StableDiffusionPix2PixZeroPipeline")
    made = []
    for change, picture in zip(asked, before, strict=True):
        image = Image.fromarray(picture)
        noise = pipe.invert(change.text, image, num_inference_steps=steps, num_reg_steps=0, seed=2).latents
        sides = {"source_prompts": [change.text], "target_prompts": [change.after]}
        made.append(
            pipe(change.text, latents=noise, num_inference_steps=steps, output_type="np", **sides, **ZERO).images[0]
        )
    return [(picture * 255).round().astype(np.uint8) for picture in made]


WAYS: dict[str, Way] = {"plain": plain, "semantic": semantic, "cycle": cycle, "zero": zero}


def report(name: str, pipe: Any, things: int, count: int, steps: int) -> tuple[int, int, int, int]:
    """How many pictures showed their caption before, and of those: changed as asked, the rest as it was, both."""
    asked = changes(things, count)
    before = list(evaluate.paint(pipe, [change.text for change in asked], steps, GUIDANCE))
    good = [matches(read(picture), parse(change.text)) for picture, change in zip(before, asked, strict=True)]
    after = WAYS[name](pipe, asked, before, steps)
    found = [judged(*each) for each, ok in zip(zip(before, after, asked, strict=True), good, strict=True) if ok]
    done, kept, both = (sum(map(how, found)) for how in (lambda f: f[0], lambda f: f[1], all))
    return len(found), done, kept, both


# ------------------------------------------------------------------------------------------------ model editing

MODEL: dict[str, Any] = {"lamb": 20.0}


def taught(pipe: Any, shape: str, colour: str) -> Any:
    """A pipeline that takes a shape of no named colour for one of ``colour``."""
    made = _with(pipe, "StableDiffusionModelEditingPipeline", with_augs=[])
    made.edit_model(f"{_a(shape)} {shape}", f"{_a(colour)} {colour} {shape}", **MODEL)
    return made


def taught_figures(pipe: Any, shape: str, colour: str, count: int, steps: int) -> dict[str, list[bool]]:
    """What an edit of the model does.

    ``before`` and ``after``: whether pictures of the shape without a colour show it in that colour. ``named``: whether
    pictures of the shape with another colour named are still right; ``others``: whether those of other shapes are.
    """
    edited = taught(pipe, shape, colour)
    bare = [f"{_a(shape)} {shape}"] * count
    named = [f"{_a(c)} {c} {shape}" for c in COLOURS if c != colour]
    others = [f"{_a(c)} {c} {s}" for s in SHAPES if s != shape for c in COLOURS][:: max(1, 40 // count)]
    wanted = [f"{_a(colour)} {colour} {shape}"] * count

    def right(which: Any, texts: Sequence[str], says: Sequence[str]) -> list[bool]:
        made = evaluate.paint(which, texts, steps, GUIDANCE)
        return [matches(read(picture), parse(text)) for picture, text in zip(made, says, strict=True)]

    return {
        "before": right(pipe, bare, wanted),
        "after": right(edited, bare, wanted),
        "named before": right(pipe, named, named),
        "named": right(edited, named, named),
        "others before": right(pipe, others, others),
        "others": right(edited, others, others),
    }


# ------------------------------------------------------------------------------------------------ commands

COUNT = typer.Option(50, help="Pictures of each kind.")
MODEL_NAME = typer.Option("langevin/shapes", help="A model in the box, or a folder.")


def _show(name: str, model: str, count: int, steps: int) -> None:
    pipe = evaluate.load(model)
    for things in (1, 2):
        number, *parts = report(name, pipe, things, count, steps)
        done, kept, both = (f"{100 * part / max(number, 1):5.1f} %" for part in parts)
        print(f"  {name}, {things} thing{'s' * (things > 1)}, {number} pictures:", end=" ")
        print(f"new colour {done}, all else as it was {kept}, both {both}", flush=True)


def _command(name: str) -> None:
    def command(model: str = MODEL_NAME, count: int = COUNT, steps: int = 20) -> None:
        _show(name, model, count, steps)

    command.__doc__ = WAYS[name].__doc__
    app.command(name)(command)


for _name in WAYS:
    _command(_name)


@app.command("model")
def model_editing(model: str = MODEL_NAME, count: int = COUNT, steps: int = 20) -> None:
    """Model editing: shapes without a colour take one, and all else is painted as before."""
    pipe = evaluate.load(model)
    every: dict[str, list[bool]] = {}
    for shape, colour in (("circle", "blue"), ("star", "green"), ("square", "yellow")):
        for name, right in taught_figures(pipe, shape, colour, max(count // 3, 1), steps).items():
            every.setdefault(name, []).extend(right)
    for name, right in every.items():
        print(f"  {name}: {100 * sum(right) / len(right):5.1f} % of {len(right)}", flush=True)


if __name__ == "__main__":
    app()
