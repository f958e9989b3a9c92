"""Instructions of the made-up world: drawn, read, and judged."""

import random
from dataclasses import replace

import pytest

from langevin.zoo import edits, world
from langevin.zoo.reader import read
from langevin.zoo.world import Scene, Thing, Wanted

CIRCLE = Thing("circle", "red", "medium", 17.0, 32.0, 10.0)
STAR = Thing("star", "blue", "medium", 47.0, 32.0, 10.0)
BOTH = Scene((CIRCLE, STAR), "black")


def drawn(count, seed=0, **options):
    rng = random.Random(seed)
    return [edits.random_edit(rng, **options) for _ in range(count)]


def carried_out(before, instruction, after):
    return edits.carried_out(read(world.render([after])[0]), before, instruction)


def test_same_seed_same_edits():
    assert drawn(30, 4) == drawn(30, 4)
    assert drawn(30, 4) != drawn(30, 5)


@pytest.mark.parametrize("kind", edits.KINDS)
def test_an_edit_s_own_picture_carries_it_out_and_the_one_before_does_not(kind):
    for edit in drawn(60, 1, kind=kind):
        assert edits.wanted_edit(edit.instruction).kind == edit.kind == kind
        assert carried_out(edit.before, edit.instruction, edit.after), edit
        assert not carried_out(edit.before, edit.instruction, edit.before), edit


def test_instructions_mean_one_thing_only():
    for edit in drawn(500, 2):
        target = edits.wanted_edit(edit.instruction).target
        if edit.kind in ("recolour", "reshape", "remove"):
            fits = [
                t for t in edit.before.things if target.shape in (None, t.shape) and target.colour in (None, t.colour)
            ]
            assert len(fits) == 1, edit


def test_training_has_no_held_out_pair_and_no_held_out_instruction():
    rng = random.Random(3)
    for _ in range(1500):
        edit = edits.training_edit(rng)
        assert not world.is_held_out(edit.instruction)
        assert not any(thing.pair in world.HELD_OUT_PAIRS for thing in edit.before.things + edit.after.things)


def test_some_instructions_of_every_kind_are_held_out():
    for kind in edits.KINDS:
        assert any(world.is_held_out(edit.instruction) for edit in drawn(400, 5, kind=kind)), kind


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("make the circle blue", edits.WantedEdit("recolour", Wanted("circle"), "blue")),
        ("Change the red star to pink.", edits.WantedEdit("recolour", Wanted("star", "red"), "pink")),
        ("make the star a square", edits.WantedEdit("reshape", Wanted("star"), "square")),
        ("now replace the red shape with a ring", edits.WantedEdit("reshape", Wanted(None, "red"), "ring")),
        ("please take the cross away", edits.WantedEdit("remove", Wanted("cross"))),
        ("put it on a grey background", edits.WantedEdit("ground", new="gray")),
        ("make the background white", edits.WantedEdit("ground", new="white")),
        (
            "add a small pink ring to the left of the star",
            edits.WantedEdit("add", Wanted("ring", "pink", "small"), side="left", beside=Wanted("star")),
        ),
        ("draw a red circle at the top", edits.WantedEdit("add", Wanted("circle", "red"), side="above")),
    ],
)
def test_instructions_are_read(text, wanted):
    assert edits.wanted_edit(text) == wanted


def test_what_is_no_instruction_gets_one_clear_line():
    with pytest.raises(ValueError, match="this one does not: 'sing a song'"):
        edits.wanted_edit("Sing a song")
    with pytest.raises(ValueError, match="no kind of edit 'melt'; there are: recolour, "):
        edits.random_edit(random.Random(0), "melt")


@pytest.mark.parametrize(
    "after",
    [
        Scene((CIRCLE, STAR), "black"),  # nothing done
        Scene((replace(CIRCLE, colour="green"), replace(STAR, colour="pink")), "black"),  # bystander repainted
        Scene((replace(CIRCLE, colour="green"), replace(STAR, y=40.0)), "black"),  # bystander moved
        Scene((replace(CIRCLE, colour="green", y=40.0), STAR), "black"),  # the thing itself moved
        Scene((replace(CIRCLE, colour="green"),), "black"),  # bystander gone
        Scene((replace(CIRCLE, colour="green"), STAR), "white"),  # other background
        Scene((replace(CIRCLE, colour="green", shape="square"), STAR), "black"),  # other shape
    ],
)
def test_doing_anything_else_is_not_carrying_out(after):
    right = Scene((replace(CIRCLE, colour="green"), STAR), "black")
    assert carried_out(BOTH, "make the circle green", right)
    assert not carried_out(BOTH, "make the circle green", after)


def test_an_added_thing_must_be_on_its_side():
    before = Scene((STAR,), "black")
    assert carried_out(before, "add a red circle on the left", BOTH)
    assert not carried_out(before, "add a red circle on the right", BOTH)
    assert not carried_out(before, "add a green circle on the left", BOTH)
    assert not carried_out(before, "add a large red circle on the left", BOTH)
