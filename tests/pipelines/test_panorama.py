"""Panoramas against the reference, whose windows are made small enough for tiny networks."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import langevin
from langevin import GuidanceRescale, ImageStart, StableDiffusionPanoramaPipeline, Windows
from langevin.zoo.reader import read
from langevin.zoo.world import parse
from tests.pipelines.family_checks import SCHEDULERS, assert_same, generator, images, picture

NAME = "StableDiffusionPanoramaPipeline"
# 8x8 latents are what the tiny networks know; 2 pixels to a latent
SIZE = dict(height=16, width=40, num_inference_steps=5)
SMALL = dict(window_size=8, window_stride=4)
# steps that add noise or clip are not linear: the mean of windows' steps is not the step of the mean
LINEAR = [name for name in SCHEDULERS if name not in ("ddpm", "euler a", "ddim old config")]


@functools.cache
def reference_class(size=8, stride=4):
    """The reference with windows of another size, counted in its autoencoder's own pixels per latent."""
    import diffusers

    class Small(diffusers.StableDiffusionPanoramaPipeline):
        def get_views(self, height, width, **kwargs):
            factor = self.vae_scale_factor
            return super().get_views(height // factor * 8, width // factor * 8, size, stride, **kwargs)

        def __call__(self, *args, window_size=size, window_stride=stride, **kwargs):
            return super().__call__(*args, **kwargs)

        def check_inputs(self, prompt, height, width, *args):  # its multiples of 8 are for larger autoencoders
            super().check_inputs(prompt, height * 8, width * 8, *args)

    return Small


def pair(twins, size=8, stride=4, **options):
    return twins((NAME, reference_class(size, stride)), **options)


@pytest.mark.parametrize("scheduler", LINEAR)
@pytest.mark.parametrize("unet", ["sd1", "sd2"])
def test_pictures_are_the_reference_ones(twins, unet, scheduler):
    assert_same(pair(twins, unet=unet, scheduler=scheduler), "a cat", **SIZE, **SMALL)


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=1.0, num_images_per_prompt=2),
        dict(negative_prompt="ugly", clip_skip=1),
        dict(view_batch_size=4),
        dict(circular_padding=True),
        dict(circular_padding=True, view_batch_size=3),
        dict(height=24, width=24),
        dict(width=16),
        dict(width=12),
        dict(width=32, circular_padding=True),
        dict(width=42, circular_padding=True),
        dict(width=16, circular_padding=True, height=8),
        dict(latents=torch.randn(1, 4, 8, 20, generator=generator(3))),
    ],
    ids=lambda o: ",".join(k if torch.is_tensor(v) else f"{k}={v}" for k, v in o.items()),
)
def test_options_give_the_reference_numbers(twins, options):
    assert_same(pair(twins, scheduler="dpm++ 2m karras"), "a cat", **{**SIZE, **SMALL, **options})


def test_a_circular_picture_narrower_than_a_window_sees_itself_twice(twins):
    both = pair(twins, size=16, stride=4)
    call = dict(window_size=16, window_stride=4, circular_padding=True, num_inference_steps=3, height=16)
    for width in (20, 16):
        assert_same(both, "a cat", width=width, **call)


def test_custom_timesteps_and_given_embeddings(twins):
    both = pair(twins, scheduler="euler")
    embeds, negative = torch.randn(2, 1, 16, 24, generator=generator(4))
    assert_same(both, prompt_embeds=embeds, negative_prompt_embeds=negative, **SIZE, **SMALL)
    assert_same(both, "a cat", timesteps=[900, 500, 100], **SIZE, **SMALL)


def test_the_defaults_are_the_reference_ones(twins):
    import inspect

    import diffusers

    ours = inspect.signature(StableDiffusionPanoramaPipeline.__call__).parameters
    theirs = inspect.signature(diffusers.StableDiffusionPanoramaPipeline.__call__).parameters
    for name in ("height", "width", "view_batch_size", "circular_padding", "num_inference_steps", "eta"):
        assert ours[name].default == theirs[name].default, name
    assert list(ours)[:8] == list(theirs)[:8]
    assert set(theirs) - set(ours) == {"kwargs"}
    both = twins((NAME, diffusers.StableDiffusionPanoramaPipeline))
    # the reference's own windows: 64 latents, counted with 8 pixels to each, so this is one for it and for us
    assert_same(both, "a cat", height=16, width=48, num_inference_steps=2)


def test_a_window_as_large_as_the_picture_is_text_to_image(twins):
    ours, _ = pair(twins)
    plain, _ = twins()
    call = dict(height=16, width=24, num_inference_steps=3)
    np.testing.assert_array_equal(images(ours, "a cat", **call), images(plain, "a cat", **call))


def test_each_of_several_pictures_is_what_it_is_alone(twins):
    """The reference shows the first picture's windows both negative prompts, and the second's both prompts."""
    both = pair(twins)
    call = dict(**SIZE, **SMALL)
    together = images(both[0], ["a", "b"], negative_prompt=["x", "y"], generator=[generator(1), generator(2)], **call)
    for k, (prompt, negative) in enumerate([("a", "x"), ("b", "y")]):
        call |= dict(negative_prompt=negative, generator=lambda k=k: generator(k + 1))
        assert_same(both, prompt, **call)
        alone = images(both[0], prompt, **{**call, "generator": generator(k + 1)})
        np.testing.assert_allclose(together[k : k + 1], alone, atol=1e-5)


