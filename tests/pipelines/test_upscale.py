"""The upscaler against the reference, and what its noise level and windows do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin import ClassifierFreeGuidance, LowResolution, StableDiffusionUpscalePipeline, Windows
from tests.helpers import in_threads
from tests.pipelines.again_checks import assert_made_again
from tests.pipelines.family_checks import (
    SCHEDULERS,
    assert_checkpoints_go_both_ways,
    assert_same,
    generator,
    images,
    picture,
    pil,
    steps,
)

NAME = "StableDiffusionUpscalePipeline"
STEPS = dict(num_inference_steps=4)
LEVELS = dict(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02)


@pytest.fixture
def both(twins):
    import diffusers

    low = langevin.DDPMScheduler(**LEVELS), diffusers.DDPMScheduler(**LEVELS)
    return lambda scheduler="ddim", unet="upscale": twins(NAME, unet=unet, scheduler=scheduler, low_res_scheduler=low)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_pictures_are_the_reference_ones(both, scheduler):
    assert_same(both(scheduler), "a cat", image=pil(8, 8), **steps(scheduler, 5))


@pytest.mark.parametrize("scheduler", ["ddim v trailing", "euler karras v"])
def test_so_they_are_with_stable_diffusion_2(both, scheduler):
    assert_same(both(scheduler, "upscale sd2"), "a cat", image=pil(8, 8), **STEPS)


@pytest.mark.parametrize(
    "options",
    [
        dict(noise_level=0),
        dict(noise_level=350),
        dict(guidance_scale=1.0),
        dict(negative_prompt="ugly", num_images_per_prompt=2),
        dict(eta=0.8, clip_skip=1),
        dict(latents=torch.randn(1, 4, 8, 8, generator=generator(3))),
        dict(image=pil(13, 10)),
        dict(image=picture(6, 10, count=1)),  # no multiple of what the network halves
        dict(image=picture(8, 8).permute(1, 2, 0).numpy()[None]),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(both, options):
    assert_same(both(), "a cat", **{"image": pil(8, 8), **STEPS, **options})


def test_several_pictures(both):
    call = dict(image=[pil(8, 8), pil(8, 8, seed=1)], **STEPS)
    assert_same(both(), ["a cat", "a dog"], **call)
    assert_same(both(), ["a cat", "a dog"], num_images_per_prompt=2, **call)
    assert_same(both(), ["a cat", "a dog"], generator=lambda: [generator(1), generator(2)], **call)


def test_a_picture_made_alone_with_its_own_seed_is_the_same(both):
    ours, _ = both()
    shown = [pil(8, 8), pil(8, 8, seed=1)]
    made = images(ours, ["a", "b"], image=shown, num_images_per_prompt=2, pair_images=True, seed=5, **STEPS)
    alone = images(ours, "b", image=shown[1], seed=8, **STEPS)
    np.testing.assert_allclose(made[3:], alone, atol=1e-5)


def test_given_embeddings(both):
    embeds, negative = torch.randn(2, 1, 16, 24, generator=generator(4))
    given = dict(prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert_same(both(), image=pil(8, 8), **given, **STEPS)


def shown_to(network, call):
    """What the network was given at each call: its first argument and its class labels."""
    seen: list = []

    def look(module, args, kwargs):
        seen.append((args[0], kwargs["class_labels"]))

    handle = network.register_forward_pre_hook(look, with_kwargs=True)
    try:
        call()
    finally:
        handle.remove()
    return seen


def test_the_noise_level_is_told_and_really_added(both):
    ours, _ = both()
    clean = picture(8, 8, count=1) * 2 - 1
    apart = []
    for level in (0, 100, 300):
        call = dict(image=picture(8, 8, count=1), noise_level=level, **STEPS)
        seen = shown_to(ours.unet, lambda call=call: images(ours, "a", **call))
        assert {tuple(labels.tolist()) for _, labels in seen} == {(level, level)}
        x = seen[-1][0]
        apart.append(float((x[:1, 4:] - clean).std()))
    sigmas = [float((1 - ours.low_res_scheduler.alphas_cumprod[k]).sqrt()) for k in (0, 100, 300)]
    assert apart == sorted(apart)
    assert apart[0] < 0.02
    assert apart[1:] == pytest.approx(sigmas[1:], rel=0.3)


def test_the_older_callback(both):
    logs: list[list] = [[], []]
    for pipe, log in zip(both(), logs, strict=True):
        images(pipe, "a", image=pil(8, 8), callback_steps=2, **STEPS,
               callback=lambda i, t, x, log=log: log.append((i, int(t), tuple(x.shape))))  # fmt: skip
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2


def test_outputs_have_the_reference_forms(both):
    for output in ("latent", "pt", "pil"):
        ours, theirs = (p("a", image=pil(8, 8), output_type=output, generator=generator(), **STEPS) for p in both())
        assert type(ours).__name__ == type(theirs).__name__ == "StableDiffusionPipelineOutput"
        assert type(ours.images) is type(theirs.images)
    assert ours.images[0].size == theirs.images[0].size == (16, 16)
    alone = both()[0]("a", image=pil(8, 8), output_type="np", return_dict=False, **STEPS)
    assert alone[1] is None


def test_folders_load_on_both_sides(both, tmp_path):
    assert_checkpoints_go_both_ways(both(), tmp_path, image=pil(8, 8), **STEPS)
    assert langevin.DiffusionPipeline.from_pretrained(tmp_path / "theirs").config.max_noise_level == 350


def test_the_autoencoder_keeps_its_own_scale(both, twins):
    ours, _ = both()
    own = twins(unet="upscale")[0].vae.config.scaling_factor
    assert ours.vae.config.scaling_factor == own
    wanted = images(ours, "a", image=pil(8, 8), **STEPS)
    ours.scaling_factor = None
    x = torch.randn(1, 4, 8, 8, generator=generator(2))
    torch.testing.assert_close(ours.codec.decode(x), ours.vae.decode(x / own).sample)
    assert abs(images(ours, "a", image=pil(8, 8), **STEPS) - wanted).max() > 0.01


def test_an_autoencoder_in_another_precision(both):
    import copy

    ours, _ = both()
    half = StableDiffusionUpscalePipeline.from_pipe(ours, vae=copy.deepcopy(ours.vae).to(torch.bfloat16))
    half.set_progress_bar_config(disable=True)
    made = images(half, "a", image=pil(8, 8), **STEPS)
    np.testing.assert_allclose(made, images(ours, "a", image=pil(8, 8), **STEPS), atol=0.05)


def test_the_safety_checker_and_the_watermarker_have_their_turn(both, twins):
    ours, _ = both()
    parts = twins(unet="sd1", safety=True)[0].components

    class Marker:
        def apply_watermark(self, made):
            for one in made:
                one.putpixel((0, 0), (1, 2, 3))
            return made

    pipe = StableDiffusionUpscalePipeline(
        **{**ours.components, "watermarker": Marker(), "safety_checker": parts["safety_checker"],
           "feature_extractor": parts["feature_extractor"]}
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    made = pipe("a", image=pil(8, 8), **STEPS)
    assert isinstance(made.nsfw_content_detected[0], bool)
    assert made.images[0].getpixel((0, 0)) == (1, 2, 3)
    assert made.images[0].settings["noise_level"] == 20


def test_large_pictures_go_in_windows_with_what_they_see(both):
    ours, _ = both()
    call = dict(image=picture(16, 24), output_type="latent", generator=generator(1), **STEPS)
    parts = [Windows(8, 4, smooth=True)]
    made: list = []
    seen = shown_to(ours.unet, lambda: made.append(ours("a", guiders=parts, **call).images))
    assert made[0].shape == (1, 4, 16, 24)
    assert {tuple(x.shape[1:]) for x, _ in seen} == {(7, 8, 8)}
    assert len(seen) == 4 * 3 * 5
    places = {tuple(x[0, 4:].flatten().tolist()) for x, _ in seen}
    assert len(places) == 3 * 5  # each window has its own part of the small picture


def test_it_can_be_made_again(both, tmp_path):
    ours, _ = both()
    call = dict(image=[pil(10, 8), pil(10, 8, seed=1)], noise_level=50, seed=1, **STEPS)
    assert_made_again(ours, tmp_path, ["a", "b"], row=1, **call)
    larger = ours("a", image=pil(8, 8), height=32, width=48, num_inference_steps=1).images[0]
    assert larger.size == (48, 32)
    assert larger.settings["guidance_scale"] == 9.0


def test_guiders_of_the_family_have_their_effect(both):
    ours, _ = both()
    call = dict(image=pil(8, 8), **STEPS)
    plain = images(ours, "a cat", **call)
    np.testing.assert_array_equal(images(ours, "a cat", guiders=[ClassifierFreeGuidance(9.0)], **call), plain)
    for guiders in ([langevin.SelfAttentionGuidance(1.5)], [langevin.SafeGuidance("dog", warmup_steps=0)]):
        assert abs(images(ours, "a cat", guiders=guiders, **call) - plain).max() > 1e-3
    assert abs(images(ours, "a (cat)1.8", **call) - plain).max() > 1e-3
    text_to_image = langevin.StableDiffusionPipeline.from_pipe(ours)
    low = LowResolution(picture(8, 8, count=1) * 2 - 1, 20, ours.low_res_scheduler)
    given = dict(height=16, width=16, guidance_scale=9.0, output_type="latent", **STEPS)
    made = text_to_image("a", guiders=[low], generator=generator(3), **given).images
    wanted = ours("a", image=picture(8, 8, count=1), generator=generator(3), output_type="latent", **STEPS).images
    torch.testing.assert_close(made, wanted)


def test_eight_threads_with_a_picture_each(both):
    ours, _ = both()

    def one(k):
        return ours("a", image=pil(8, 8, seed=k), num_inference_steps=2, seed=1, output_type="np").images

    serial = [one(k) for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(one), strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(image=None), "image is missing"),
        (dict(noise_level=351), "noise_level is 351; this upscaler knows 0 to 350"),
        (dict(noise_level=-1), "noise_level is -1"),
        (dict(height=18), "height and width are 18 and 4; both must be multiples of 4"),
        (dict(image=[pil(8, 8)] * 3), "3 images for a batch of 1"),
        (dict(guiders=[LowResolution(torch.zeros(1, 3, 4, 4), 0, langevin.DDPMScheduler())]), "x has 8 x 8 places"),
    ],
)
def test_bad_input_gets_one_clear_line(both, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        both()[0]("a", **{"image": pil(8, 8), **STEPS, **options})
    assert "\n" not in str(caught.value)


def test_a_network_without_channels_for_the_picture_is_refused(both):
    with pytest.raises(ValueError, match=r"takes 4 channels, where x and what is joined to it \(image\) have 7"):
        both(unet="sd1")[0]("a", image=pil(8, 8), **STEPS)
