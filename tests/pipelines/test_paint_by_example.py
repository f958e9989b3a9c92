"""Paint by Example against the reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import langevin
from langevin import (
    Control,
    DiffusionPipeline,
    PaintByExamplePipeline,
    SafeGuidance,
    SelfAttentionGuidance,
    StableDiffusionInpaintPipeline,
)
from tests.pipelines.control_checks import controlnets
from tests.pipelines.family_checks import (
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
from tests.prompts.readers_parts import random

NAME = "PaintByExamplePipeline"
CALL = dict(example_image=pil(40, 30, seed=7), image=pil(), mask_image=mask(), num_inference_steps=4)


def encoders(**config):
    """The reference's encoder of examples, and ours with its weights."""
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder

    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, projection_dim=24)
    sizes = transformers.CLIPVisionConfig(**{**sizes, "image_size": 32, "patch_size": 8, **config})
    theirs = random(PaintByExampleImageEncoder(sizes))
    ours = langevin.PaintByExampleImageEncoder(sizes).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.fixture(scope="module")
def make(twins):
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    extractor = transformers.CLIPImageProcessor(**size)
    pair = encoders()

    def make(unet="inpaint", scheduler="pndm", **more):
        parts = {"image_encoder": pair, "feature_extractor": (extractor, extractor), **more}
        return twins(NAME, unet=unet, scheduler=scheduler, **parts)

    return make


