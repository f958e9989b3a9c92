"""Measures the sisters of ``langevin/shapes``: inpainting, instructions, outlines.

    python -m langevin.zoo.evaluate_tasks inpainting --count 100
    python -m langevin.zoo.evaluate_tasks instruct --count 60
    python -m langevin.zoo.evaluate_tasks outline --count 100
    python -m langevin.zoo.evaluate_tasks attention --count 100

Captions and instructions are kept out of training, as in ``evaluate.py``; "held out" again means that a pair of
colour and shape takes part that no training picture shows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import typer
from PIL import Image

from langevin.zoo import evaluate
from langevin.zoo.edits import KINDS, Edit, carried_out, random_edit
from langevin.zoo.masks import over
from langevin.zoo.outlines import anywhere, outlines, vague
from langevin.zoo.reader import Found, foreground, matches, read, stands
from langevin.zoo.world import (
    HELD_OUT_PAIRS,
    SHAPES,
    SIDE,
    TRAINING_PAIRS,
    Scene,
    Thing,
    caption,
    coverage,
    is_held_out,
    listing,
    parse,
    random_scene,
    render,
)

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)
NEW = sorted(HELD_OUT_PAIRS)
MARGIN = 6.0
"""Between a thing and the edge of the mask over it, in pixels."""


# ------------------------------------------------------------------------------------------------ inpainting


@dataclass(frozen=True)
class Hole:
    """A scene, a mask (64, 64; 1 is painted anew) and the caption of what there is to be."""

    scene: Scene
    mask: np.ndarray
    text: str


def holes(kind: str, count: int, seed: int = evaluate.SEED) -> list[Hole]:
    """One of two things is masked; the caption asks for another there (``seen``, ``held out``) or none (``empty``)."""
    rng = random.Random(f"{seed}/holes/{kind}")
    made: list[Hole] = []
    while len(made) < count:
        scene = random_scene(rng, 2)
        number = rng.randrange(2)
        thing, other = scene.things[number], scene.things[1 - number]
        colour, shape = rng.choice(NEW if kind == "held out" else TRAINING_PAIRS)
        things = [other, other]
        things[number] = replace(thing, colour=colour, shape=shape)
        wanted = Scene((other,) if kind == "empty" else tuple(things), scene.background)
        text = caption(wanted, rng)
        if is_held_out(text) and (kind == "empty" or (colour, shape) not in (thing.pair, other.pair)):
            made.append(Hole(scene, over(thing, MARGIN), text))
    return made


def inpaint(pipe: Any, asked: Sequence[Hole], **arguments: Any) -> list[np.ndarray]:
    """What the pipeline paints, (64, 64, 3) uint8 each."""
    images = [Image.fromarray(picture) for picture in render([hole.scene for hole in asked])]
    masks = [Image.fromarray((hole.mask * 255).astype(np.uint8)) for hole in asked]
    return list(evaluate.call(pipe, [hole.text for hole in asked], image=images, mask_image=masks, **arguments))


def paste(picture: np.ndarray, hole: Hole) -> np.ndarray:
    """The scene's own picture with the part under the mask from ``picture``."""
    return np.where(hole.mask[..., None] > 0.5, picture, render([hole.scene])[0])


def filled(picture: np.ndarray, hole: Hole) -> bool:
    """Whether a picture (or what it is after :func:`paste`) shows exactly what the caption says."""
    return matches(read(picture), parse(hole.text))


def spill(picture: np.ndarray, hole: Hole) -> np.ndarray:
    """Differences, in 0..255, between picture and scene outside the mask."""
    apart = np.abs(picture.astype(int) - render([hole.scene])[0].astype(int))
    return apart[hole.mask < 0.5]


# ------------------------------------------------------------------------------------------------ instructions


def orders(kind: str, held_out: bool, count: int, seed: int = evaluate.SEED) -> list[Edit]:
    """Edits of a kind whose instruction is held out, or that have a held-out pair before or after them."""
    rng = random.Random(f"{seed}/orders/{kind}/{held_out}")
    made: list[Edit] = []
    while len(made) < count:
        edit = random_edit(rng, kind, [*TRAINING_PAIRS, *NEW * 4] if held_out else TRAINING_PAIRS)
        things = edit.before.things + edit.after.things
        if any(thing.pair in HELD_OUT_PAIRS for thing in things) if held_out else is_held_out(edit.instruction):
            made.append(edit)
    return made


def edited(pipe: Any, asked: Sequence[Edit], **arguments: Any) -> list[np.ndarray]:
    """What the pipeline makes of the scenes, (64, 64, 3) uint8 each."""
    images = [Image.fromarray(picture) for picture in render([edit.before for edit in asked])]
    return list(evaluate.call(pipe, [edit.instruction for edit in asked], image=images, **arguments))


def obeyed(pictures: Sequence[np.ndarray], asked: Sequence[Edit]) -> list[bool]:
    """Whether each instruction was carried out with all else left as it was."""
    pairs = zip(pictures, asked, strict=True)
    return [carried_out(read(picture), edit.before, edit.instruction) for picture, edit in pairs]