def test_the_edge_that_the_reference_leaves_out_gets_a_window(twins):
    both = pair(twins)
    call = dict(height=16, width=38, num_inference_steps=3, output_type="latent", **SMALL)  # 8, 12, 16; 19 latents
    ours, theirs = (torch.as_tensor(images(pipe, "a cat", **call)) for pipe in both)
    assert not theirs[..., 16:].any()
    assert ours[..., 16:].std() > 0.1
    torch.testing.assert_close(ours[..., :8], theirs[..., :8], atol=0.5, rtol=0)


def test_callbacks_see_what_the_reference_shows_them(twins):
    seen: list[list] = [[], []]
    for pipe, log in zip(pair(twins, scheduler="pndm"), seen, strict=True):

        def look(pipe, i, t, tensors, log=log):
            log.append((i, float(t), tensors["latents"].clone()))
            return {"latents": tensors["latents"] * 0.9}

        images(pipe, "a cat", callback_on_step_end=look, **SIZE, **SMALL)
    assert [entry[:2] for entry in seen[0]] == [entry[:2] for entry in seen[1]]
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-4, rtol=1e-4)


def test_old_callbacks(twins):
    seen: list[list] = [[], []]
    for pipe, log in zip(pair(twins), seen, strict=True):
        images(pipe, "a", callback=lambda i, t, x, log=log: log.append((i, int(t))), callback_steps=2, **SIZE, **SMALL)
    assert seen[0] == seen[1]


def test_a_guidance_rescale_is_heeded(twins):
    ours, _ = pair(twins)
    call = dict(**SIZE, **SMALL)
    rescaled = images(ours, "a cat", guidance_rescale=0.7, **call)
    assert abs(rescaled - images(ours, "a cat", **call)).max() > 1e-3
    np.testing.assert_array_equal(rescaled, images(ours, "a cat", guiders=[GuidanceRescale(0.7)], **call))


def test_windows_with_a_start_at_a_picture_and_weighted_prompts(twins):
    ours, _ = pair(twins)
    call = dict(**SIZE, **SMALL)
    start = ImageStart(picture(16, 40)[None] * 2 - 1, 0.6)
    made = [images(ours, prompt, guiders=[start], **call) for prompt in ("a cat", "a (cat)1.4")]
    assert made[0].shape == (1, 16, 40, 3)
    assert abs(made[0] - made[1]).max() > 1e-4
    img2img = langevin.StableDiffusionImg2ImgPipeline.from_pipe(ours)
    img2img.set_progress_bar_config(disable=True)
    other = images(
        img2img, "a cat", image=picture(16, 40), strength=0.6, num_inference_steps=5, guiders=[Windows(8, 4)]
    )
    np.testing.assert_allclose(made[0], other, atol=1e-5)


def test_each_side_loads_what_the_other_saves(twins, tmp_path):
    import diffusers

    ours, theirs = pair(twins)
    ours.save_pretrained(tmp_path / "ours")
    diffusers.StableDiffusionPanoramaPipeline(**theirs.components, requires_safety_checker=False).save_pretrained(
        tmp_path / "theirs"
    )
    back = langevin.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(back) is StableDiffusionPanoramaPipeline
    theirs = reference_class().from_pretrained(tmp_path / "ours")
    for pipe in (back, theirs):
        pipe.set_progress_bar_config(disable=True)
    assert_same((back, theirs), "a cat", **SIZE, **SMALL)
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")).__name__ == NAME


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(width=41), "multiples of 2"),
        (dict(view_batch_size=0), "view_batch_size is 0"),
        (dict(window_stride=9), "stride <= size"),
        (dict(guiders=[Windows(8, 4)]), "two guiders cut x"),
    ],
)
def test_bad_input_gets_one_clear_line(twins, options, says):
    ours, _ = pair(twins)
    with pytest.raises(ValueError, match=says) as caught:
        ours("a cat", **{**SIZE, **SMALL, **options})
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ with a trained model

PROMPTS = ["a red circle", "a blue star on a gray background", "a green cross on white", "a purple square on black"]


@pytest.fixture(scope="module")
def trained():
    pipe = StableDiffusionPanoramaPipeline.from_pretrained("langevin/shapes")
    pipe.set_progress_bar_config(disable=True)

    def make(**options):
        size = dict(height=64, width=256, window_size=16, num_inference_steps=12, view_batch_size=4)
        return pipe(PROMPTS, output_type="np", seed=[5, 6, 7, 8], **{**size, **options}).images * 255

    return make


def differences(pictures):
    """Between neighbouring columns, the mean over the pictures, 0 to 255; the last is between right and left edge."""
    return np.abs(np.diff(np.concatenate([pictures, pictures[:, :, :1]], 2), axis=2)).mean((0, 1, 3))


def test_neither_windows_nor_the_seam_of_a_smooth_circular_panorama_can_be_told_from_other_columns(trained):
    even, smooth = (
        differences(trained(window_stride=8, circular_padding=True, window_smooth=smooth)) for smooth in (False, True)
    )
    edges = slice(31, None, 32)  # 8 latents of 4 pixels; the last is the seam
    assert smooth[edges].mean() < 0.7 * smooth.mean()
    assert smooth[-1] < smooth.mean()
    assert even[edges].mean() > 1.2 * even.mean()  # so the measure sees an edge


def test_a_panorama_repeats_what_was_asked_for(trained):
    pictures = trained(window_stride=8, window_smooth=True)
    for wide, prompt in zip(pictures, PROMPTS, strict=True):
        wanted = parse(prompt).things[0]
        views = [wide[:, left : left + 64].round().astype(np.uint8) for left in range(0, 193, 64)]
        things = [(thing.colour, thing.shape) for view in views for thing in read(view).things]
        assert (wanted.colour, wanted.shape) in things
        colours = [colour for colour, _ in things if colour]
        assert colours.count(wanted.colour) >= 0.5 * len(colours)
