"""The latent upscaler against the reference, and what its network is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import langevin
from langevin import SelfAttentionGuidance, Windows
from tests.helpers import in_threads
from tests.pipelines.again_checks import assert_made_again
from tests.pipelines.family_checks import (
    assert_checkpoints_go_both_ways,
    assert_same,
    generator,
    images,
    picture,
    pil,
)

NAME = "StableDiffusionLatentUpscalePipeline"
STEPS = dict(num_inference_steps=4)


@pytest.fixture
def both(twins):
    return lambda scheduler="euler sample", unet="latent upscale": twins(NAME, unet=unet, scheduler=scheduler)


@pytest.mark.parametrize(
    "scheduler",
    ["euler sample", "euler", "euler karras v", "heun sample", "lms sample"],
)
@pytest.mark.parametrize("unet", ["latent upscale", "latent upscale k"])
def test_pictures_are_the_reference_ones(both, unet, scheduler):
    assert_same(both(scheduler, unet), "a cat", image=pil(), num_inference_steps=3)


def test_fresh_noise_comes_from_the_calls_generator_too(both):
    made = []  # the reference draws it from torch's global state, whatever generator it is given
    for pipe in both("euler a"):
        torch.manual_seed(5)
        made.append(images(pipe, "a cat", image=pil(), generator=None, **STEPS))
    np.testing.assert_allclose(*made, atol=1e-4)
    ours, _ = both("euler a")
    one, two = (images(ours, "a cat", image=pil(), seed=3, **STEPS) for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=0.0),
        dict(negative_prompt="ugly"),
        dict(latents=torch.randn(1, 4, 16, 16, generator=generator(3))),
        dict(image=pil(13, 10)),
        dict(image=picture(count=1)),
        dict(image=torch.randn(1, 4, 5, 6, generator=generator(5))),
        dict(num_inference_steps=1),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(both, options):
    assert_same(both(), "a cat", **{"image": pil(), **STEPS, **options})


def test_several_pictures(both):
    call = dict(image=[pil(), pil(seed=1)], **STEPS)
    assert_same(both(), ["a cat", "a dog"], **call)
    assert_same(both(), ["a cat", "a dog"], generator=lambda: [generator(1), generator(2)], **call)
    ours, _ = both()
    made = images(ours, ["a", "b"], num_images_per_prompt=2, pair_images=True, seed=5, **call)
    np.testing.assert_allclose(made[3:], images(ours, "b", image=pil(seed=1), seed=8, **STEPS), atol=1e-4)


def embeddings(pipe, text):
    tokens = pipe.tokenizer(text, padding="max_length", max_length=16, return_tensors="pt").input_ids
    said = pipe.text_encoder(tokens, output_hidden_states=True)
    return said.hidden_states[-1].detach(), said.pooler_output.detach()


def test_given_embeddings(both):
    (tokens, pooled), (negative, negative_pooled) = (embeddings(both()[1], text) for text in ("a cat", "ugly"))
    given = dict(prompt_embeds=tokens, pooled_prompt_embeds=pooled, negative_prompt_embeds=negative)
    given |= dict(negative_pooled_prompt_embeds=negative_pooled, image=pil(), **STEPS)
    assert_same(both(), **given)
    ours, _ = both()
    wanted = images(ours, "a cat", negative_prompt="ugly", image=pil(), **STEPS)
    np.testing.assert_allclose(images(ours, **given), wanted, atol=1e-4)
    for pair in zip(*(pipe.encode_prompt("a cat", "cpu", True, "ugly") for pipe in both()), strict=True):
        torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-4)
    assert ours.encode_prompt(["a", "b"], do_classifier_free_guidance=False)[1::2] == (None, None)
    with pytest.raises(ValueError, match="give both, from the same texts"):
        ours(prompt_embeds=tokens, image=pil())


def test_the_network_is_told_the_noise_level_and_the_enlarged_picture(both):
    ours, _ = both()
    seen: list = []

    def look(module, args, kwargs):
        seen.append((*args, kwargs["timestep_cond"]))

    latents = torch.randn(1, 4, 5, 6, generator=generator(5))
    handle = ours.unet.register_forward_pre_hook(look, with_kwargs=True)
    images(ours, "a cat", image=latents, **STEPS)
    handle.remove()
    sigmas = ours.scheduler.plan(4).sigmas
    for (x, time, told), sigma in zip(seen, sigmas, strict=False):
        assert float(time) == pytest.approx(math.log(sigma) / 4, abs=1e-5)
        torch.testing.assert_close(x[0, 4:, ::2, ::2], latents[0])
        torch.testing.assert_close(x[1, 4:, 1::2, 1::2], latents[0])
        assert told[:, :64].eq(1).all()
        assert told[:, 64:128].eq(0).all()
        torch.testing.assert_close(told[1, 128:], embeddings(ours, "a cat")[1][0], atol=1e-5, rtol=1e-4)


def test_without_a_word_from_the_network_it_predicts_x_shrunk_towards_zero():
    from langevin.models.preconditioned import LatentUpscalerNetwork

    class Silent:
        config = type("config", (), dict(time_cond_proj_dim=12, in_channels=8))

        def __call__(self, x, time, timestep_cond, return_dict):
            return (torch.zeros(len(x), 5, *x.shape[2:]),)

    clean, noise = torch.randn(2, 40, 4, 32, 32, generator=generator(2))
    for sigma in (0.3, 1.0, 5.0):
        x = clean + sigma * noise
        joined = torch.cat([x / math.hypot(sigma, 1), clean], dim=1)
        (made,) = LatentUpscalerNetwork(Silent())(joined, None, sigma=sigma, pooled=torch.zeros(40, 4))
        best = (x * clean).sum() / (x * x).sum()  # least squares: how much of x is clean
        torch.testing.assert_close(made, x / (sigma**2 + 1))
        assert float(best) == pytest.approx(1 / (sigma**2 + 1), rel=0.02)


@pytest.mark.parametrize("scheduler", ["ddim sample", "dpm++ sample"])
def test_other_schedulers_end_near_where_euler_does(both, scheduler):
    call = dict(image=pil(), output_type="latent", num_inference_steps=60, guidance_scale=1.0, seed=3)
    names = ("euler sample", scheduler)
    one, two = (both(name)[0]("a cat", **call).images for name in names)
    far = both("euler sample")[0]("a cat", **{**call, "seed": 4}).images
    assert (one - two).std() < 0.2 * (one - far).std()


def test_the_older_callback_and_outputs(both):
    logs: list[list] = [[], []]
    for pipe, log in zip(both(), logs, strict=True):
        images(pipe, "a", image=pil(), callback_steps=2, **STEPS,
               callback=lambda i, t, x, log=log: log.append((i, float(t), tuple(x.shape))))  # fmt: skip
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2
    for output in ("latent", "pt", "pil"):
        ours, theirs = (p("a", image=pil(), output_type=output, generator=generator(), **STEPS) for p in both())
        assert type(ours).__name__ == type(theirs).__name__ == "ImagePipelineOutput"
        assert type(ours.images) is type(theirs.images)
    assert ours.images[0].size == theirs.images[0].size == (32, 32)
    assert len(both()[0]("a", image=pil(), return_dict=False, **STEPS)) == 1


def test_folders_load_on_both_sides(both, tmp_path):
    assert_checkpoints_go_both_ways(both(), tmp_path, image=pil(), **STEPS)


def test_it_can_be_made_again(both, tmp_path):
    ours, _ = both()
    assert_made_again(ours, tmp_path, ["a", "b"], image=[pil(), pil(seed=1)], row=1, seed=1, **STEPS)
    larger = ours("a", image=pil(), height=24, width=40, num_inference_steps=1).images[0]
    assert larger.size == (40, 24)


def test_guiders_of_the_family_have_their_effect(both):
    ours, _ = both()
    call = dict(image=pil(), **STEPS)
    plain = images(ours, "a cat", **call)
    for text in ("a (cat)1.8", "a [cat:dog:0.5]"):
        assert abs(images(ours, text, **call) - plain).max() > 1e-3
    for guiders in ([SelfAttentionGuidance(1.5)], [langevin.SafeGuidance("dog", warmup_steps=0)], [Windows(8, 4)]):
        assert abs(images(ours, "a cat", guiders=guiders, **call) - plain).max() > 1e-3
    shared = langevin.StableDiffusionPipeline.from_pipe(ours)
    assert shared.unet is ours.unet


def test_eight_threads_with_a_picture_each(both):
    ours, _ = both()

    def one(k):
        return ours("a", image=pil(seed=k), num_inference_steps=2, seed=1, output_type="np").images

    serial = [one(k) for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(one), strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(image=None), "image is missing"),
        (dict(height=18), "both must be multiples of 4"),
        (dict(image=[pil()] * 3), "3 images for a batch of 1"),
        (dict(guiders=[langevin.EnlargedLatents(torch.zeros(1, 4, 4, 4))]), "twice as many are needed"),
    ],
)
def test_bad_input_gets_one_clear_line(both, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        both()[0]("a", **{"image": pil(), **STEPS, **options})
    assert "\n" not in str(caught.value)
