"""Pictures changed by words alone: what is asked for changes, and the rest stays as it was before.

Small samples of what ``langevin.zoo.evaluate_edits`` measures; the true figures are in the card of langevin/shapes.
"""

from __future__ import annotations

import pytest

from langevin.zoo import evaluate, world
from langevin.zoo import evaluate_edits as edits

STEPS = 12


@pytest.fixture(scope="module")
def pipe():
    return evaluate.load("langevin/shapes")


def test_changes_name_another_colour_for_one_thing():
    for change in edits.changes(2, 40):
        was, now = world.parse(change.text), world.parse(change.after)
        before, after = ([(thing.colour, thing.shape) for thing in said.things] for said in (was, now))
        assert sorted(set(before) - set(after)) == [(change.old, change.shape)]
        assert sorted(set(after) - set(before)) == [(change.new, change.shape)]
        assert (was.relation, was.background) == (now.relation, now.background)
        assert "a orange" not in change.after
        assert not any(f"an {colour}" in change.after for colour in world.COLOURS if colour != "orange")


def test_what_changed_is_read_from_the_pictures():
    change = edits.changes(1, 1)[0]
    thing = world.Thing(change.shape, change.old, "medium", 30, 30, 10)

    def picture(*things, ground="white"):
        return world.render([world.Scene(things, ground)])[0]

    def of(**other):
        return world.Thing(**{**vars(thing), **other})

    before = picture(thing)
    assert edits.judged(before, picture(of(colour=change.new)), change) == (True, True)
    assert edits.judged(before, before, change) == (False, True)
    assert edits.judged(before, picture(of(colour=change.new, x=40)), change) == (True, False)
    assert edits.judged(before, picture(of(colour=change.new), ground="black"), change) == (True, False)
    assert edits.judged(before, picture(of(colour=change.new, radius=15)), change) == (True, False)


@pytest.mark.parametrize("way", ["semantic", "cycle", "zero"])
def test_the_thing_changes_and_the_rest_stays(pipe, way):
    number, done, kept, both = edits.report(way, pipe, 1, 6, STEPS)
    assert number >= 5
    assert done >= 0.8 * number
    assert kept >= both >= 0.4 * number


def test_a_model_takes_a_shape_for_one_of_a_colour_and_paints_the_rest_as_before(pipe):
    right = edits.taught_figures(pipe, "circle", "blue", 6, STEPS)
    share = {name: sum(each) / len(each) for name, each in right.items()}
    assert share["before"] <= 0.4
    assert share["after"] >= 0.6
    assert share["named"] >= share["named before"] - 0.3
    assert share["others"] >= share["others before"] - 0.15
