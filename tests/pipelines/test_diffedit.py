"""DiffEdit against the reference: its mask, its inversion, and the way back."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import langevin
from langevin import StableDiffusionDiffEditPipeline, StableDiffusionPipeline
from tests.pipelines.family_checks import assert_checkpoints_go_both_ways, generator, images, pil

NAME = "StableDiffusionDiffEditPipeline"
STEPS = dict(num_inference_steps=5)
MASK = torch.zeros(1, 8, 8)
MASK[..., :5] = 1
CONFIGS = [("sd1", "ddim"), ("sd1", "ddim old config"), ("sd2", "ddim v trailing"), ("sd1", "ddpm")]


@pytest.fixture
def make(twins):
    import diffusers

    def make(unet="sd1", scheduler="ddim"):
        from tests.pipelines.family_checks import SCHEDULERS

        config = {k: v for k, v in SCHEDULERS[scheduler][1].items() if k not in ("clip_sample", "skip_prk_steps")}
        inverse = tuple(library.DDIMInverseScheduler(clip_sample=False, **config) for library in (langevin, diffusers))
        return twins(NAME, unet=unet, scheduler=scheduler, inverse_scheduler=inverse)

    return make


@pytest.mark.parametrize(("unet", "scheduler"), CONFIGS)
def test_all_three_give_the_reference_numbers(make, unet, scheduler):
    both = make(unet, scheduler)
    texts = dict(target_prompt="a dog", source_prompt="a cat", num_maps_per_mask=3)
    masks = [pipe.generate_mask(pil(), **texts, generator=generator(), **STEPS) for pipe in both]
    np.testing.assert_array_equal(*masks)
    assert 0 < masks[0].mean() < 1
    latents = [pipe.invert("a cat", pil(), generator=generator(), guidance_scale=2.0, **STEPS).latents for pipe in both]
    torch.testing.assert_close(*latents, atol=1e-4, rtol=1e-4)
    made = [images(pipe, "a dog", mask_image=masks[0], image_latents=latents[1], **STEPS) for pipe in both]
    np.testing.assert_allclose(*made, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0, inpaint_strength=1.0),
        # with guidance and v, the reference holds two copies of the noise against the losses
        dict(num_reg_steps=2, lambda_auto_corr=3.0, lambda_kl=2.0, num_auto_corr_rolls=2, guidance_scale=1.0),
        dict(prompt=["a cat", "two"], image=[pil(), pil(seed=1)], negative_prompt=["x", "y"], inpaint_strength=0.5),
        dict(decode_latents=True, output_type="np"),
    ],
    ids=lambda o: ",".join(o),
)
@pytest.mark.parametrize(("unet", "scheduler"), [("sd1", "ddim"), ("sd2", "ddim v trailing")])
def test_options_of_the_inversion(make, unet, scheduler, options):
    both = make(unet, scheduler)
    call = {"prompt": "a cat", "image": pil(), **STEPS, **options}
    ours, theirs = (pipe.invert(**call, generator=generator()) for pipe in both)
    torch.testing.assert_close(ours.latents, theirs.latents, atol=2e-4, rtol=2e-4)
    if "decode_latents" in options:
        np.testing.assert_allclose(ours.images, theirs.images, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        dict(mask_encode_strength=0.8),
        dict(source_negative_prompt="a", target_negative_prompt="b", mask_thresholding_ratio=1.5),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_of_the_mask(make, options):
    """Guidance of 1 and PIL pictures raise in the reference."""
    call = dict(image=pil(), target_prompt="a dog", source_prompt="a cat", num_maps_per_mask=2, **STEPS)
    ours, theirs = (pipe.generate_mask(**call, generator=generator(), **options) for pipe in make())
    np.testing.assert_array_equal(ours, theirs)
    pipe = make()[0]
    pictures = pipe.generate_mask(**call, generator=generator(), output_type="pil", **options)
    np.testing.assert_array_equal(np.asarray(pictures[0]), 255 * ours[0])
    right = pipe.generate_mask(**call, generator=generator(), swapped_guidance=False, **options)
    assert np.array_equal(right, ours) == ("source_negative_prompt" not in options)
    assert 0 < pipe.generate_mask(**call, seed=[1, 2], guidance_scale=1.0, **options).mean() < 1


@pytest.mark.parametrize(
    "options",
    [
        dict(inpaint_strength=0.6, eta=0.7),
        dict(guidance_scale=1.0),
        dict(num_images_per_prompt=2, negative_prompt="ugly", eta=0.5),
        dict(prompt=["a", "b"]),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_of_the_way_back(make, options):
    count = 2 if "prompt" in options else 1
    steps = int(5 * options.get("inpaint_strength", 0.8))
    trace = torch.randn(count, steps, 4, 8, 8, generator=generator(1))
    call = {"prompt": "a dog", "mask_image": MASK, "image_latents": trace, **STEPS, **options}
    np.testing.assert_allclose(*(images(pipe, **call) for pipe in make()), atol=1e-4)


def test_outside_the_mask_the_picture_comes_back(make):
    pipe = make()[0]
    trace = pipe.invert("a cat", pil(), seed=1, guidance_scale=1.0, **STEPS).latents
    made = pipe("a dog", mask_image=MASK, image_latents=trace, output_type="latent", **STEPS).images
    torch.testing.assert_close(made[..., 5:], trace[:, -1, ..., 5:])
    assert abs(made[..., :5] - trace[:, -1, ..., :5]).max() > 0.01


def test_seeds_say_what_an_inversion_draws(make):
    pipe = make()[0]
    call = dict(num_reg_steps=1, lambda_kl=0.0, lambda_auto_corr=3.0, **STEPS)
    both = pipe.invert(["a cat", "a dog"], [pil(), pil(seed=1)], seed=[3, 8], **call).latents
    alone = pipe.invert("a dog", pil(seed=1), seed=8, **call).latents
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


def test_a_mask_of_a_picture_does_not_depend_on_others(make):
    """The reference holds every picture's differences against the mean of all."""
    pipe = make()[0]
    call = dict(source_prompt="a cat", num_maps_per_mask=2, **STEPS)
    both = pipe.generate_mask(
        [pil(), pil(seed=1)], ["a dog", "a"], seed=[1, 2, 3, 4], **{**call, "source_prompt": ["a cat"] * 2}
    )
    alone = pipe.generate_mask(pil(seed=1), "a", seed=[3, 4], **call)
    np.testing.assert_array_equal(both[1], alone[0])


