"""What the sisters of langevin/shapes are shown: masks, outlines, and captions that say less."""

import random
from dataclasses import replace

import numpy as np
import pytest

from langevin.zoo import evaluate_tasks, masks, outlines, reader, world


def scenes(count, seed=0, things=None):
    rng = random.Random(seed)
    return [world.random_scene(rng, things) for _ in range(count)]


@pytest.mark.parametrize("kind", masks.KINDS)
def test_masks_are_zeros_and_ones_of_the_picture_s_size(kind):
    rng = random.Random(1)
    made = [masks.random_mask(scene, rng, kind) for scene in scenes(200)]
    assert all(mask.shape == (64, 64) and mask.dtype == np.float32 for mask in made)
    assert all(set(np.unique(mask)) <= {0.0, 1.0} and mask.any() for mask in made)
    share = np.mean([mask.mean() for mask in made])
    low, high = {"thing": (0.1, 0.35), "box": (0.1, 0.35), "half": (0.45, 0.55), "all": (1.0, 1.0)}[kind]
    assert low <= share <= high


def test_an_unknown_kind_of_mask_gets_one_clear_line():
    with pytest.raises(ValueError, match="no kind of mask 'lace'; there are: thing, box, half, all"):
        masks.random_mask(scenes(1)[0], random.Random(0), "lace")


@pytest.mark.parametrize("blob", [False, True])
def test_a_mask_over_a_thing_hides_it_and_nothing_else(blob):
    for scene in scenes(100, 2, things=2):
        thing, other = scene.things
        mask = masks.over(thing, 2, blob=blob)
        mine, its = (world.coverage(t.shape, [t.x], [t.y], [t.radius])[0] > 0.5 for t in (thing, other))
        assert not (mine & (mask == 0)).any()
        if not blob:
            assert not (its & (mask == 1)).any()


def test_outlines_run_along_the_edges():
    made = scenes(60, 3)
    for scene, lines in zip(made, outlines.outlines(made), strict=True):
        assert (lines[..., 0] == lines[..., 1]).all()
        inside = np.zeros((64, 64), bool)
        for thing in scene.things:
            inside |= world.coverage(thing.shape, [thing.x], [thing.y], [thing.radius])[0] > 0.5
        beside = np.zeros_like(inside)
        beside[1:-1, 1:-1] = ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])
        assert (lines[inside & beside] > 0).all()
        deep = np.array([thing.x for thing in scene.things if thing.shape in ("circle", "square")], int)
        rows = np.array([thing.y for thing in scene.things if thing.shape in ("circle", "square")], int)
        assert not lines[rows, deep].any()
        assert 0.01 < (lines[..., 0] > 127).mean() < 0.25


def test_outlines_do_not_tell_colours():
    scene = scenes(1, 4)[0]
    painted = world.Scene(tuple(replace(t, colour="red") for t in scene.things), "white")
    np.testing.assert_array_equal(outlines.outlines([scene]), outlines.outlines([painted]))


def test_things_moved_anywhere_are_whole_and_apart():
    rng = random.Random(5)
    moved = [outlines.anywhere(scene, rng) for scene in scenes(300, 5)]
    readings = [reader.read(picture) for picture in world.render(moved)]
    for scene, reading in zip(moved, readings, strict=True):
        assert len(reading.things) == len(scene.things)
        assert all(any(reader.stands(found, thing) for found in reading.things) for thing in scene.things)
    centres = np.array([thing.x for scene in moved for thing in scene.things])
    assert ((centres > 24) & (centres < 30)).mean() > 0.08  # where no caption puts anything


@pytest.mark.parametrize(
    ("text", "less"),
    [
        ("a small red star left of a ring", "a red shape left of a shape"),
        ("a picture of an orange circle on a white background", "a picture of an orange shape on a white background"),
        ("a large orange cross and a triangle", "an orange shape and a shape"),
        ("a shape", "a shape"),
    ],
)
def test_vague_captions_name_no_shape(text, less):
    assert outlines.vague(text) == less


def test_the_judges_of_the_tasks_know_right_from_wrong():
    """On clean pictures of the world: those asked for pass, those of the neighbour do not."""
    for kind in ("seen", "held out"):
        for hole in evaluate_tasks.holes(kind, 20):
            assert not evaluate_tasks.filled(world.render([hole.scene])[0], hole)
            assert world.is_held_out(hole.text)
    for said in (True, False):
        asked = evaluate_tasks.drawings(said, 30)
        pictures = world.render([drawing.scene for drawing in asked])
        assert all(map(evaluate_tasks.followed, pictures, asked))
        assert not any(map(evaluate_tasks.followed, pictures[1:], asked))
        assert min(evaluate_tasks.overlap(p, d.scene) for p, d in zip(pictures, asked, strict=True)) > 0.75
    hole = evaluate_tasks.holes("seen", 1)[0]
    black = np.zeros((64, 64, 3), np.uint8)
    pasted = evaluate_tasks.paste(black, hole)
    assert evaluate_tasks.spill(pasted, hole).max() == 0
    assert not pasted[hole.mask > 0.5].any()
