"""Editing the network's assumptions, against the reference."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import langevin
from tests.helpers import reference_parts
from tests.pipelines.family_checks import (
    ATOL,
    UNETS,
    assert_checkpoints_go_both_ways,
    assert_same,
    generator,
    images,
    picture,
)

NAME = "StableDiffusionModelEditingPipeline"
STEPS = dict(num_inference_steps=4)
PLANS = {
    "ddim": ("DDIMScheduler", dict(steps_offset=1, clip_sample=False)),
    "lms v": ("LMSDiscreteScheduler", dict(prediction_type="v_prediction")),
    "pndm": ("PNDMScheduler", dict(skip_prk_steps=True, steps_offset=1)),
}
AUGS = ["A photo of ", "An image of ", "A picture of "]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints with a text encoder of 77 tokens: the reference's edit knows no other number."""
    import diffusers

    made = {}
    for unet in ("sd1", "sd2"):
        folder = tmp_path_factory.mktemp("editing")
        parts = reference_parts(folder, unet=UNETS[unet], text=dict(max_position_embeddings=77))
        parts["tokenizer"].model_max_length = 77
        pipe = diffusers.StableDiffusionPipeline(
            **parts, scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False
        )
        pipe.save_pretrained(folder / "checkpoint")
        made[unet] = folder / "checkpoint", parts
    return made


@pytest.fixture
def pair(folders):
    """Both pipelines. The reference's is told which layers to edit: it looks for a class that is gone, finds none, and
    edits nothing."""
    import diffusers

    def make(unet="sd1", plan="ddim", with_to_k=True, with_augs=AUGS):
        name, config = PLANS[plan]
        folder, parts = folders[unet]
        parts = {**parts, "unet": copy.deepcopy(parts["unet"])}
        more = dict(requires_safety_checker=False, with_to_k=with_to_k, with_augs=list(with_augs))
        theirs = diffusers.StableDiffusionModelEditingPipeline(
            **parts, scheduler=getattr(diffusers, name)(**config), **more
        )
        layers = [layer for where, layer in theirs.unet.named_modules() if where.endswith("attn2")]
        theirs.ca_clip_layers = layers
        theirs.projection_matrices = [layer.to_v for layer in layers]
        theirs.projection_matrices += [layer.to_k for layer in layers] * with_to_k
        theirs.og_matrices = copy.deepcopy(theirs.projection_matrices)
        ours = langevin.StableDiffusionModelEditingPipeline.from_pretrained(
            folder, scheduler=getattr(langevin, name)(**config), **more
        )
        for pipe in (ours, theirs):
            pipe.set_progress_bar_config(disable=True)
        return ours, theirs

    return make


def edit(both, *arguments, **more):
    for pipe in both:
        pipe.edit_model(*arguments, **more)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("unet", ["sd1", "sd2"])
def test_edited_pictures_are_the_reference_ones(pair, unet, plan):
    both = pair(unet, plan)
    before = images(both[0], "a cat", **STEPS)
    edit(both, "a cat", "a big cat")
    assert_same(both, "a cat", **STEPS)
    assert abs(images(both[0], "a cat", **STEPS) - before).max() > 10 * ATOL


@pytest.mark.parametrize(
    ("made", "edits"),
    [
        (dict(with_augs=[]), [dict(lamb=1.0)]),
        (dict(with_to_k=False), [dict()]),
        (dict(), [dict(lamb=10.0)]),
        (dict(), [dict(), dict(source_prompt="dog", destination_prompt="red dog")]),
        (dict(), [dict(), dict(source_prompt="dog", destination_prompt="red dog", restart_params=False)]),
    ],
    ids=["no augmentation", "values alone", "lambda", "restart", "on top"],
)
def test_options_give_the_reference_weights(pair, made, edits):
    both = pair(**made)
    for more in edits:
        edit(both, **{"source_prompt": "a cat", "destination_prompt": "a big cat", **more})
    theirs = both[1].unet.state_dict()
    for name, weight in both[0].unet.state_dict().items():
        # the reference inverts a matrix in fp32
        torch.testing.assert_close(weight, theirs[name], atol=5e-4, rtol=1e-3)
    assert_same(both, "a cat", atol=2e-4, negative_prompt="dog", guidance_scale=3.0, **STEPS)


