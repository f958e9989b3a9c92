"""Editing by instruction against the reference, and what its two scales mean."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch

import langevin
from langevin import (
    ClassifierFreeGuidance,
    DiffusionPipeline,
    ImageChannels,
    ImageStart,
    InstructGuidance,
    StableDiffusionInstructPix2PixPipeline,
)
from tests.helpers import in_threads
from tests.pipelines.family_checks import SCHEDULERS, UNETS, assert_same, generator, images, picture, pil, steps

NAME = "StableDiffusionInstructPix2PixPipeline"
STEPS = dict(num_inference_steps=4)


@pytest.fixture
def both(twins):
    return lambda scheduler="ddim", unet="pix2pix": twins(NAME, unet=unet, scheduler=scheduler)


def rows_of(network, call):
    """How many rows the network was given at each call."""
    rows = []
    handle = network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        call()
    finally:
        handle.remove()
    return rows


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_pictures_are_the_reference_ones(both, scheduler):
    assert_same(both(scheduler), "a cat", image=pil(), **steps(scheduler, 6))


@pytest.mark.parametrize("scheduler", ["ddim v trailing", "euler karras v"])
def test_a_network_built_like_stable_diffusion_2(both, monkeypatch, scheduler):
    monkeypatch.setitem(UNETS, "pix2pix 2", UNETS["sd2"] | UNETS["pix2pix"])
    assert_same(both(scheduler, "pix2pix 2"), "a cat", image=pil(), **STEPS)


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(image_guidance_scale=0.9),
        dict(guidance_scale=3.0, image_guidance_scale=1.0),
        dict(guidance_scale=2.0, image_guidance_scale=2.0),
        dict(guidance_scale=2.0, image_guidance_scale=3.0),
        dict(negative_prompt="ugly", num_images_per_prompt=2),
        dict(eta=0.8),
        dict(num_inference_steps=1),
    ],
    ids=lambda o: ",".join(map(str, o.items())),
)
def test_options_give_the_reference_numbers(both, options):
    assert_same(both(), "a cat", image=pil(), **{**STEPS, **options})


def test_kinds_of_pictures(both):
    pipes = both("euler")
    assert_same(pipes, "a cat", image=pil(37, 26), **STEPS)  # rounded down to what the model takes
    assert_same(pipes, "a cat", image=picture(count=1), **STEPS)
    assert_same(pipes, "a cat", image=picture().permute(1, 2, 0).numpy(), **STEPS)
    assert_same(pipes, "a cat", image=torch.randn(1, 4, 8, 8, generator=generator(5)), **STEPS)
    assert_same(pipes, ["a cat", "a dog"], image=pil(), num_images_per_prompt=2, **STEPS)
    assert_same(pipes, ["a cat", "a dog"], image=[pil(), pil(seed=1)], num_images_per_prompt=2, **STEPS)


def test_given_embeddings_and_latents(both):
    embeds, negative = torch.randn(2, 1, 16, 24, generator=generator(4))
    latents = torch.randn(1, 4, 8, 8, generator=generator(3))
    given = dict(prompt_embeds=embeds, negative_prompt_embeds=negative, latents=latents)
    assert_same(both(), image=pil(), **given, **STEPS)


def test_a_generator_for_each_picture(both):
    call = dict(image=pil(), num_images_per_prompt=2, eta=1.0, **STEPS)
    assert_same(both(), "a cat", generator=lambda: [generator(1), generator(2)], **call)


@pytest.mark.parametrize("scales", [(7.5, 1.5), (7.5, 1.0), (1.0, 1.5)])
def test_callbacks_see_and_change_what_the_reference_shows_them(both, scales):
    seen: list[list] = [[], []]
    made = []
    for pipe, log in zip(both(), seen, strict=True):

        def look(pipe, i, t, tensors, log=log):
            log.append([tensors[k].clone() for k in ("latents", "image_latents", "prompt_embeds")])
            log[-1].append(torch.tensor([pipe.guidance_scale, pipe.image_guidance_scale, pipe.num_timesteps]))
            if i == 0:  # all three branches, each in another way
                grow = 1 + torch.arange(len(tensors["prompt_embeds"]))[:, None, None] / 10
                return {"prompt_embeds": tensors["prompt_embeds"] * grow}
            if i == 1:
                return {"image_latents": tensors["image_latents"] * 0.5 + 0.1}
            return {"latents": tensors["latents"] * 0.9}

        names = ["latents", "prompt_embeds", "image_latents"]
        call = dict(callback_on_step_end=look, callback_on_step_end_tensor_inputs=names, image=pil(), **STEPS)
        call |= dict(guidance_scale=scales[0], image_guidance_scale=scales[1])
        made.append(images(pipe, "a cat", num_images_per_prompt=2, **call))
    np.testing.assert_allclose(*made, atol=1e-4)
    for ours, theirs in zip(*seen, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=5e-4, rtol=1e-4)  # latents are larger than pixels


def test_callbacks_may_turn_guidance_down_and_off(both):
    def look(pipe, i, t, tensors):
        if i == 0:
            pipe._image_guidance_scale = 1.2
        if i == 1:
            pipe._guidance_scale = 1.0
            return {k: tensors[k].chunk(3)[0] for k in ("prompt_embeds", "image_latents")}
        return {}

    call = dict(callback_on_step_end_tensor_inputs=["prompt_embeds", "image_latents"], callback_on_step_end=look)
    assert_same(both(), "a cat", image=pil(), num_images_per_prompt=2, **call, **STEPS)
    turned = rows_of(both()[0].unet, lambda: images(both()[0], "a cat", image=pil(), **call, **STEPS))
    assert turned == [3, 3, 1, 1]


def test_the_older_callback(both):
    logs: list[list] = [[], []]
    for pipe, log in zip(both(), logs, strict=True):

        def look(i, t, x, log=log):
            log.append((i, int(t)))

        images(pipe, "a cat", image=pil(), callback=look, callback_steps=2, **STEPS)
    assert logs[0] == logs[1]


def test_folders_load_on_both_sides(both, tmp_path):
    import diffusers

    ours, theirs = both()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = images(theirs, "a cat", image=pil(), **STEPS)
    again = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(again) is StableDiffusionInstructPix2PixPipeline
    there = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "ours")
    there.text_encoder.__dict__.setdefault("text_model", there.text_encoder)
    for pipe in (again, there):
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(images(pipe, "a cat", image=pil(), **STEPS), wanted, atol=1e-4)


def test_a_checkpoint_may_name_both_scales(both, tmp_path):
    both()[0].save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    named = {"guidance_scale": 4.0, "image_guidance_scale": 1.25}
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_call_defaults": named}))
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    settings = pipe("a cat", image=pil(), num_inference_steps=1).images[0].settings
    assert {name: settings[name] for name in named} == named
    settings = both()[0]("a cat", image=pil(), num_inference_steps=1).images[0].settings
    assert {name: settings[name] for name in named} == {"guidance_scale": 7.5, "image_guidance_scale": 1.5}


@pytest.mark.parametrize(
    ("scales", "rows"),
    [((7.5, 1.5), 3), ((7.5, 1.0), 2), ((2.0, 2.0), 2), ((1.0, 1.5), 1), ((7.5, 0.9), 1)],
)
def test_branches_without_a_share_are_not_computed(both, scales, rows):
    ours, _ = both()
    call = dict(image=pil(), guidance_scale=scales[0], image_guidance_scale=scales[1], **STEPS)
    assert rows_of(ours.unet, lambda: images(ours, "a cat", **call)) == [rows] * 4


def test_guidance_may_act_in_a_part_of_the_run(both):
    ours, _ = both()
    part = [InstructGuidance(7.5, 1.5, start=0.25, stop=0.75)]
    rows = rows_of(ours.unet, lambda: images(ours, "a cat", image=pil(), guiders=part, **STEPS))
    assert rows == [1, 3, 3, 1]


def test_the_guiders_alone_turn_text_to_image_into_editing(twins, both):
    text_to_image, _ = twins(unet="pix2pix")
    ours, _ = both()
    pixels = picture(count=1)
    wanted = images(ours, "a cat", image=pixels, guidance_scale=5.0, **STEPS)
    two = [InstructGuidance(5.0, 1.5), ImageChannels(pixels * 2 - 1)]
    for guiders in (two, two[::-1]):
        made = images(text_to_image, "a cat", guiders=guiders, height=16, width=16, **STEPS)
        np.testing.assert_array_equal(made, wanted)


def test_another_guidance_takes_the_place_of_the_two_scales(both):
    ours, _ = both()
    call = dict(image=pil(), **STEPS)
    plain = images(ours, "a cat", guiders=[ClassifierFreeGuidance(5.0)], **call)
    alike = images(ours, "a cat", guidance_scale=5.0, image_guidance_scale=1.0, **call)
    np.testing.assert_allclose(plain, alike, atol=1e-6)
    assert abs(plain - images(ours, "a cat", guidance_scale=5.0, **call)).max() > 0.01


def test_the_picture_and_its_scale_have_their_effect(both):
    ours, _ = both()
    made = [
        images(ours, "a cat", image=pil(seed=k), image_guidance_scale=s, **STEPS)
        for k, s in ((0, 1.5), (1, 1.5), (0, 4))
    ]
    assert abs(made[0] - made[1]).max() > 0.01
    assert abs(made[0] - made[2]).max() > 0.01


@pytest.mark.parametrize("negative", ["ugly", "[ugly:blurred:0.5]"])
def test_a_prompt_that_changes_on_the_way_changes_the_branch_without_a_picture_too(both, negative):
    ours, _ = both()
    texts = []

    def told(module, args, kwargs):
        texts.append(kwargs["encoder_hidden_states"].clone())

    handle = ours.unet.register_forward_pre_hook(told, with_kwargs=True)
    try:
        images(ours, "a cat", image=pil(), negative_prompt=negative, **STEPS)
    finally:
        handle.remove()
    for text in texts:
        without, seeing, instruction = text
        assert torch.equal(without, seeing)
        assert not torch.equal(seeing, instruction)
    assert torch.equal(texts[0], texts[3]) == (negative == "ugly")


def test_it_starts_at_a_picture_too(both):
    ours, _ = both()
    start = ImageStart(picture(count=1) * 2 - 1, 0.5)
    rows = rows_of(ours.unet, lambda: images(ours, "a cat", image=pil(), guiders=[start], **STEPS))
    assert rows == [3, 3]


def test_eight_threads_with_a_picture_each(both):
    pipe, _ = both()

    def one(k):
        return pipe("a cat", image=pil(seed=k), num_inference_steps=2, seed=1, output_type="np").images

    serial = [one(k) for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(one), strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(image=None), "image is missing"),
        (dict(image=[pil(), pil(), pil()]), "3 images for a batch of 1"),
        (dict(guiders=[ImageChannels(picture(8, 8, count=1))]), "16 x 16"),
    ],
)
def test_bad_input_gets_one_clear_line(both, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        both()[0]("a cat", **{**STEPS, "image": pil(), **options})
    assert "\n" not in str(caught.value)


def test_a_network_without_channels_for_the_picture_is_refused(twins, both):
    with pytest.raises(
        ValueError, match=r"takes 4 channels, where x and what is joined to it \(image_latents\) have 8"
    ):
        both(unet="sd1")[0]("a cat", image=pil(), **STEPS)
    with pytest.raises(ValueError, match="ImageChannels"):
        twins(unet="pix2pix")[0]("a cat", guiders=[InstructGuidance()], **STEPS)
    with pytest.raises(ValueError, match="start <= stop"):
        InstructGuidance(start=0.9, stop=0.1)


def test_names_are_the_reference_ones():
    import diffusers

    ours, theirs = (
        inspect.signature(library.StableDiffusionInstructPix2PixPipeline.__call__).parameters
        for library in (langevin, diffusers)
    )
    assert not set(theirs) - set(ours) - {"kwargs", "ip_adapter_image", "ip_adapter_image_embeds"}
    assert ours["num_inference_steps"].default == theirs["num_inference_steps"].default == 100
    assert list(ours)[:6] == list(theirs)[:6]
