"""Self-attention guidance against the reference."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_sag import pipeline_stable_diffusion_sag as reference

import langevin
from tests.pipelines.family_checks import assert_checkpoints_go_both_ways, assert_same, generator, images

NAME = ("StableDiffusionSAGPipeline", reference.StableDiffusionSAGPipeline)
STEPS = dict(num_inference_steps=5)


@pytest.fixture
def pair(twins):
    def make(**options):
        ours, theirs = twins(NAME, **options)
        heads = theirs.unet.config.attention_head_dim
        if isinstance(heads, tuple):  # as it is when it was read from a file; the reference knows no other
            theirs.unet.register_to_config(attention_head_dim=list(heads))
        return ours, theirs

    return make


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize(
    ("unet", "scheduler"),
    [
        ("sd1", "ddim"),
        ("sd1", "pndm"),
        ("sd1", "pndm prk"),
        ("sd1", "ddpm"),
        ("sd1", "unipc"),
        ("sd2", "ddim v trailing"),
        ("sd2", "ddpm"),
    ],
)
def test_pictures_are_the_reference_ones(pair, unet, scheduler, guidance):
    assert_same(pair(unet=unet, scheduler=scheduler), "a cat", guidance_scale=guidance, **STEPS)


@pytest.mark.parametrize(
    "config",
    [
        dict(algorithm_type="dpmsolver++"),
        dict(algorithm_type="sde-dpmsolver++"),
        dict(prediction_type="v_prediction"),
        dict(prediction_type="sample"),
    ],
    ids=str,
)
def test_dpm_solvers_too(pair, config):
    both = pair()
    for pipe, library in zip(both, (langevin, diffusers), strict=True):
        pipe.scheduler = library.DPMSolverMultistepScheduler(**config)
    assert_same(both, "a cat", **STEPS)


def test_karras_spacing_is_near_the_reference_which_rounds_its_levels(pair):
    """The reference takes ᾱ of the rounded timestep for x0, and σ itself for the noise; here both are σ's own."""
    both = pair(scheduler="dpm++ 2m karras")
    assert_same(both, "a cat", atol=1e-3, **STEPS)


def test_old_scheduler_configs_are_left_as_they_are(pair):
    """Unlike the text-to-image pipeline's; their clipping makes rounding grow."""
    assert_same(pair(scheduler="ddim old config"), "a cat", atol=1e-3, **STEPS)


@pytest.mark.parametrize(
    "options",
    [
        dict(sag_scale=0.0),
        dict(sag_scale=1.5, guidance_scale=3.0),
        dict(negative_prompt="ugly", num_images_per_prompt=2),
        dict(eta=0.8),
        dict(clip_skip=1),
        dict(height=24, width=40),
        dict(prompt=["a cat", "a dog"], negative_prompt=["x", "y"]),
        dict(prompt=["a cat", "a dog"], generator=lambda: [generator(1), generator(2)]),
        dict(latents=torch.randn(1, 4, 8, 8, generator=generator(3))),
        dict(output_type="latent"),
    ],
    ids=lambda o: ",".join(f"{k}={v}" if not callable(v) and k != "latents" else k for k, v in o.items()),
)
def test_options_give_the_reference_numbers(pair, options):
    assert_same(pair(), **{"prompt": "a cat", **STEPS, **options})


def test_embeddings_in_place_of_prompts(pair):
    both = pair()
    embeds = {name: torch.randn(2, 16, 24, generator=generator(k)) for k, name in enumerate(["a", "b"])}
    assert_same(both, prompt_embeds=embeds["a"], negative_prompt_embeds=embeds["b"], **STEPS)


def test_the_old_callback_sees_what_the_reference_shows_it(pair):
    seen: list[list] = [[], []]
    for pipe, log in zip(pair(scheduler="pndm prk"), seen, strict=True):

        def look(i, t, latents, log=log):
            log.append((i, int(t), latents.clone()))

        images(pipe, "a cat", callback=look, callback_steps=2, **STEPS)
    assert [entry[:2] for entry in seen[0]] == [entry[:2] for entry in seen[1]]
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-4, rtol=1e-4)


def test_checkpoints_go_both_ways(pair, tmp_path):
    assert_checkpoints_go_both_ways(pair(), tmp_path, **STEPS)


def test_schedulers_that_the_reference_refuses_work(pair):
    for scheduler in ("euler", "heun", "lms", "euler a"):
        ours, theirs = pair(scheduler=scheduler)
        with pytest.raises(ValueError, match="does not support"):
            theirs("a cat", **STEPS)
        with_, without = (images(ours, "a cat", sag_scale=scale, **STEPS) for scale in (0.75, 0.0))
        assert np.isfinite(with_).all()
        assert abs(with_ - without).max() > 1e-3


def test_the_same_level_gives_the_same_guidance_whatever_x_is_counted_in(pair):
    """DDIM and Euler walk one path, x0 + σ·ε over √(1 + σ²); so does what is degraded on the way."""
    made = []
    for library_name, config in (
        ("DDIMScheduler", dict(timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)),
        ("EulerDiscreteScheduler", dict(timestep_spacing="trailing")),
    ):
        ours, _ = pair()
        ours.scheduler = getattr(langevin, library_name)(**config)
        made.append(images(ours, "a cat", num_inference_steps=20))
    np.testing.assert_allclose(*made, atol=5e-3)


def test_a_scale_that_means_nothing_gets_one_clear_line(pair):
    ours, _ = pair()
    with pytest.raises(ValueError, match="sag_scale is -1; it must be a finite number, at least 0") as caught:
        ours("a cat", sag_scale=-1, **STEPS)
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="sag_skale"):
        ours("a cat", sag_skale=1)