# ------------------------------------------------------------------------------------------------ outlines


@dataclass(frozen=True)
class Drawing:
    """A scene whose outlines are given, and the caption that is said with them."""

    scene: Scene
    text: str


def drawings(said: bool, count: int, seed: int = evaluate.SEED) -> list[Drawing]:
    """Scenes with their things anywhere, and captions: whole ones (``said``), or such that name no shape."""
    rng = random.Random(f"{seed}/drawings")
    made: list[Drawing] = []
    while len(made) < count:
        scene = anywhere(random_scene(rng), rng)
        text = caption(scene, rng)
        if is_held_out(text):
            made.append(Drawing(scene, text if said else vague(text)))
    return made


def hints(asked: Sequence[Drawing]) -> list[Image.Image]:
    """The outlines as pictures, white on black."""
    return [Image.fromarray(lines) for lines in outlines([drawing.scene for drawing in asked])]


def overlap(picture: np.ndarray, scene: Scene) -> float:
    """Shared over joint area of what a picture shows and what a scene's things cover."""
    inside = np.zeros((SIDE, SIDE), bool)
    for thing in scene.things:
        inside |= coverage(thing.shape, *(np.array([v]) for v in (thing.x, thing.y, thing.radius)))[0] > 0.5
    shown = foreground(picture)
    return float((shown & inside).sum() / (shown | inside).sum())


def followed(picture: np.ndarray, drawing: Drawing) -> bool:
    """Whether a picture shows the scene's things and no other, in the shapes, colours and places asked for.

    What the caption does not say about colours and the background is free.
    """
    reading, said = read(picture), parse(drawing.text)
    if reading.background is None or said.background not in (None, reading.background):
        return False
    colours_said = all(wanted.colour for wanted in said.things)

    def fits(found: Found, thing: Thing) -> bool:
        return stands(found if colours_said else replace(found, colour=found.colour and thing.colour), thing)

    orders = permutations(drawing.scene.things)
    return any(len(order) == len(reading.things) and all(map(fits, reading.things, order)) for order in orders)


# ------------------------------------------------------------------------------------------------ two things named

EXCITED: dict[str, Any] = {"scale_factor": 5, "max_iter_to_alter": 12, "thresholds": {}, "attn_res": (8, 8)}
"""Settings of :class:`langevin.AttendAndExcite` that suit 20 steps of a model of this size."""


def couples(held_out: bool, count: int, seed: int = evaluate.SEED) -> list[str]:
    """Captions of two things, "A and B", that are kept out of training."""
    rng = random.Random(f"{seed}/two/{held_out}")
    texts: list[str] = []
    while len(texts) < count:
        text = listing(random_scene(rng, 2, [*TRAINING_PAIRS, *NEW * 4] if held_out else TRAINING_PAIRS), rng)
        if is_held_out(text) and held_out == any(f"{colour} {shape}" in text for colour, shape in NEW):
            texts.append(text)
    return texts


def shape_tokens(tokenizer: Any, text: str) -> list[int]:
    """Which of a text's tokens are the words for shapes."""
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
    return [k for k, piece in enumerate(pieces) if piece.removesuffix("</w>") in SHAPES]


def excited(pipe: Any, texts: Sequence[str], batch: int = 25, **arguments: Any) -> list[np.ndarray]:
    """Pictures (64, 64, 3) uint8 of ``texts``, from the same noise as :func:`.evaluate.paint`, attended and excited."""
    from langevin import AttendAndExcite

    made: list[np.ndarray] = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        guider = AttendAndExcite([shape_tokens(pipe.tokenizer, text) for text in part], **EXCITED)
        made += evaluate.call(pipe, part, batch, first_seed=start, guiders=(guider,), **arguments)
    return made


def both_appear(picture: np.ndarray, text: str) -> bool:
    """Whether each thing that the text names is in the picture, in its colour."""
    shown = [(found.colour, found.shape) for found in read(picture).things]
    return all((wanted.colour, wanted.shape) in shown for wanted in parse(text).things)


# ------------------------------------------------------------------------------------------------ commands

COUNT = typer.Option(100, help="Pictures of each kind.")


def _share(right: Sequence[bool]) -> str:
    return f"{100 * sum(right) / len(right):5.1f} %"


@app.command()
def inpainting(model: str = "langevin/shapes-inpainting", count: int = COUNT, steps: int = 20) -> None:
    """How often what was asked for appears in the hole, and what happens outside it."""
    report_inpainting(evaluate.load(model), count, steps)