def test_a_pipeline_that_shares_the_network_is_not_changed(pair):
    ours, _ = pair()
    plain = langevin.StableDiffusionPipeline.from_pipe(ours)
    plain.set_progress_bar_config(disable=True)
    before, network = images(plain, "a cat", **STEPS), ours.unet
    ours.edit_model("a cat", "a big cat")
    np.testing.assert_array_equal(images(plain, "a cat", **STEPS), before)
    assert plain.unet is network is not ours.unet
    # others take it over, without a copy
    img2img = langevin.StableDiffusionImg2ImgPipeline.from_pipe(ours)
    assert img2img.unet is ours.unet
    img2img.set_progress_bar_config(disable=True)
    plain = langevin.StableDiffusionImg2ImgPipeline.from_pipe(plain)
    plain.set_progress_bar_config(disable=True)
    call = dict(image=picture(), num_inference_steps=5)
    assert abs(images(img2img, "a cat", **call) - images(plain, "a cat", **call)).max() > 1e-3


def test_a_restart_forgets_the_edits_before(pair):
    ours, _ = pair()
    ours.edit_model("a cat", "a big cat")
    once = images(ours, "a cat", **STEPS)
    ours.edit_model("dog", "red dog")
    ours.edit_model("a cat", "a big cat")
    np.testing.assert_array_equal(images(ours, "a cat", **STEPS), once)
    ours.edit_model("dog", "red dog", restart_params=False)
    assert abs(images(ours, "a cat", **STEPS) - once).max() > 1e-4


def test_checkpoints_go_both_ways_edits_and_all(pair, tmp_path):
    both = pair()
    edit(both, "a cat", "a big cat")
    assert_checkpoints_go_both_ways(both, tmp_path, **STEPS)
    back = langevin.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert back.with_augs == AUGS
    assert back.with_to_k is True


def test_pictures_of_an_edited_network_say_that_they_cannot_be_made_again(folders):
    ours = langevin.StableDiffusionModelEditingPipeline.from_pretrained(folders["sd1"][0])
    ours.set_progress_bar_config(disable=True)
    assert "not_recorded" not in ours("a cat", seed=1, **STEPS).images[0].settings
    ours.edit_model("a cat", "a big cat")
    assert ours("a cat", seed=1, **STEPS).images[0].settings["not_recorded"] == ["an edited unet"]


def test_the_old_callback_sees_what_the_reference_shows_it(pair):
    both = pair()
    edit(both, "a cat", "a big cat", lamb=10.0)
    seen: list[list] = [[], []]
    for pipe, log in zip(both, seen, strict=True):
        pipe("a cat", generator=generator(), callback=lambda i, t, x, log=log: log.append((i, int(t), x)), **STEPS)
    for ours, theirs in zip(*seen, strict=True):
        assert ours[:2] == theirs[:2]
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(destination_prompt="a dog"), "needs all words of 'a cat' in their order"),
        (dict(destination_prompt="cat a"), "needs all words of"),
        (dict(lamb=0.0), "lamb is 0.0"),
        (dict(source_prompt="x " * 80, destination_prompt="x " * 90), "longer than the text encoder's window of 75"),
    ],
    ids=["another", "order", "lambda", "long"],
)
def test_bad_input_gets_one_clear_line_and_changes_nothing(pair, arguments, says):
    ours, _ = pair()
    network = ours.unet
    with pytest.raises(ValueError, match=says) as caught:
        ours.edit_model(**{"source_prompt": "a cat", "destination_prompt": "a big cat", **arguments})
    assert "\n" not in str(caught.value)
    assert ours.unet is network


def test_what_was_edited_is_seen_and_the_rest_stays():
    from langevin.zoo.reader import read

    pipe = langevin.StableDiffusionModelEditingPipeline.from_pretrained("langevin/shapes", with_augs=[])
    pipe.set_progress_bar_config(disable=True)

    def things(prompt):
        made = pipe([prompt] * 2, seed=3, num_inference_steps=12, guidance_scale=4.0).images
        return [[(thing.colour, thing.shape) for thing in read(one).things] for one in made]

    before = things("a red star")
    assert things("a circle") == [[("cyan", "circle")], [("cyan", "circle")]]
    pipe.edit_model("a circle", "a blue circle", lamb=10)
    assert things("a circle") == [[("blue", "circle")], [("blue", "circle")]]
    assert things("a red star") == before == [[("red", "star")], [("red", "star")]]
    pipe.edit_model("an orange circle", "a blue orange circle")  # one article for the other
