"""CycleDiffusion against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin import CycleNoise
from tests.pipelines.family_checks import (
    assert_checkpoints_go_both_ways,
    assert_same,
    generator,
    images,
    picture,
    pil,
)

NAME = "CycleDiffusionPipeline"
CALL = dict(source_prompt="a dog", image=picture(), num_inference_steps=6)
PLANS = {
    "leading": dict(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False, set_alpha_to_one=False),
    "no offset": dict(clip_sample=False, set_alpha_to_one=False),
    "old config": dict(set_alpha_to_one=False),
    "trailing": dict(timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "v": dict(prediction_type="v_prediction", steps_offset=1, clip_sample=False, set_alpha_to_one=False),
    "v trailing": dict(
        prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False
    ),
}


@pytest.fixture
def pair(twins):
    def make(plan="leading", **options):
        return twins(NAME, scheduler=("DDIMScheduler", PLANS[plan]), **options)

    return make


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("unet", ["sd1", "sd2"])
def test_pictures_are_the_reference_ones(pair, unet, plan):
    steps = {"num_inference_steps": 4} if plan == "old config" else {}
    assert_same(pair(plan, unet=unet), "a cat", **{**CALL, **steps})


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=2.0, source_guidance_scale=3.0),
        dict(source_guidance_scale=0.0),
        dict(strength=1.0),
        dict(strength=0.4),
        dict(eta=1.0),
        dict(eta=0.01),
        dict(clip_skip=1),
        dict(image=pil()),
        dict(image=torch.randn(1, 4, 8, 8, generator=generator(3))),
        dict(num_images_per_prompt=2, guidance_scale=1.0),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(pair, options):
    assert_same(pair(), **{"prompt": "a cat", **CALL, **options})


def test_the_old_callback_sees_what_the_reference_shows_it(pair):
    seen: list[list] = [[], []]
    for pipe, log in zip(pair(), seen, strict=True):
        images(pipe, "a cat", callback=lambda i, t, x, log=log: log.append((i, int(t), x.clone())), **CALL)
    assert [entry[:2] for entry in seen[0]] == [entry[:2] for entry in seen[1]]
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-4, rtol=1e-4)


def test_the_same_prompt_gives_the_picture_back_whatever_the_network_predicts(pair):
    for plan in ("leading", "v"):
        ours, theirs = pair(plan)
        call = dict(num_inference_steps=6, guidance_scale=1.0, image=picture(), source_prompt="a cat")
        same = images(ours, "a cat", source_as_noise=False, **call)
        clean = images(ours, "a cat", **{**call, "strength": 0.0})
        np.testing.assert_allclose(same, clean, atol=1e-4)
        if plan == "v":
            assert abs(images(theirs, "a cat", **call) - clean).max() > 1e-2


def test_where_the_run_ends_clean_the_last_step_adds_nothing(pair, twins):
    """The reference divides by zero there."""
    ours, theirs = twins(NAME, scheduler="ddim")
    made = images(ours, "a cat", **CALL)
    assert np.isfinite(made).all()
    assert not np.isfinite(images(theirs, "a cat", **CALL)).any()
    assert abs(made - images(pair()[0], "a cat", **CALL)).max() < 0.2  # nearly the same levels


def test_a_picture_made_alone_is_the_same(pair):
    """The reference mixes up the rows of a batch."""
    ours, _ = pair()
    two = [picture(seed=1), picture(seed=2)]
    call = dict(num_inference_steps=6, source_guidance_scale=2.0)
    both = images(ours, ["a cat", "a hat"], ["a dog", "a fox"], two, seed=[5, 9], **call)
    alone = images(ours, "a hat", "a fox", two[1], seed=9, **call)
    np.testing.assert_allclose(both[1], alone[0], atol=1e-5)


def test_the_source_is_told_apart_and_asked_no_more_than_it_must_be(pair):
    ours, _ = pair()
    rows = []
    handle = ours.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        images(ours, "a cat", **CALL)
        assert rows == [1, 2] * 4
        rows.clear()
        images(ours, "a cat", source_guidance_scale=2.0, **CALL)
        assert rows == [2, 2] * 4
    finally:
        handle.remove()


def test_the_guider_is_all_there_is_to_it(pair, twins):
    ours, _ = pair()
    plain = twins(scheduler=("DDIMScheduler", PLANS["leading"]))[0]
    guider = CycleNoise(picture()[None] * 2 - 1, 0.8, "a dog")
    alone = images(plain, "a cat", guiders=[guider], num_inference_steps=6, eta=0.1, height=16, width=16)
    np.testing.assert_allclose(alone, images(ours, "a cat", **CALL), atol=1e-5)


def test_checkpoints_go_both_ways(pair, tmp_path):
    assert_checkpoints_go_both_ways(pair(), tmp_path, **CALL)


def test_pictures_say_how_to_make_them_again(pair):
    from langevin.media.schema import check_settings

    ours, _ = pair()
    call = dict(num_inference_steps=4, source_guidance_scale=2.0, eta=0.3, strength=0.7)
    made = ours(["a cat", "a hat"], ["a dog", "a fox"], pil(), seed=4, **call).images[1]
    settings = check_settings(made.settings)
    assert (settings["prompt"], settings["source_prompt"]) == ("a hat", "a fox")
    assert {name: settings[name] for name in call} == call
    again = ours("a hat", "a fox", pil(), seed=settings["seed"], **call).images[0]
    assert abs(np.asarray(again).astype(int) - np.asarray(made)).max() <= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(eta=0.0), "needs a DDIMScheduler with eta above 0; here is a DDIMScheduler with eta 0"),
        (dict(source_prompt=None), "source_prompt is missing"),
        (dict(source_prompt=[]), "source_prompt is an empty list"),
        (dict(source_prompt=["a", "b"]), "2 texts for 1 prompts"),
        (dict(strength=1.5), "strength is 1.5"),
        (dict(image=None), "image is missing"),
    ],
    ids=lambda o: str(o) if isinstance(o, dict) else "",
)
def test_bad_input_gets_one_clear_line(pair, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        pair()[0]("a cat", **{**CALL, **options})
    assert "\n" not in str(caught.value)


def test_other_schedulers_are_refused(twins):
    ours = langevin.CycleDiffusionPipeline.from_pipe(twins(scheduler="euler")[0])
    with pytest.raises(ValueError, match="here is a EulerDiscreteScheduler"):
        ours("a cat", **CALL)


def test_the_thing_takes_its_new_colour_and_keeps_its_place():
    from langevin.zoo.reader import STAYS, read

    pipe = langevin.StableDiffusionPipeline.from_pretrained("langevin/shapes")
    pipe.scheduler = langevin.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    source = pipe("a red circle", seed=1, num_inference_steps=12, guidance_scale=4.0).images[0]
    cycle = langevin.CycleDiffusionPipeline.from_pipe(pipe)
    assert cycle.unet is pipe.unet
    cycle.set_progress_bar_config(disable=True)
    call = dict(num_inference_steps=12, guidance_scale=4.0, seed=2, source_as_noise=False)  # it predicts v
    made = cycle("a blue circle", "a red circle", source, 0.7, **call).images[0]
    [before], [after] = read(source).things, read(made).things
    assert (before.colour, after.colour, after.shape) == ("red", "blue", "circle")
    assert abs(before.x - after.x) <= STAYS
    assert abs(before.y - after.y) <= STAYS
