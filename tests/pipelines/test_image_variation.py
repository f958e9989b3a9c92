"""Variations of a picture against the reference, and what a family without texts means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin import ImageStart, SafeGuidance, SelfAttentionGuidance, StableDiffusionImageVariationPipeline
from tests.helpers import in_threads
from tests.pipelines.again_checks import assert_made_again
from tests.pipelines.control_checks import controlnets
from tests.pipelines.family_checks import SCHEDULERS, assert_same, generator, images, picture, pil, steps

NAME = "StableDiffusionImageVariationPipeline"
STEPS = dict(num_inference_steps=4)


@pytest.fixture(scope="module")
def vision():
    """An image encoder with random weights, and what prepares pictures for it."""
    import transformers

    torch.manual_seed(2)
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=24,
        image_size=32, patch_size=8,
    )  # fmt: skip
    net = transformers.CLIPVisionModelWithProjection(config).eval()
    net.visual_projection.weight.data.normal_()
    size = {"shortest_edge": 32}, {"height": 32, "width": 32}
    return net, transformers.CLIPImageProcessor(size=size[0], crop_size=size[1])


@pytest.fixture
def both(twins, vision):
    net, processor = vision
    parts = dict(image_encoder=(net, net), feature_extractor=(processor, processor))

    def make(scheduler="ddim", unet="sd1", safety=False):
        return twins(NAME, unet=unet, scheduler=scheduler, safety=safety, **parts)

    return make


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("unet", ["sd1", "sd2"])
def test_pictures_are_the_reference_ones(both, unet, scheduler):
    assert_same(both(scheduler, unet), pil(), **steps(scheduler, 5))


PREPARED = torch.randn(1, 3, 32, 32, generator=generator(7))


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=15.0, num_images_per_prompt=2),
        dict(eta=0.8),
        dict(height=24, width=32),
        dict(latents=torch.randn(1, 4, 8, 8, generator=generator(3))),
        dict(image=pil(37, 26)),
        dict(image=[pil(), pil(seed=1)], num_images_per_prompt=2),
        dict(image=[pil(), pil(seed=1)], generator=lambda: [generator(1), generator(2)]),
        dict(image=PREPARED),
        dict(image=PREPARED.clamp(0, 1)),  # the reference always takes tensors to be prepared
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(both, options):
    assert_same(both("pndm" if "eta" not in options else "ddim"), **{"image": pil(), **STEPS, **options})


def test_a_tensor_may_also_be_a_picture(both):
    ours, _ = both()
    tensor = torch.from_numpy(np.asarray(pil(32, 32)) / np.float32(255)).permute(2, 0, 1)
    wanted = images(ours, pil(32, 32), **STEPS)
    np.testing.assert_allclose(images(ours, tensor, prepared=False, **STEPS), wanted, atol=1e-4)
    assert abs(images(ours, tensor[None], **STEPS) - wanted).max() > 1e-3
    np.testing.assert_array_equal(images(ours, np.asarray(pil(32, 32)), **STEPS), wanted)


def test_the_safety_checker_has_its_turn(both):
    ours, theirs = (pipe(pil(), generator=generator(), output_type="np", **STEPS) for pipe in both(safety=True))
    assert ours.nsfw_content_detected == theirs.nsfw_content_detected
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-4)


def test_each_picture_has_its_own_effect_and_its_own_seed(both):
    ours, _ = both()
    made = images(ours, [pil(), pil(seed=1)], num_images_per_prompt=2, seed=5, guidance_scale=15.0, **STEPS)
    alone = images(ours, pil(seed=1), seed=7, guidance_scale=15.0, **STEPS)
    np.testing.assert_allclose(made[2:3], alone, atol=1e-4)
    other = images(ours, pil(seed=2), seed=7, guidance_scale=15.0, **STEPS)
    assert abs(other - alone).max() > 0.01


def test_callbacks(both):
    logs: list[list] = [[], []]
    for pipe, log in zip(both(), logs, strict=True):
        images(pipe, pil(), callback=lambda i, t, x, log=log: log.append((i, int(t), x.shape)), callback_steps=2,
               **STEPS)  # fmt: skip
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2
    seen = []

    def look(call, i, t, tensors):
        seen.append(call.guidance_scale)
        call._interrupt = i == 1
        return {"latents": tensors["latents"] * 0.9}

    images(both()[0], pil(), callback_on_step_end=look, **STEPS)
    assert seen == [7.5, 7.5]


def test_folders_load_on_both_sides(both, tmp_path):
    import diffusers

    ours, theirs = both()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = images(theirs, pil(), **STEPS)
    again = langevin.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(again) is StableDiffusionImageVariationPipeline
    there = diffusers.StableDiffusionImageVariationPipeline.from_pretrained(tmp_path / "ours")
    for pipe in (again, there):
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(images(pipe, pil(), **STEPS), wanted, atol=1e-4)


def test_parts_are_shared_with_the_family(both, vision):
    ours, _ = both()
    plain = langevin.StableDiffusionPipeline.from_pretrained("langevin/shapes")
    lent = StableDiffusionImageVariationPipeline.from_pipe(plain, image_encoder=vision[0], feature_extractor=vision[1])
    assert lent.unet is plain.unet
    assert "tokenizer" not in lent.components
    assert not hasattr(lent, "encode_prompt")
    bare = StableDiffusionImageVariationPipeline.from_pipe(plain)
    with pytest.raises(ValueError, match="no image_encoder"):
        bare(pil(), **STEPS)
    with pytest.raises(langevin.checkpoints.errors.CheckpointError, match="needs text_encoder, tokenizer"):
        langevin.StableDiffusionPipeline.from_pipe(ours)


def test_guiders_of_the_family_have_their_effect(both, twins, tmp_path_factory):
    ours, _ = both()
    net, _ = controlnets(twins, tmp_path_factory)
    call = dict(image=pil(), **STEPS)
    plain = images(ours, **call)
    for options in (
        dict(guiders=[SelfAttentionGuidance(1.5)]),
        dict(guiders=[ImageStart(picture(count=1) * 2 - 1, 0.5)]),
        dict(control=[langevin.Control(net, picture(seed=5))]),
        dict(guidance_rescale=0.7),
    ):
        assert abs(images(ours, **call, **options) - plain).max() > 1e-3
    none = images(ours, control=[langevin.Control(net, picture(seed=5), scale=0.0)], **call)
    np.testing.assert_array_equal(none, plain)
    wide = images(ours, width=32, guiders=[langevin.Windows(8, 4)], **call)
    assert wide.shape == (1, 16, 32, 3)
    with pytest.raises(ValueError, match="needs a pipeline that reads texts"):
        ours(guiders=[SafeGuidance("dog")], **call)


def test_it_can_be_made_again(both, tmp_path):
    ours, _ = both()
    call = dict(num_images_per_prompt=2, seed=3, eta=1.0, width=24, **STEPS)
    assert_made_again(ours, tmp_path, [pil(), pil(seed=1)], row=2, **call)


def test_eight_threads_with_a_picture_each(both):
    ours, _ = both()

    def one(k):
        return ours(pil(seed=k), num_inference_steps=2, seed=1, output_type="np").images

    serial = [one(k) for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(one), strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(image=None), "image is missing"),
        (dict(image="cat.png"), "image is a str"),
        (dict(image=[]), "empty list"),
        (dict(image=torch.rand(1, 3, 8, 8) * 2, prepared=False), r"\[0, 1\] is needed"),
        (dict(height=17), "both must be multiples of 2"),
    ],
)
def test_bad_input_gets_one_clear_line(both, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        both()[0](**{"image": pil(), **STEPS, **options})
    assert "\n" not in str(caught.value)
