"""Instructions in the made-up world: "make the circle blue", "remove the star", and what must come of them.

:func:`random_edit` draws a scene, an instruction and the scene after it; :func:`wanted_edit` reads an instruction;
:func:`apply` says which scene it asks for, given the one before; :func:`carried_out` judges a picture.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from langevin.zoo.reader import Found, Reading, stands
from langevin.zoo.world import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    TRAINING_PAIRS,
    Scene,
    Thing,
    Wanted,
    article,
    is_held_out,
    parse,
    random_scene,
    relation,
)

KINDS = {"recolour": 0.27, "reshape": 0.27, "remove": 0.16, "add": 0.15, "ground": 0.15}
"""Kinds of edits, and how often each is drawn."""

PHRASINGS = {
    "recolour": ("make {it} {new}", "turn {it} {new}", "paint {it} {new}", "change {it} to {new}"),
    "reshape": ("turn {it} into {new}", "make {it} {new}", "change {it} into {new}", "replace {it} with {new}"),
    "remove": ("remove {it}", "delete {it}", "erase {it}", "take {it} away"),
    "add": ("add {new} {place}", "put {new} {place}", "draw {new} {place}"),
    "ground": (
        "make the background {new}",
        "turn the background {new}",
        "paint the background {new}",
        "change the background to {new}",
        "put it on a {new} background",
        "put it on {new}",
    ),
}
OPENINGS = ("", "please ", "now ")
SIDES = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class Edit:
    """A scene, what is asked, and the scene after it."""

    before: Scene
    instruction: str
    after: Scene
    kind: str


@dataclass(frozen=True)
class WantedEdit:
    """What an instruction asks for: ``target`` is the thing that it names, ``new`` a colour, shape or background.

    For "add", ``target`` is the new thing, ``side`` where it is to be, and ``beside`` the thing from which that is
    seen (None: from the only one).
    """

    kind: str
    target: Wanted | None = None
    new: str | None = None
    side: str | None = None
    beside: Wanted | None = None


# ------------------------------------------------------------------------------------------------ drawing edits


def random_edit(rng: random.Random, kind: str | None = None, pairs: Sequence[tuple[str, str]] = TRAINING_PAIRS) -> Edit:
    """Draw an edit whose scenes, before and after, have only things from ``(colour, shape)`` ``pairs``.

    Its instruction may be one that is held out: see :func:`training_edit`.
    """
    kind = kind or rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    if kind == "add":
        return _random_addition(rng, pairs)
    scene = random_scene(rng, pairs=pairs)
    number = rng.randrange(len(scene.things))
    thing, others = scene.things[number], scene.things[:number] + scene.things[number + 1 :]
    taken = {thing.pair, *(other.pair for other in others)}
    things, new, ground = scene.things, "", scene.background
    if kind == "recolour":
        colours = [c for c in COLOURS if (c, thing.shape) in pairs and (c, thing.shape) not in taken]
        new = rng.choice(colours)
        things = _put(scene.things, number, replace(thing, colour=new))
    elif kind == "reshape":
        shape = rng.choice([s for s in SHAPES if (thing.colour, s) in pairs and (thing.colour, s) not in taken])
        things = _put(scene.things, number, replace(thing, shape=shape))
        new = article(shape)
    elif kind == "remove":
        things = others
    elif kind == "ground":
        ground = new = rng.choice([name for name in BACKGROUNDS if name != ground])
    else:
        raise ValueError(f"no kind of edit {kind!r}; there are: {', '.join(KINDS)}")
    text = rng.choice(PHRASINGS[kind]).format(it=_naming(thing, others, rng), new=new)
    return Edit(scene, _opening(rng) + text, Scene(things, ground), kind)


def training_edit(rng: random.Random, kind: str | None = None) -> Edit:
    """An edit that is not held out, for training."""
    while is_held_out((edit := random_edit(rng, kind)).instruction):
        pass
    return edit


def _random_addition(rng: random.Random, pairs: Sequence[tuple[str, str]]) -> Edit:
    """One thing, and a second one beside it."""
    while (side := (scene := random_scene(rng, 2, pairs)).relation) is None:
        pass
    added, first = scene.things
    name = f"{added.colour} {added.shape}"
    new = article(name if added.size == "medium" else f"{added.size} {name}")
    place = POSITIONS[SIDES[side]]
    if rng.random() < 0.5:
        place = f"{rng.choice(RELATIONS[side])} {_naming(first, (added,), rng)}"
    text = rng.choice(PHRASINGS["add"]).format(new=new, place=place)
    return Edit(Scene((first,), scene.background), _opening(rng) + text, scene, "add")


def _put(things: tuple[Thing, ...], number: int, thing: Thing) -> tuple[Thing, ...]:
    return (*things[:number], thing, *things[number + 1 :])


def _opening(rng: random.Random) -> str:
    return rng.choices(OPENINGS, (0.8, 0.1, 0.1))[0]


def _naming(thing: Thing, others: Sequence[Thing], rng: random.Random) -> str:
    """A name that means ``thing`` and none of ``others``."""
    names = [f"the {thing.colour} {thing.shape}"]
    if all(other.shape != thing.shape for other in others):
        names += [f"the {thing.shape}"] * 2
    if all(other.colour != thing.colour for other in others):
        names.append(f"the {thing.colour} shape")
    return rng.choice(names)


# ------------------------------------------------------------------------------------------------ reading instructions

_RECOLOUR = re.compile(rf"(?:{'|'.join(SHAPES)}|shape) (?:to )?({'|'.join(COLOURS)})$")
_RESHAPE = re.compile(rf"(?:into|with|{'|'.join(SHAPES)}|shape) an? ({'|'.join(SHAPES)})$")
_GROUND = re.compile(rf"(?:background (?:to )?|on (?:an? )?)({'|'.join(BACKGROUNDS)})(?: background)?$")


def wanted_edit(instruction: str) -> WantedEdit:
    """Read an instruction of this world.

    Raises:
        ValueError: it is none.
    """
    text = " ".join(instruction.lower().replace("grey", "gray").strip(" .!").split())
    for opening in OPENINGS[1:]:
        text = text.removeprefix(opening)
    verb = text.split(" ")[0]
    if found := _GROUND.search(text):
        return WantedEdit("ground", new=found[1])
    if verb in ("remove", "delete", "erase", "take"):
        return WantedEdit("remove", parse(text).things[0])
    if verb in ("add", "put", "draw"):
        said = parse(text)
        beside = said.things[1] if len(said.things) == 2 else None
        side = said.relation or next((name for name, cell in SIDES.items() if cell == said.cell), None)
        return WantedEdit("add", said.things[0], side=side, beside=beside)
    if found := _RESHAPE.search(text):
        return WantedEdit("reshape", parse(text).things[0], new=found[1])
    if found := _RECOLOUR.search(text):
        return WantedEdit("recolour", parse(text).things[0], new=found[1])
    raise ValueError(f"an instruction of this world recolours, reshapes, removes or adds, this one does not: {text!r}")


# ------------------------------------------------------------------------------------------------ judging


def carried_out(reading: Reading, before: Scene, instruction: str) -> bool:
    """Whether a picture shows the scene ``before`` with the instruction carried out, and nothing else changed.

    Things that stay (recoloured and reshaped ones too) must be where they were: see :func:`.reader.stands`.
    """
    wanted = wanted_edit(instruction)
    if reading.background != (wanted.new if wanted.kind == "ground" else before.background):
        return False
    hoped: list[Thing | None] = []
    for thing in before.things:
        named = wanted.target is not None and wanted.kind != "add" and _means(wanted.target, thing)
        if named and wanted.kind == "remove":
            continue
        if named and wanted.new:
            recolour = wanted.kind == "recolour"
            thing = replace(thing, colour=wanted.new) if recolour else replace(thing, shape=wanted.new)
        hoped.append(thing)
    if wanted.kind == "add":
        hoped.append(None)
    if len(hoped) != len(reading.things):
        return False
    return any(_agree(order, hoped, wanted) for order in permutations(reading.things))


def _means(name: Wanted, thing: Thing) -> bool:
    return name.shape in (None, thing.shape) and name.colour in (None, thing.colour)


def _agree(found: Sequence[Found], hoped: Sequence[Thing | None], wanted: WantedEdit) -> bool:
    for have, want in zip(found, hoped, strict=True):
        if want is not None and not stands(have, want):
            return False
        if want is None and not _added(have, next(thing for thing in hoped if thing is not None), wanted):
            return False
    return True


def _added(found: Found, other: Thing, wanted: WantedEdit) -> bool:
    new = wanted.target
    if new is None or (found.shape, found.colour, found.size) != (new.shape, new.colour, new.size or "medium"):
        return False
    return wanted.side in (None, relation(other.x - found.x, other.y - found.y))