@pytest.mark.parametrize(
    "config", [{}, dict(num_hidden_layers=9, hidden_act="gelu"), dict(num_hidden_layers=2)], ids=str
)
def test_the_encoder_gives_the_reference_numbers(config):
    ours, theirs = encoders(**config)
    assert len(ours.mapper.blocks) == (config.get("num_hidden_layers", 4) + 1) // 5
    pixels = torch.randn(3, 3, 32, 32, generator=generator(1))
    with torch.no_grad():
        for a, b in zip(
            ours(pixels, return_uncond_vector=True), theirs(pixels, return_uncond_vector=True), strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert ours(pixels).shape == (3, 1, 24)


@pytest.mark.parametrize("scheduler", ["pndm", "ddim old config", "euler a", "ddim v trailing", "unipc"])
def test_pictures_are_the_reference_ones(make, scheduler):
    assert_same(make(scheduler=scheduler), **{**CALL, **steps(scheduler, 5)})


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0, eta=0.5),
        dict(eta=0.8, num_images_per_prompt=2),
        dict(latents=lambda: torch.randn(1, 4, 8, 8, generator=generator(9)), eta=0.5),
        dict(
            image=[pil(), pil(seed=1)],
            mask_image=[mask(), mask(box=(0, 0, 16, 3))],
            example_image=[pil(32, 32, seed=4), pil(40, 30, seed=5)],
            generator=lambda: [generator(1), generator(2)],
            eta=0.5,
        ),
        dict(image=2 * picture(count=1) - 1, mask_image=lambda: mask_tensor()[0]),
        dict(image=picture(count=1), mask_image=lambda: torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)),
        dict(image=2 * picture(count=1) - 1, mask_image=lambda: torch.full((16, 16), 0.5)),
        dict(image=pil(24, 16), mask_image=mask(24, 16).point(lambda v: v // 2 + 60)),
        dict(example_image=torch.randn(1, 3, 32, 32, generator=generator(2))),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(make, options):
    assert_same(make(scheduler="ddim"), **{**CALL, **options})


def test_a_stable_diffusion_2_network(make, twins):
    from tests.pipelines import family_checks

    family_checks.UNETS.setdefault("inpaint sd2", {**family_checks.UNETS["sd2"], "in_channels": 9})
    assert_same(make(unet="inpaint sd2", scheduler="euler karras v"), **CALL)


def test_one_example_goes_into_several_pictures_and_sizes_are_heard(make):
    """The reference cannot do the first, and passes over the second."""
    pipe = make()[0]
    several = images(pipe, **{**CALL, "image": [pil(), pil(seed=1)]}, seed=[3, 4])
    alone = images(pipe, **{**CALL, "image": pil(seed=1)}, seed=4)
    np.testing.assert_allclose(several[1], alone[0], atol=1e-5)
    assert images(pipe, **CALL, height=24, width=8).shape == (1, 24, 8, 3)


def test_the_example_and_the_mask_have_their_effect(make):
    pipe = make()[0]
    usual = images(pipe, **CALL)
    assert abs(usual - images(pipe, **{**CALL, "example_image": pil(seed=3)})).max() > 0.01
    assert abs(usual - images(pipe, **{**CALL, "mask_image": mask(box=(0, 0, 3, 16))})).max() > 0.01


def test_the_safety_checker_looks(make, twins):
    ours, theirs = twins(unet="inpaint", safety=True)
    pair = {name: (getattr(ours, name), getattr(theirs, name)) for name in ("safety_checker", "feature_extractor")}
    outputs = [pipe(**CALL, generator=generator(), output_type="np") for pipe in make(**pair)]
    assert outputs[0].nsfw_content_detected == outputs[1].nsfw_content_detected
    assert len(outputs[0].nsfw_content_detected) == 1


def test_the_older_callback(make):
    logs: list[list] = [[], []]
    for pipe, log in zip(make(), logs, strict=True):
        images(
            pipe, **CALL, callback=lambda i, t, x, log=log: log.append((i, int(t), x.sum().item())), callback_steps=2
        )
    np.testing.assert_allclose(*logs, rtol=1e-3, atol=1e-3)


def test_newer_callbacks_see_the_mask_as_the_network_does(make):
    seen = []

    def look(pipe, i, t, tensors):
        seen.append(tensors)
        return {"mask": 1 - tensors["mask"]} if i == 0 else {}

    pipe = make()[0]
    watch = dict(callback_on_step_end=look, callback_on_step_end_tensor_inputs=["mask", "masked_image_latents"])
    changed = images(pipe, **CALL, **watch)
    kept = 1 - torch.nn.functional.interpolate(mask_tensor(), (8, 8))
    torch.testing.assert_close(seen[0]["mask"][:1], kept)
    assert abs(changed - images(pipe, **CALL)).max() > 1e-3


def test_folders_load_on_both_sides(make, tmp_path):
    """The reference writes a name of the encoder's library that it cannot read; public checkpoints have the older one,
    which we write and it cannot read either. Both load here; weights are the same file for both.
    """
    ours, theirs = make()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = images(theirs, **CALL)
    for side, library in (("ours", "paint_by_example"), ("theirs", "diffusers")):
        index = json.loads((tmp_path / side / "model_index.json").read_text())
        assert index["image_encoder"] == [library, "PaintByExampleImageEncoder"]
        with pytest.raises(ValueError, match=r"PaintByExampleImageEncoder|paint_by_example"):
            type(theirs).from_pretrained(tmp_path / side)
        read = DiffusionPipeline.from_pretrained(tmp_path / side)
        assert type(read) is PaintByExamplePipeline
        read.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(images(read, **CALL), wanted, atol=1e-4)
    held = [load_file(tmp_path / side / "image_encoder/model.safetensors") for side in ("ours", "theirs")]
    theirs.image_encoder.load_state_dict(held[0])
    # as transformers 4 wrote it, and the public checkpoint has it
    old = {
        k.replace("model.", "model.vision_model.", 1) if k.startswith("model.") else k: v for k, v in held[1].items()
    }
    save_file(old, tmp_path / "theirs/image_encoder/model.safetensors", {"format": "pt"})
    read = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    read.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(images(read, **CALL), wanted, atol=1e-4)


def test_guiders_and_control_stack(make, twins, tmp_path_factory):
    pipe = make()[0]
    net = controlnets(twins, tmp_path_factory, unet="sd1")[0]
    usual = images(pipe, **CALL)
    for more in (dict(guiders=[SelfAttentionGuidance(1.5)]), dict(control=[Control(net, pil(seed=2))])):
        assert abs(usual - images(pipe, **CALL, **more)).max() > 1e-3
    np.testing.assert_array_equal(usual, images(pipe, **CALL, control=[Control(net, pil(seed=2), scale=0.0)]))
    with pytest.raises(ValueError, match="SafeGuidance needs a pipeline that reads texts"):
        images(pipe, **CALL, guiders=[SafeGuidance("dog")])


def test_a_picture_made_alone_is_the_same_and_carries_its_settings(make):
    pipe = make()[0]
    two = dict(image=[pil(), pil(seed=1)], example_image=[pil(seed=4), pil(seed=5)])
    both = pipe(**{**CALL, **two}, seed=[3, 8])
    alone = pipe(**{**CALL, **{name: one[1] for name, one in two.items()}}, seed=8).images[0]
    assert abs(np.asarray(alone, dtype=float) - np.asarray(both.images[1], dtype=float)).max() <= 1  # rounding
    assert alone.settings == both.images[1].settings
    assert alone.settings["pipeline"] == NAME
    assert alone.settings["example_image"]
    assert alone.settings["guidance_scale"] == 5.0


def test_pictures_are_made_again(make, tmp_path):
    assert_made_again(make()[0], tmp_path, **CALL)


def test_parts_are_shared_with_the_family(make, twins):
    pipe = make()[0]
    usual = twins("StableDiffusionInpaintPipeline", unet="inpaint")[0]
    other = StableDiffusionInpaintPipeline.from_pipe(pipe, text_encoder=usual.text_encoder, tokenizer=usual.tokenizer)
    assert other.unet is pipe.unet
    assert PaintByExamplePipeline.from_pipe(other).image_encoder is pipe.image_encoder
    assert set(pipe.components) == {
        "vae", "image_encoder", "unet", "scheduler", "safety_checker", "feature_extractor",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(example_image=None), "example_image is missing"),
        (dict(mask_image=None), "mask_image is missing"),
        (dict(image=None), "image is missing"),
        (dict(negative_prompt="ugly"), "reads no texts"),
        (dict(image=3 * picture()), r"in \[-1, 1\] is needed"),
        (dict(example_image=[pil(), pil(), pil()], image=[pil(), pil()]), "2 images for a batch of 3"),
    ],
)
def test_bad_input_gets_one_clear_line(make, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        make()[0](**{**CALL, **options})
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="takes no argument 'prompt'"):
        make()[0](prompt="a cat", **CALL)