def test_callbacks_and_signatures(make):
    logs: list[list] = [[], []]
    both = make()
    for pipe, log in zip(both, logs, strict=True):
        look = lambda i, t, x, log=log: log.append((i, int(t), x.sum().item()))  # noqa: E731
        trace = pipe.invert("a cat", pil(), generator=generator(), callback=look, **STEPS).latents
        images(pipe, "a dog", mask_image=MASK, image_latents=trace, callback=look, callback_steps=2, **STEPS)
    np.testing.assert_allclose(*logs, rtol=1e-3, atol=1e-3)
    for name in ("invert", "generate_mask"):
        ours, theirs = (inspect.signature(getattr(type(pipe), name)).parameters for pipe in both)
        first = [p.name for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert first == list(theirs)[1:]
        differ = {n for n in first if ours[n].default != theirs[n].default}
        assert differ <= {"guidance_scale", "callback_steps"}


def test_folders_load_on_both_sides(make, tmp_path):
    trace = torch.randn(1, 4, 4, 8, 8, generator=generator(1))
    assert_checkpoints_go_both_ways(make(), tmp_path, mask_image=MASK, image_latents=trace, **STEPS)


def test_parts_are_shared_with_the_family(make):
    pipe = make()[0]
    other = StableDiffusionDiffEditPipeline.from_pipe(StableDiffusionPipeline.from_pipe(pipe))
    other.set_progress_bar_config(disable=True)
    assert other.unet is pipe.unet
    assert other.inverse_scheduler is None
    assert other.invert("a cat", pil(), seed=1, **STEPS).latents.shape == (1, 4, 4, 8, 8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(mask_image=None), "mask_image is missing"),
        (dict(image_latents=None), "image_latents is missing"),
        (dict(image_latents=torch.zeros(1, 3, 4, 8, 8)), "4 steps of"),
        (dict(mask_image=torch.zeros(1, 4, 4)), "must have the latents' size"),
        (dict(mask_image=2 * torch.ones(1, 8, 8)), r"in \[0, 1\] is needed"),
    ],
)
def test_bad_input_gets_one_clear_line(make, options, says):
    call = {"mask_image": MASK, "image_latents": torch.zeros(1, 4, 4, 8, 8), **STEPS, **options}
    with pytest.raises(ValueError, match=says) as caught:
        make()[0]("a dog", **call)
    assert "\n" not in str(caught.value)