def report_inpainting(pipe: Any, count: int, steps: int, guidance: Sequence[float] = (1.0, 1.5, 2.0, 3.0, 5.0)) -> None:
    """Print the figures of the card."""
    for kind in ("seen", "held out", "empty"):
        asked = holes(kind, count)
        for scale in guidance:
            pictures = inpaint(pipe, asked, num_inference_steps=steps, guidance_scale=scale)
            pairs = list(zip(pictures, asked, strict=True))
            pasted = [paste(*pair) for pair in pairs]
            right = [filled(picture, hole) for picture, hole in zip(pasted, asked, strict=True)]
            apart = np.concatenate([spill(*pair).ravel() for pair in pairs])
            after = max(int(spill(picture, hole).max()) for picture, hole in zip(pasted, asked, strict=True))
            painted = _share([filled(*pair) for pair in pairs])
            outside = f"mean {apart.mean():.2f}, 99 % below {np.percentile(apart, 99):.0f}, max {apart.max()}"
            print(f"  {kind}, guidance {scale:g}: {_share(right)}, before pasting {painted};", end=" ")
            print(f"differences outside the mask: {outside}; after pasting {after}", flush=True)


@app.command()
def instruct(model: str = "langevin/shapes-instruct", count: int = COUNT, steps: int = 20) -> None:
    """How often an instruction is carried out with all else left as it was."""
    report_instruct(evaluate.load(model), count, steps)


def report_instruct(
    pipe: Any,
    count: int,
    steps: int,
    scales: Sequence[tuple[float, float]] = (
        (1.5, 1.5),
        (1.5, 1.0),
        (2.0, 1.0),
        (2.0, 1.5),
        (3.0, 1.0),
        (3.0, 1.5),
        (7.5, 1.5),
    ),
) -> None:
    """Print the figures of the card, for pairs of ``guidance_scale`` and ``image_guidance_scale``."""
    for guidance, image_guidance in scales:
        call = {"guidance_scale": guidance, "image_guidance_scale": image_guidance, "num_inference_steps": steps}
        for held_out in (False, True):
            parts, every = [], []
            for kind in KINDS:
                asked = orders(kind, held_out, count)
                right = obeyed(edited(pipe, asked, **call), asked)
                every += right
                parts.append(f"{kind} {_share(right)}")
            pairs = "held-out" if held_out else "seen"
            print(
                f"  {guidance:g} x {image_guidance:g}, {pairs:8s} pairs: {_share(every)} ({', '.join(parts)})",
                flush=True,
            )


@app.command()
def outline(network: str = "langevin/shapes-outline", count: int = COUNT, steps: int = 20) -> None:
    """How well outlines are followed, beside pictures of the same captions and seeds without them."""
    from langevin import ControlNetModel, StableDiffusionControlNetPipeline

    control = ControlNetModel.from_pretrained(network)
    plain = evaluate.load("langevin/shapes")
    pipe = StableDiffusionControlNetPipeline(**plain.components, controlnet=control)
    pipe.set_progress_bar_config(disable=True)
    report_outline(pipe, plain, count, steps)


def report_outline(pipe: Any, plain: Any, count: int, steps: int, guidance: Sequence[float] = (1.0, 2.0, 3.0)) -> None:
    """Print the figures of the card."""
    for said in (True, False):
        asked = drawings(said, count)
        texts = [drawing.text for drawing in asked]
        for scale in guidance:
            call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale}
            rows = {
                "with": evaluate.call(pipe, texts, image=hints(asked), **call),
                "without": evaluate.call(plain, texts, **call),
            }
            for name, pictures in rows.items():
                pairs = list(zip(pictures, asked, strict=True))
                shared = np.mean([overlap(picture, drawing.scene) for picture, drawing in pairs])
                right = _share([followed(*pair) for pair in pairs])
                shapes = "said" if said else "unsaid"
                print(f"  shapes {shapes}, guidance {scale:g}, {name} outlines:", end=" ")
                print(f"overlap {shared:.3f}, as asked {right}", flush=True)


@app.command()
def attention(model: str = "langevin/shapes-attention", count: int = COUNT, steps: int = 20) -> None:
    """How often both things of a caption appear, beside pictures of the same seeds with attend-and-excite."""
    report_attention(evaluate.load(model), count, steps)


def report_attention(pipe: Any, count: int, steps: int, guidance: Sequence[float] = (1.0, 2.0, 3.0)) -> None:
    """Print the figures of the card."""
    for held_out in (False, True):
        texts = couples(held_out, count)
        for scale in guidance:
            call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale}
            rows = {"plain": evaluate.call(pipe, texts, **call), "excited": excited(pipe, texts, **call)}
            both = {
                name: [both_appear(picture, text) for picture, text in zip(pictures, texts, strict=True)]
                for name, pictures in rows.items()
            }
            won = sum(after and not before for before, after in zip(*both.values(), strict=True))
            lost = sum(before and not after for before, after in zip(*both.values(), strict=True))
            pairs = "held-out" if held_out else "seen"
            print(f"  {pairs:8s} pairs, guidance {scale:g}: both appear in {_share(both['plain'])}", end=", ")
            print(f"attended and excited {_share(both['excited'])} ({won} won, {lost} lost)", flush=True)


if __name__ == "__main__":
    app()
