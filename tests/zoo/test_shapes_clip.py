"""The CLIP in the box: its neighbours and recipe, what it tells apart, and what its chances are worth."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from langevin import zoo
from langevin.checkpoints.errors import CheckpointError
from langevin.zoo import calibration, neighbours, train_clip, world
from langevin.zoo import evaluate_clip as evaluated
from langevin.zoo.scoring import Scorer

BOX = zoo.path("langevin/shapes-clip")


@pytest.fixture(scope="module")
def scorer():
    return Scorer.load("langevin/shapes-clip")


def picture(*things, ground="white"):
    return Image.fromarray(world.render([world.Scene(things, ground)])[0])


CIRCLE = world.Thing("circle", "red", "medium", 18, 32, 10)
STAR = world.Thing("star", "blue", "medium", 46, 32, 10)


# ------------------------------------------------------------------------------------------------ neighbours


@pytest.mark.parametrize("attribute", neighbours.ATTRIBUTES)
def test_a_neighbour_differs_in_one_attribute_alone(attribute):
    rng = random.Random(1)
    for _ in range(200):
        scene = world.random_scene(rng)
        other = neighbours.differing(scene, attribute, rng)
        assert other.background == scene.background
        pairs = list(zip(scene.things, other.things, strict=True))
        changed = {
            name
            for a, b in pairs
            for name in ("colour", "shape", "size")
            if getattr(a, name) != getattr(b, name)
        }  # fmt: skip
        assert changed in ([set()] if attribute == "place" else [{attribute}, set()])
        if not changed:  # the places are others
            assert (other.cell if len(pairs) == 1 else other.relation) != (
                scene.cell if len(pairs) == 1 else scene.relation
            )
        assert all(t.pair not in world.HELD_OUT_PAIRS for t in other.things)
        assert all(at - t.radius >= 1 and at + t.radius <= 63 for t in other.things for at in (t.x, t.y))


def test_nobody_knows_other_attributes():
    with pytest.raises(ValueError, match="no attribute 'taste'; there are: colour, shape, size, place"):
        neighbours.differing(world.random_scene(random.Random(0)), "taste", random.Random(0))


def test_truth_of_many_is_the_truth_of_each():
    rng = random.Random(2)
    scenes = [scene for _ in range(12) for scene in train_clip.group(rng)]
    texts = [neighbours.terse(t) if rng.random() < 0.5 else t for t in (world.caption(s, rng) for s in scenes)]
    every = neighbours.truth(texts, scenes)
    assert every.diagonal().all()
    assert every.sum() > len(scenes)  # terse captions are true of neighbours too
    for n, text in enumerate(texts):
        assert every[n].tolist() == [neighbours.true_of(text, scene) for scene in scenes]


def test_terse_captions_say_neither_size_nor_place():
    said = {
        "a small red star at the top on white": "a red star on white",
        "an orange ring in the bottom left corner on a gray background": "an orange ring on a gray background",
        "there is a large orange cross above a small pink ring": "there is an orange cross above a pink ring",
    }
    assert {text: neighbours.terse(text) for text in said} == said


# ------------------------------------------------------------------------------------------------ the recipe


def test_what_happens_to_be_true_of_another_is_neither_right_nor_wrong():
    true = torch.eye(3, dtype=torch.bool)
    logits = torch.tensor([[2.0, 9.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
    blamed = train_clip.contrast(logits, true)
    true[0, 1] = True
    assert train_clip.contrast(logits, true) < blamed - 1
    logits[0, 1] = -9.0
    assert train_clip.contrast(logits, true) < blamed - 1


def test_patches_know_the_thing_they_lie_on():
    marks = train_clip.patches([world.Scene((CIRCLE, STAR), "white")])[0].view(4, 4, 3)
    assert marks[1:3, :2].flatten(0, 1).tolist() == [[1, 1, 2]] * 4  # red circle of medium size
    assert marks[1:3, 2:].flatten(0, 1).tolist() == [[6, 4, 2]] * 4
    assert not marks[0].any()
    assert not marks[3].any()
    said = train_clip.words([world.Scene((CIRCLE, STAR), "white"), world.Scene((STAR,), "black")])
    assert [[train_clip._WORDS[k] for k in row.nonzero().flatten()] for row in said] == [
        ["red", "blue", "circle", "star", "medium", "white", "two"],
        ["blue", "star", "medium", "black"],
    ]


def test_the_logistic_function_is_found_again():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(4000, generator=generator) * 2 - 1
    came_true = torch.rand(4000, generator=generator) < torch.sigmoid(6 * values - 1)
    found = calibration.logistic(values[came_true], values[~came_true])
    assert found["scale"] == pytest.approx(6, abs=0.6)
    assert found["offset"] == pytest.approx(-1, abs=0.2)


def test_the_recipe_runs_resumes_and_saves_what_the_box_ships(tmp_path, monkeypatch):
    monkeypatch.setattr(train_clip, "SEEING_STEPS", 2)
    monkeypatch.setattr(train_clip, "SEEING_POOL", 16)
    monkeypatch.setattr(train_clip, "POOL", 4)
    monkeypatch.setattr(train_clip, "calibration", lambda folder: calibration.calibration(folder, 10))
    monkeypatch.setattr(train_clip, "SEEING_BATCH", 8)
    for steps in (1, 2):
        train_clip.train(zoo.path("langevin/shapes"), tmp_path, steps=steps, batch=2)
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == 2
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, BOX))
    assert set(ours.pop("calibration")) == set(theirs.pop("calibration")) == {"scale", "offset"}
    assert ours == theirs
    for name in ("preprocessor_config.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (BOX / name).read_bytes(), name


# ------------------------------------------------------------------------------------------------ the model


def test_transformers_loads_it_whole_and_each_tower_alone(scorer):
    import transformers

    whole = transformers.CLIPModel.from_pretrained(BOX, dtype=torch.float32).eval()
    words = transformers.CLIPTextModelWithProjection.from_pretrained(BOX, dtype=torch.float32).eval()
    eyes = transformers.CLIPVisionModelWithProjection.from_pretrained(BOX, dtype=torch.float32).eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(BOX)(["a red circle"], return_tensors="pt")
    pixels = transformers.CLIPImageProcessor.from_pretrained(BOX)(picture(CIRCLE), return_tensors="pt").pixel_values
    with torch.no_grad():
        told = whole(**tokens, pixel_values=pixels)
        text, image = words(**tokens).text_embeds, eyes(pixel_values=pixels).image_embeds
        cosine = torch.nn.functional.cosine_similarity(text, image)
    torch.testing.assert_close(told.logits_per_image[0], cosine * whole.logit_scale.exp(), rtol=1e-4, atol=1e-4)
    assert scorer.cosines(picture(CIRCLE), ["a red circle"])[0, 0] == pytest.approx(cosine.item(), abs=1e-4)
    torch.testing.assert_close(pixels, torch.from_numpy(np.array(picture(CIRCLE))).permute(2, 0, 1)[None] / 127.5 - 1)


@pytest.mark.parametrize("held_out", [False, True])
def test_captions_that_differ_in_one_attribute_are_told_apart(scorer, held_out):
    """A small sample of what ``langevin.zoo.evaluate_clip`` measures; the true figures are in the card."""
    right = evaluated.chosen(scorer, evaluated.choices(held_out, 60))
    for name, least in LEAST.items():
        assert sum(right[name]) >= (least - 0.1 * held_out) * 60, name


LEAST = {"colour": 0.92, "shape": 0.92, "size": 0.92, "place": 0.65, "all": 0.6}


def test_chances_are_what_comes_true(scorer):
    scenes, true, false = calibration.questions(120, "test")
    chances = [[scorer.chance(c) for c in row] for row in calibration.cosines_of(scorer, scenes, true, false).tolist()]
    assert np.mean(chances) == pytest.approx(0.5, abs=0.06)
    assert np.mean(chances[0]) > 0.75
    sure = np.array(chances) > 0.9
    assert sure[0].sum() > 5 * sure[1].sum()


def test_the_best_text_comes_first(scorer):
    texts = ["a red circle and a green star", "a red circle and a blue star", "a green ring"]
    fits = scorer.fits(picture(CIRCLE, STAR), texts)
    assert fits[0].text == texts[1]
    assert fits[-1].text == texts[2]
    assert sum(fit.share for fit in fits) == pytest.approx(1)
    assert fits[0].chance > 0.5 > fits[-1].chance


def test_what_is_no_clip_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no CLIP of both texts and pictures"):
        Scorer.load(zoo.path("langevin/shapes") / "text_encoder")
    with pytest.raises(CheckpointError, match="no folder"):
        Scorer.load(tmp_path / "nowhere")
    shutil.copytree(BOX, tmp_path / "clip")
    config = json.loads((BOX / "config.json").read_text())
    for numbers in (3, {"scale": 1}, {"scale": "1", "offset": 2}):
        (tmp_path / "clip" / "config.json").write_text(json.dumps({**config, "calibration": numbers}))
        with pytest.raises(CheckpointError, match="two numbers, scale and offset, are needed"):
            Scorer.load(tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_text(json.dumps({**config, "calibration": None}))
    assert Scorer.load(tmp_path / "clip").fits(picture(CIRCLE), ["a red circle"])[0].chance is None


def test_texts_without_words_are_refused(scorer):
    for texts in ([], [" "], ["a circle", 3]):
        with pytest.raises(ValueError, match="a text is missing or empty"):
            scorer.cosines(picture(CIRCLE), texts)
