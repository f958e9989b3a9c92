"""Image to image against the reference, and what strength means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from langevin import ImageStart, StableDiffusionImg2ImgPipeline
from tests.pipelines.family_checks import SCHEDULERS, assert_same, generator, images, picture, pil, steps

NAME = "StableDiffusionImg2ImgPipeline"
STEPS = dict(num_inference_steps=7)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("unet", ["sd1", "sd2"])
def test_pictures_are_the_reference_ones(twins, unet, scheduler):
    assert_same(
        twins(NAME, unet=unet, scheduler=scheduler), "a cat", image=picture(), strength=0.6, **steps(scheduler, 7)
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(strength=1.0),
        dict(strength=0.3),
        dict(strength=0.5, guidance_scale=1.0),
        dict(strength=0.5, negative_prompt="ugly", num_images_per_prompt=2),
        dict(strength=0.7, eta=0.8),
        dict(strength=0.7, clip_skip=1),
        dict(strength=0.9, num_inference_steps=3),
    ],
    ids=lambda o: ",".join(map(str, o.items())),
)
def test_options_give_the_reference_numbers(twins, options):
    assert_same(twins(NAME, scheduler="pndm"), "a cat", image=pil(), **{**STEPS, **options})


@pytest.mark.parametrize("unet", ["distilled"])
def test_a_guidance_distilled_network(twins, unet):
    assert_same(twins(NAME, unet=unet), "a cat", image=picture(), strength=0.6, guidance_scale=4.0, **STEPS)


@pytest.mark.parametrize("scheduler", ["euler", "ddpm"])
def test_kinds_of_images(twins, scheduler):
    both = twins(NAME, scheduler=scheduler)
    options = dict(strength=0.6, **STEPS)
    assert_same(both, "a cat", image=pil(37, 26), **options)  # rounded down to what the model takes
    assert_same(both, ["a cat", "a dog"], image=[pil(), pil(seed=1)], **options)
    assert_same(both, ["a cat", "a dog"], image=picture(count=2), **options)
    assert_same(both, ["a cat", "a dog"], image=picture(), num_images_per_prompt=2, **options)
    assert_same(both, "a cat", image=picture().permute(1, 2, 0).numpy(), **options)
    assert_same(both, "a cat", image=torch.randn(1, 4, 8, 8, generator=generator(5)), **options)


def test_several_images_with_several_pictures_each_follow_the_reference_unless_paired(twins):
    both = twins(NAME)
    call = dict(image=[pil(), pil(seed=1)], num_images_per_prompt=2, strength=0.3, **STEPS)
    assert_same(both, ["a", "b"], **call)
    call |= dict(generator=None)
    paired = images(both[0], ["a", "b"], pair_images=True, seed=5, **call)
    alone = images(both[0], "b", **{**call, "seed": 7, "image": pil(seed=1)})  # the first two are of "a"
    np.testing.assert_allclose(paired[2:], alone, atol=1e-5)


def test_a_generator_for_each_picture(twins):
    both = twins(NAME)
    for count in (1, 2):
        call = dict(image=[pil(seed=k) for k in range(count)], num_images_per_prompt=2 // count, strength=0.7, **STEPS)
        assert_same(both, ["a", "b"][:count], generator=lambda: [generator(1), generator(2)], **call)


def test_custom_timesteps_are_cut_too(twins):
    call = dict(image=picture(), strength=0.5)
    assert_same(twins(NAME, scheduler="ddpm"), "a cat", timesteps=[900, 700, 500, 100], **call)
    assert_same(twins(NAME, scheduler="euler"), "a cat", sigmas=[10.0, 3.0, 1.0, 0.2, 0.0], **call)


@pytest.mark.parametrize("scheduler", ["ddim", "heun"])
def test_callbacks_see_what_the_reference_shows_them(twins, scheduler):
    seen: list[list] = [[], []]
    for pipe, log in zip(twins(NAME, scheduler=scheduler), seen, strict=True):

        def look(pipe, i, t, tensors, log=log):
            log.append((i, float(t), pipe.num_timesteps, tensors["latents"].clone()))
            return {"latents": tensors["latents"] * 0.9}

        images(pipe, "a cat", image=picture(), strength=0.5, callback_on_step_end=look, **STEPS)
    assert [entry[:3] for entry in seen[0]] == [entry[:3] for entry in seen[1]]
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours[3], theirs[3], atol=1e-4, rtol=1e-4)


def test_strength_zero_gives_the_picture_as_the_autoencoder_sees_it(twins):
    ours, _ = twins(NAME)
    pixels = picture()[None]
    made = images(ours, "a cat", image=pixels, strength=0.0, generator=generator(3), **STEPS)
    posterior = ours.vae.encode(pixels * 2 - 1).latent_dist
    seen = ours.vae.decode(posterior.sample(generator(3))).sample / 2 + 0.5
    np.testing.assert_allclose(made, seen.detach().clamp(0, 1).permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_more_strength_goes_further(twins):
    ours, _ = twins(NAME)
    kept = images(ours, "a cat", image=picture(), strength=0.0, **STEPS)
    apart = [abs(images(ours, "a cat", image=picture(), strength=s, **STEPS) - kept).mean() for s in (0.2, 0.5, 1.0)]
    assert apart == sorted(apart)
    assert apart[0] > 0


def test_the_guider_alone_turns_text_to_image_into_image_to_image(twins):
    ours, _ = twins(NAME)
    text_to_image, _ = twins()
    pixels = picture()[None]
    call = dict(num_inference_steps=5, height=16, width=16)
    alone = images(text_to_image, "a cat", guiders=[ImageStart(pixels * 2 - 1, 0.6)], **call)
    np.testing.assert_array_equal(alone, images(ours, "a cat", image=pixels, strength=0.6, **call))


def test_prompts_that_change_count_the_steps_that_are_done(twins):
    """Half of the run that is left: with strength 0.5 of 8 steps, 2 of the 4."""
    ours, _ = twins(NAME)
    seen = []

    def look(call, i, t, tensors):
        seen.append(tensors["prompt_embeds"][-1].clone())
        return {}

    call = dict(image=picture(), strength=0.5, num_inference_steps=8, callback_on_step_end=look)
    images(ours, "[cat:dog:0.5]", callback_on_step_end_tensor_inputs=["prompt_embeds"], **call)
    assert [torch.equal(e, seen[0]) for e in seen] == [True, True, False, False]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(strength=1.2), "strength is 1.2"),
        (dict(image=None), "image is missing"),
        (dict(image="cat.png"), "PIL images"),
        (dict(image=[pil(), pil(), pil()]), "3 images for a batch of 1"),
        (dict(guiders=[ImageStart(picture()[None])]), "two guiders"),
    ],
)
def test_bad_input_gets_one_clear_line(twins, options, says):
    ours, _ = twins(NAME)
    with pytest.raises(ValueError, match=says) as caught:
        ours("a cat", **{**STEPS, "image": pil(), **options})
    assert "\n" not in str(caught.value)


def test_unknown_arguments_are_refused_and_known_ones_are_shown():
    import inspect

    shown = inspect.signature(StableDiffusionImg2ImgPipeline.__call__).parameters
    assert {"prompt", "image", "strength", "callback_on_step_end", "guiders", "seed"} <= set(shown)
    assert "common" not in shown


def test_an_unknown_argument_is_a_type_error(twins):
    ours, _ = twins(NAME)
    with pytest.raises(TypeError, match="stregth"):
        ours("a cat", image=pil(), stregth=0.3)


def test_strength_says_how_much_of_the_layout_stays():
    """The prompt means "in the center"; the pictures have their circle in a corner."""
    import langevin
    from langevin.zoo.reader import read
    from langevin.zoo.world import Scene, Thing, render

    places = [(18, 18), (46, 18), (18, 46), (46, 46)]
    scenes = [Scene((Thing("circle", "red", "medium", x, y, 10),), "white") for x, y in places]
    pixels = torch.from_numpy(render(scenes)).permute(0, 3, 1, 2) / 255
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained("langevin/shapes")
    assert isinstance(pipe, langevin.StableDiffusionImg2ImgPipeline)
    pipe.set_progress_bar_config(disable=True)

    def apart(strength):
        made = pipe(["a red circle on white"] * 4, image=pixels, strength=strength, num_inference_steps=20, seed=0)
        things = [read(image).things for image in made.images]
        assert all(len(found) == 1 for found in things)
        return [max(abs(t.x - x), abs(t.y - y)) for (t,), (x, y) in zip(things, places, strict=True)]

    assert max(apart(0.3)) < 4
    assert min(apart(1.0)) > 8
