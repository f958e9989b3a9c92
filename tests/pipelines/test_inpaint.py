"""Inpainting against the reference, and what its options mean."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch

import langevin
from langevin import DiffusionPipeline, ImageStart, Inpaint, Picture, StableDiffusionInpaintPipeline
from langevin.zoo.reader import read
from tests.pipelines.family_checks import (
    SCHEDULERS,
    assert_same,
    generator,
    images,
    mask,
    mask_tensor,
    picture,
    pil,
    steps,
)

NAME = "StableDiffusionInpaintPipeline"
STEPS = dict(num_inference_steps=7)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
def test_pictures_are_the_reference_ones(twins, unet, scheduler):
    both = twins(NAME, unet=unet, scheduler=scheduler)
    for strength in (1.0, 0.6):
        assert_same(both, "a cat", image=pil(), mask_image=mask(), strength=strength, **steps(scheduler, 7))


@pytest.mark.parametrize("scheduler", ["ddim v trailing", "euler karras v", "unipc"])
def test_stable_diffusion_2_networks(twins, scheduler):
    call = dict(image=pil(), mask_image=mask(), strength=0.7, **STEPS)
    assert_same(twins(NAME, unet="sd2", scheduler=scheduler), "a cat", **call)


@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
@pytest.mark.parametrize(
    "options",
    [
        dict(strength=0.99),
        dict(strength=0.3),
        dict(guidance_scale=1.0),
        dict(strength=0.5, guidance_scale=1.0, eta=0.5),
        dict(strength=0.5, negative_prompt="ugly", num_images_per_prompt=2),
        dict(eta=0.8),
        dict(clip_skip=1),
        dict(strength=0.9, num_inference_steps=3),
        dict(height=24, width=8),
        dict(latents=lambda: torch.randn(1, 4, 8, 8, generator=generator(9))),
        dict(latents=lambda: torch.randn(1, 4, 8, 8, generator=generator(9)), strength=0.5, eta=0.5),
        dict(masked_image_latents=lambda: torch.randn(1, 4, 8, 8, generator=generator(9)), eta=0.5),
        dict(timesteps=[900, 700, 500, 100], strength=0.8),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(twins, unet, options):
    """eta draws after everything else has been drawn, so it tells whether the same was drawn before."""
    if "timesteps" in options:
        both = twins(NAME, unet=unet, scheduler="ddpm")
    else:
        both = twins(NAME, unet=unet, scheduler="ddim")
    assert_same(both, "a cat", image=pil(), mask_image=mask(), **{**STEPS, **options})


def test_a_guidance_distilled_network(twins):
    call = dict(image=picture(), mask_image=mask(), strength=0.6, guidance_scale=4.0, **STEPS)
    assert_same(twins(NAME, unet="distilled"), "a cat", **call)


@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
def test_kinds_of_images_and_masks(twins, unet):
    both = twins(NAME, unet=unet, scheduler="euler a")  # it draws at every step
    options = dict(strength=0.6, **STEPS)
    array = np.array(mask()) / 255.0
    for image, covered in (
        (pil(37, 26), mask(26, 37)),  # resized to the model's own size
        (picture(), mask_tensor()[0]),
        (picture().permute(1, 2, 0).numpy(), array.astype("float32")),
        (pil(), mask().convert("RGB").point(lambda v: v // 2 + 60)),  # greys, some below the middle
    ):
        assert_same(both, "a cat", image=image, mask_image=covered, **options)
    two = dict(image=[pil(), pil(seed=1)], mask_image=[mask(), mask(box=(0, 0, 16, 3))])
    assert_same(both, ["a cat", "a dog"], **two, **options)
    assert_same(both, ["a cat", "a dog"], **two, num_images_per_prompt=2, **options)
    assert_same(both, ["a cat", "a dog"], **{**two, "image": pil()}, **options)
    assert_same(both, ["a cat", "a dog"], **{**two, "mask_image": mask()}, **options)
    latents = torch.randn(1, 4, 8, 8, generator=generator(5))
    assert_same(both, "a cat", image=latents, mask_image=mask(), masked_image_latents=latents * 0.5, **options)


@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
def test_a_generator_for_each_picture(twins, unet):
    both = twins(NAME, unet=unet, scheduler="ddpm")
    for count in (1, 2):
        pictures = dict(image=[pil(seed=k) for k in range(count)], mask_image=mask())
        call = dict(**pictures, num_images_per_prompt=2 // count, strength=0.7, **STEPS)
        assert_same(both, ["a", "b"][:count], generator=lambda: [generator(1), generator(2)], **call)


@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
def test_with_seeds_each_picture_can_be_made_again_alone(twins, unet):
    ours, _ = twins(NAME, unet=unet, scheduler="ddpm")
    call = dict(image=pil(), mask_image=mask(), strength=0.7, **STEPS)
    together = images(ours, "a cat", seed=[5, 6], num_images_per_prompt=2, **call)
    np.testing.assert_allclose(together[1:], images(ours, "a cat", seed=6, **call), atol=1e-5)


def test_prompts_as_embeddings(twins):
    embeds = torch.randn(2, 1, 16, 24, generator=generator(3))
    call = dict(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], strength=0.6, **STEPS)
    assert_same(twins(NAME, unet="inpaint"), image=pil(), mask_image=mask(), **call)


@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
@pytest.mark.parametrize(("size", "padding"), [((48, 40), 3), ((17, 33), 0), ((40, 64), 20)])
def test_a_crop_is_made_and_laid_over_the_picture(twins, unet, size, padding):
    covered = mask(*size, box=(9, 5, 15, 12)).convert("RGB")
    call = dict(image=pil(*size), mask_image=covered, padding_mask_crop=padding, output_type="pil", **STEPS)
    both = twins(NAME, unet=unet)
    for strength in (1.0, 0.5):
        ours, theirs = (
            np.array(pipe("a cat", strength=strength, generator=generator(), **call).images[0]).astype(int)
            for pipe in both
        )
        assert ours.shape == (*size, 3)
        assert abs(ours - theirs).max() <= 1  # 8 bits, rounded
        outside = np.array(covered)[..., 0] == 0
        np.testing.assert_array_equal(ours[outside], np.array(call["image"])[outside])


def test_a_cropped_picture_keeps_the_settings_that_made_it(twins):
    ours, _ = twins(NAME)
    call = dict(image=pil(48, 40), mask_image=mask(48, 40), padding_mask_crop=4, strength=0.5, seed=3, **STEPS)
    made, flagged = ours("a cat", return_dict=False, **call)
    assert isinstance(made[0], Picture)
    assert flagged is None
    expected = dict(prompt="a cat", seed=3, strength=0.5, padding_mask_crop=4, height=16, width=16)
    assert {name: made[0].settings[name] for name in expected} == expected


@pytest.mark.parametrize("scheduler", ["ddim", "heun"])
@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_callbacks_see_and_change_what_the_reference_shows_them(twins, unet, scheduler, guidance):
    seen: list[list] = [[], []]
    names = StableDiffusionInpaintPipeline._callback_tensor_inputs
    for pipe, log in zip(twins(NAME, unet=unet, scheduler=scheduler), seen, strict=True):

        def look(pipe, i, t, tensors, log=log):
            log.append((i, float(t), pipe.num_timesteps, {k: v is not None and v.clone() for k, v in tensors.items()}))
            tensors["mask"][..., i % 8, :] = i % 2  # in its place
            return {
                "latents": tensors["latents"] * 0.9,
                "mask": tensors["mask"] if i < 2 else tensors["mask"].roll(1, -1),
                "masked_image_latents": tensors["masked_image_latents"] + 0.1,
            }

        call = dict(image=pil(), mask_image=mask(), strength=0.8, guidance_scale=guidance, **STEPS)
        images(pipe, "a cat", callback_on_step_end=look, callback_on_step_end_tensor_inputs=names, **call)
    assert [entry[:3] for entry in seen[0]] == [entry[:3] for entry in seen[1]]
    for ours, theirs in zip(*seen, strict=True):
        assert set(ours[3]) == set(theirs[3])
        for name, tensor in theirs[3].items():
            torch.testing.assert_close(ours[3][name], tensor, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
def test_a_mask_changed_in_its_place_counts_from_the_next_step(twins, unet):
    def look(call, i, t, tensors):
        tensors["mask"].zero_()
        return {}

    call = dict(image=pil(), mask_image=mask(), **STEPS)
    watching = dict(callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents", "mask"])
    both = twins(NAME, unet=unet)
    assert_same(both, "a cat", **call, **watching)
    assert abs(images(both[0], "a cat", **call, **watching) - images(both[0], "a cat", **call)).max() > 1e-3


def test_the_older_callback(twins):
    seen: list[list] = [[], []]
    for pipe, log in zip(twins(NAME), seen, strict=True):

        def look(i, t, latents, log=log):
            log.append((i, float(t), latents.clone()))

        call = dict(image=pil(), mask_image=mask(), strength=0.8, **STEPS)
        images(pipe, "a cat", callback=look, callback_steps=2, **call)
    assert len(seen[0]) == len(seen[1]) > 1
    for ours, theirs in zip(*seen, strict=True):
        assert ours[:2] == theirs[:2]
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
def test_each_side_loads_what_the_other_saved(twins, unet, tmp_path):
    import diffusers

    ours, theirs = twins(NAME, unet=unet)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(loaded) is StableDiffusionInpaintPipeline
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "ours")
    for pipe in (loaded, theirs):
        pipe.set_progress_bar_config(disable=True)
    assert_same((loaded, theirs), "a cat", image=pil(), mask_image=mask(), **STEPS)


def test_old_scheduler_configs_get_what_the_reference_gives_them(twins):
    ours, theirs = twins(NAME, scheduler="pndm prk")
    for name in ("skip_prk_steps", "steps_offset"):
        assert ours.scheduler.config[name] == theirs.scheduler.config[name]
    ours, theirs = twins(NAME, scheduler="ddim old config")
    assert ours.scheduler.config.clip_sample is theirs.scheduler.config.clip_sample is True


@pytest.mark.parametrize("version", ["0.6.0.dev0", "0.8.1", "0.9.0.dev0", "0.42.1"])
def test_networks_saved_long_ago_mean_a_size_of_64(twins, tmp_path, version):
    import diffusers

    _, theirs = twins(NAME, unet="inpaint")
    theirs.save_pretrained(tmp_path)
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_diffusers_version": version}))
    side = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path).unet.config.sample_size * 2
    assert DiffusionPipeline.from_pretrained(tmp_path).size(None, None) == (side, side)


@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
def test_strength_zero_gives_the_picture_as_the_autoencoder_sees_it(twins, unet):
    ours, _ = twins(NAME, unet=unet)
    pixels = picture()[None]
    made = images(ours, "a cat", image=pixels, mask_image=mask(), strength=0.0, generator=generator(3), **STEPS)
    posterior = ours.vae.encode(pixels * 2 - 1).latent_dist
    seen = ours.vae.decode(posterior.sample(generator(3))).sample / 2 + 0.5
    np.testing.assert_allclose(made, seen.detach().clamp(0, 1).permute(0, 2, 3, 1).numpy(), atol=1e-5)


@pytest.mark.parametrize("unet", ["sd1", "inpaint"])
def test_kept_outside_not_one_pixel_is_changed(twins, unet):
    ours, _ = twins(NAME, unet=unet)
    call = dict(image=pil(), mask_image=mask(), output_type="pil", **STEPS)
    free, kept = (
        np.array(ours("a cat", keep_outside=keep, generator=generator(), **call).images[0]) for keep in (False, True)
    )
    inside = np.array(mask()) > 0
    np.testing.assert_array_equal(kept[~inside], np.array(pil())[~inside])
    np.testing.assert_array_equal(kept[inside], free[inside])
    assert (free[~inside] != kept[~inside]).any()


def test_the_guider_alone_turns_text_to_image_into_inpainting(twins):
    ours, _ = twins(NAME)
    text_to_image, _ = twins()
    call = dict(num_inference_steps=5, height=16, width=16)
    guider = Inpaint(picture()[None] * 2 - 1, mask_tensor(), 0.6)
    alone = images(text_to_image, "a cat", guiders=[guider], **call)
    expected = images(ours, "a cat", image=picture(), mask_image=mask(), strength=0.6, **call)
    np.testing.assert_array_equal(alone, expected)


def test_a_trained_model_puts_into_the_hole_what_is_asked_for():
    """A picture of one thing; the thing is hidden, and another asked for."""
    pipe = DiffusionPipeline.from_pretrained("langevin/shapes")
    inpaint = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    for each in (pipe, inpaint):
        each.set_progress_bar_config(disable=True)
    steps = dict(num_inference_steps=8, guidance_scale=2.0, num_images_per_prompt=4)
    before = pipe("a red circle on a gray background", seed=1, **steps).images
    call = dict(image=before, mask_image=mask(64, 64, (4, 4, 60, 60)), keep_outside=True, seed=10, **steps)
    after = [read(picture) for picture in inpaint("a blue square on a gray background", **call).images]
    asked = [[(thing.colour, thing.shape) for thing in reading.things] for reading in after]
    assert asked.count([("blue", "square")]) >= 3
    assert [reading.background for reading in after] == ["gray"] * 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(strength=1.2), "strength is 1.2"),
        (dict(image=None), "image is missing"),
        (dict(mask_image=None), "mask_image is missing"),
        (dict(image=[pil(), pil(), pil()]), "3 images for a batch of 1"),
        (dict(mask_image=[mask(), mask()]), "2 images for a batch of 1"),
        (dict(image=torch.zeros(1, 4, 8, 8)), "cannot be masked"),
        (dict(image=torch.zeros(1, 4, 6, 8)), "8 x 8"),
        (dict(masked_image_latents=torch.zeros(1, 4, 6, 8)), "8 x 8"),
        (dict(image=torch.zeros(1, 4, 8, 8), keep_outside=True), "keep_outside needs the picture's pixels"),
        (dict(padding_mask_crop=4, image=picture()), "image is a Tensor"),
        (dict(padding_mask_crop=4, mask_image=mask_tensor()), "mask_image is a Tensor"),
        (dict(padding_mask_crop=4, mask_image=mask(20, 20)), "same size"),
        (dict(padding_mask_crop=4, output_type="np"), "output_type is 'np'"),
        (dict(padding_mask_crop=-1), "padding_mask_crop is -1"),
        (dict(height=15), "multiples of 2"),
        (dict(guiders=[ImageStart(picture()[None])]), "two guiders"),
        (dict(guiders=[Inpaint(picture()[None], mask_tensor())]), "two guiders"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input_gets_one_clear_line(twins, options, says):
    ours, _ = twins(NAME, unet="inpaint")
    with pytest.raises(ValueError, match=says) as caught:
        ours("a cat", **{**STEPS, "image": pil(), "mask_image": mask(), **options})
    assert "\n" not in str(caught.value)


def test_its_arguments_have_the_reference_names_and_defaults():
    import diffusers

    ours, theirs = (
        inspect.signature(library.StableDiffusionInpaintPipeline.__call__).parameters
        for library in (langevin, diffusers)
    )
    of_others = {"ip_adapter_image", "ip_adapter_image_embeds", "kwargs"}
    assert set(theirs) - of_others <= set(ours)
    assert list(theirs)[:10] == list(ours)[:10]
    for name in ("strength", "num_inference_steps", "padding_mask_crop", "masked_image_latents", "eta"):
        assert ours[name].default == theirs[name].default
