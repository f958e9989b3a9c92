"""The first inpainting pipeline, against the reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import langevin
from langevin import StableDiffusionInpaintPipeline, StableDiffusionInpaintPipelineLegacy
from tests.pipelines.family_checks import (
    SCHEDULERS,
    assert_checkpoints_go_both_ways,
    assert_made_again,
    assert_same,
    generator,
    images,
    mask,
    mask_tensor,
    picture,
    pil,
    steps,
)

NAME = "StableDiffusionInpaintPipelineLegacy"
STEPS = dict(num_inference_steps=5)
PICTURES = dict(image=pil(), mask_image=mask())


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "pndm prk"])
def test_pictures_are_the_reference_ones(twins, scheduler):
    unet = "sd2" if " v" in scheduler or scheduler == "unipc" else "sd1"
    both = twins(NAME, unet=unet, scheduler=scheduler)
    for strength in (1.0, 0.6):
        assert_same(both, "a cat", **PICTURES, strength=strength, **steps(scheduler, 5))


@pytest.mark.parametrize(
    "options",
    [
        dict(eta=0.8),
        dict(strength=0.3, guidance_scale=1.0),
        dict(add_predicted_noise=True),
        dict(negative_prompt="ugly", num_images_per_prompt=2, eta=0.5),
        dict(prompt=["a", "b"], num_images_per_prompt=2, eta=0.5),
        dict(prompt=["a", "b"], generator=lambda: [generator(1), generator(2)], eta=0.5),
        dict(image=2 * picture(count=1) - 1, mask_image=1 - mask_tensor()),
        dict(image=2 * picture(24, 16, count=1) - 1, mask_image=torch.rand(1, 24, 16, 3, generator=generator(5))),
        dict(image=pil(24, 16), mask_image=mask(24, 16).point(lambda v: v // 2 + 60)),
        dict(clip_skip=1),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(twins, options):
    assert_same(twins(NAME), **{"prompt": "a cat", **PICTURES, **STEPS, **options})


def test_predicted_noise_without_guidance(twins):
    """The reference raises here: it knows no other prediction than the negative branch's."""
    pipe = twins(NAME)[0]
    call = dict(**PICTURES, **STEPS, guidance_scale=1.0)
    assert np.isfinite(images(pipe, "a cat", add_predicted_noise=True, **call)).all()
    assert abs(images(pipe, "a cat", add_predicted_noise=True, **call) - images(pipe, "a cat", **call)).max() > 1e-4


def test_white_is_made_anew_and_black_is_kept(twins):
    pipe = twins(NAME)[0]
    call = dict(image=pil(), output_type="latent", generator=generator(), **STEPS)
    white, black = (
        np.asarray(pipe("a cat", mask_image=np.full((16, 16), v, dtype="float32"), **{**call, "generator": generator()})
                   .images) for v in (1, 0)
    )  # fmt: skip
    half = np.zeros((16, 16), dtype="float32")
    half[:8] = 1
    made = np.asarray(pipe("a cat", mask_image=half, **{**call, "generator": generator()}).images)
    np.testing.assert_allclose(made[:, :, 4:], black[:, :, 4:], atol=1e-5)
    assert abs(made[:, :, :4] - black[:, :, :4]).max() > 0.1
    assert abs(white - black).max() > 0.1


def test_the_older_callback(twins):
    logs: list[list] = [[], []]
    for pipe, log in zip(twins(NAME), logs, strict=True):

        def look(i, t, x, log=log):
            log.append((i, int(t), x.sum().item()))

        images(pipe, "a", callback=look, callback_steps=2, **PICTURES, num_inference_steps=7)
    assert [row[:2] for row in logs[0]] == [row[:2] for row in logs[1]]
    # at the last step what is kept is already clean here, and still at the last step's level there
    np.testing.assert_allclose([r[2] for r in logs[0]][:-1], [r[2] for r in logs[1]][:-1], rtol=1e-3, atol=1e-3)


def test_folders_load_on_both_sides(twins, tmp_path):
    """With a safety checker: without, the reference cannot read what it wrote."""
    both = twins(NAME, safety=True)
    assert_checkpoints_go_both_ways(both, tmp_path, **PICTURES, **STEPS)
    index = json.loads((tmp_path / "ours/model_index.json").read_text())
    assert set(index) == set(json.loads((tmp_path / "theirs/model_index.json").read_text()))


def test_a_picture_made_alone_is_the_same_and_carries_its_settings(twins):
    pipe = twins(NAME)[0]
    both = pipe(["a cat", "a dog"], seed=[3, 8], image=[pil(), pil(seed=1)], mask_image=mask(), **STEPS)
    alone = pipe("a dog", seed=8, image=pil(seed=1), mask_image=mask(), **STEPS).images[0]
    assert abs(np.asarray(alone, dtype=float) - np.asarray(both.images[1], dtype=float)).max() <= 1  # rounding
    assert alone.settings == both.images[1].settings
    assert alone.settings["mask_image"]
    assert alone.settings["add_predicted_noise"] is False


def test_pictures_are_made_again(twins, tmp_path):
    assert_made_again(twins(NAME)[0], tmp_path, "a cat", **PICTURES, add_predicted_noise=True, **STEPS)


def test_parts_are_shared_with_the_family(twins):
    pipe = twins(NAME)[0]
    assert "image_encoder" not in pipe.components
    other = StableDiffusionInpaintPipeline.from_pipe(pipe)
    back = StableDiffusionInpaintPipelineLegacy.from_pipe(other)
    assert all(back.components[name] is part for name, part in pipe.components.items() if name != "scheduler")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(mask_image=None), "mask_image is missing"),
        (dict(image=None), "image is missing"),
        (dict(mask_image=torch.zeros(16, 16)), r"mask_image is \(16, 16\)"),
        (dict(strength=1.5), "strength is 1.5"),
    ],
)
def test_bad_input_gets_one_clear_line(twins, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        twins(NAME)[0]("a cat", **{**PICTURES, **STEPS, **options})
    assert "\n" not in str(caught.value)
    assert langevin.StableDiffusionPipeline.from_pipe(twins(NAME)[0])
