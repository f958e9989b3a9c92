"""Stable unCLIP against the reference: from a prompt by way of a prior, and from a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import langevin
from langevin import Control, DiffusionPipeline, SafeGuidance, SelfAttentionGuidance, StableDiffusionPipeline
from langevin.media.settings import read_settings
from tests.helpers import tiny_tokenizer
from tests.pipelines.control_checks import controlnets
from tests.pipelines.family_checks import assert_made_again, assert_same, generator, images, pil
from tests.prompts.readers_parts import clip_encoder, clip_vision, random

TEXT, IMAGE = "StableUnCLIPPipeline", "StableUnCLIPImg2ImgPipeline"
STEPS = dict(num_inference_steps=3)
PRIORS = {
    "ddpm": ("DDPMScheduler", dict(prediction_type="sample", clip_sample_range=5.0, beta_schedule="squaredcos_cap_v2")),
    "ddim": ("DDIMScheduler", dict(prediction_type="sample", clip_sample=False, beta_schedule="squaredcos_cap_v2")),
    "unclip": ("UnCLIPScheduler", dict(prediction_type="sample", clip_sample_range=5.0)),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Parts that both have, as (ours, the reference's)."""
    import diffusers
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    text_encoder = clip_encoder(tokenizer, projection=24)
    vision, extractor = clip_vision(projection_dim=24)
    sizes = dict(num_attention_heads=2, attention_head_dim=6, num_layers=2, embedding_dim=24, num_embeddings=16)
    prior = random(diffusers.PriorTransformer(**sizes))
    our_prior = langevin.PriorTransformer(**sizes).eval()
    our_prior.load_state_dict(prior.state_dict())
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=24)
    torch.nn.init.normal_(normalizer.mean)
    torch.nn.init.uniform_(normalizer.std, 0.5, 2)
    our_normalizer = langevin.StableUnCLIPImageNormalizer(embedding_dim=24)
    our_normalizer.load_state_dict(normalizer.state_dict())
    noising = dict(beta_schedule="squaredcos_cap_v2")
    return dict(
        prior_tokenizer=(tokenizer, tokenizer),
        prior_text_encoder=(text_encoder, text_encoder),
        prior=(our_prior, prior),
        image_normalizer=(our_normalizer, normalizer),
        image_noising_scheduler=(langevin.DDPMScheduler(**noising), diffusers.DDPMScheduler(**noising)),
        image_encoder=(vision, vision),
        feature_extractor=(extractor, extractor),
    )


@pytest.fixture
def make(twins, shared):
    def make(name=TEXT, unet="unclip", scheduler="pndm", prior="ddpm"):
        import diffusers

        kind, config = PRIORS[prior]
        chosen = tuple(getattr(library, kind)(**config) for library in (langevin, diffusers))
        return twins(name, unet=unet, scheduler=scheduler, prior_scheduler=chosen, **shared)

    return make


def call(name, **options):
    return {**(dict(prompt="a cat", prior_num_inference_steps=4) if name == TEXT else dict(image=pil(40, 30))), **STEPS,
            **options}  # fmt: skip


both_names = pytest.mark.parametrize("name", [TEXT, IMAGE])


@both_names
@pytest.mark.parametrize(
    ("unet", "scheduler"),
    [("unclip", "pndm"), ("unclip", "ddim old config"), ("unclip sd2", "euler karras v"), ("unclip sd2", "euler a")],
)
def test_pictures_are_the_reference_ones(make, name, unet, scheduler):
    assert_same(make(name, unet, scheduler), **call(name, noise_level=30))


@pytest.mark.parametrize("prior", PRIORS)
def test_solvers_of_the_prior(make, prior):
    assert_same(make(prior=prior, scheduler="ddim"), **call(TEXT, eta=0.5, num_images_per_prompt=2))


@both_names
@pytest.mark.parametrize(
    "options",
    [
        dict(prompt=["a cat", "two dogs"], negative_prompt=["ugly", ""], eta=0.5),
        dict(prompt="a dog", num_images_per_prompt=2, noise_level=500, eta=0.5),
        dict(guidance_scale=1.0, height=24, width=8),
        dict(latents=lambda: torch.randn(1, 4, 8, 8, generator=generator(9)), eta=0.5),
        dict(prompt=["a", "b"], generator=lambda: [generator(1), generator(2)], eta=0.5),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(make, name, options):
    if name == IMAGE and isinstance(options.get("prompt"), list):
        options = {**options, "image": [pil(), pil(40, 30, seed=1)]}
    assert_same(make(name, scheduler="ddim"), **call(name, **options))


@pytest.mark.parametrize(
    "options",
    [
        dict(prior_guidance_scale=1.0),
        dict(prior_guidance_scale=7.0, clip_skip=1),
        dict(prior_latents=lambda: torch.randn(1, 24, generator=generator(4))),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_of_the_prior(make, options):
    assert_same(make(scheduler="ddim"), **call(TEXT, **options))


@pytest.mark.parametrize(
    "options",
    [
        dict(image=torch.randn(1, 3, 32, 32, generator=generator(2))),
        dict(image=None, image_embeds=torch.randn(1, 24, generator=generator(2)), prompt="a cat"),
        dict(image=[pil(), pil(seed=1)], num_images_per_prompt=2, noise_level=100, eta=0.4),
    ],
    ids=lambda o: ",".join(o),
)
def test_kinds_of_pictures(make, options):
    assert_same(make(IMAGE, scheduler="ddim"), **call(IMAGE, **options))


def test_the_prior_may_go_where_its_run_goes(make):
    """The reference goes down by one timestep of a thousand each time, under unCLIP's own scheduler."""
    pipe, _ = make(prior="unclip")
    usual, right = (images(pipe, **call(TEXT, prior_skips=skips)) for skips in (False, True))
    assert abs(usual - right).max() > 1e-3
    run = pipe.prior_scheduler.plan(4)
    assert run.targets[0] == run.levels[1]
    by_one = pipe.prior_scheduler.plan(4, by_one=True)
    assert by_one.targets[0] == pipe.prior_scheduler.noise_schedule.level(998)
    ddpm = make()[0]
    np.testing.assert_array_equal(*(images(ddpm, **call(TEXT, prior_skips=skips)) for skips in (False, True)))


@both_names
@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "heun"])
def test_the_older_callback(make, name, scheduler):
    """Here, and here alone, it comes after every network call, of the prior too."""
    logs: list[list] = [[], []]
    for pipe, log in zip(make(name, scheduler=scheduler), logs, strict=True):
        images(
            pipe,
            **call(name),
            callback_steps=2,
            callback=lambda i, t, x, log=log: log.append((i, int(t), x.sum().item())),
        )
    np.testing.assert_allclose(*logs, rtol=1e-3, atol=1e-3)


@both_names
def test_folders_load_on_both_sides(make, name, tmp_path):
    ours, theirs = make(name)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = images(theirs, **call(name))
    index = json.loads((tmp_path / "ours/model_index.json").read_text())
    assert index["image_normalizer"] == ["stable_diffusion", "StableUnCLIPImageNormalizer"]
    read = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(read) is type(ours)
    back = type(theirs).from_pretrained(tmp_path / "ours")
    for pipe in (read, back):
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(images(pipe, **call(name)), wanted, atol=1e-4)


@both_names
def test_guiders_and_control_stack(make, name, twins, tmp_path_factory):
    pipe = make(name)[0]
    net = controlnets(twins, tmp_path_factory, unet="unclip")[0]
    usual = images(pipe, **call(name))
    for more in (
        dict(guiders=[SelfAttentionGuidance(1.5)]),
        dict(guiders=[SafeGuidance("dog", warmup_steps=1, threshold=0.5)]),
        dict(control=[Control(net, pil(seed=2))]),
    ):
        assert abs(usual - images(pipe, **call(name), **more)).max() > 1e-3


def test_weights_of_words_reach_the_prior_too(make):
    pipe = make(scheduler="ddim")[0]
    seen = []
    step = {"callback_on_step_end": lambda c, i, t, x: seen.append(x["latents"]) or {}}
    for text in ("a cat", "a (cat)1.0", "a (cat)1.6"):
        images(pipe, **call(TEXT, prompt=text), **step)
    plain, same, heavy = seen[3], seen[3 + 7], seen[3 + 14]  # 4 calls of the prior; 3 of the network
    assert torch.equal(plain, same)
    assert abs(plain - heavy).max() > 1e-4


@both_names
def test_a_picture_made_alone_is_the_same_and_carries_its_settings(make, name, tmp_path):
    pipe = make(name)[0]
    two = {} if name == TEXT else dict(image=[pil(), pil(seed=1)])
    one = {} if name == TEXT else dict(image=pil(seed=1))
    both = pipe(**call(name, prompt=["a cat", "a dog"], noise_level=20, **two), seed=[3, 8])
    alone = pipe(**call(name, prompt="a dog", noise_level=20, **one), seed=8).images[0]
    assert type(both) is langevin.ImagePipelineOutput
    assert abs(np.asarray(alone, dtype=float) - np.asarray(both.images[1], dtype=float)).max() <= 1  # rounding
    alone.save(tmp_path / "made.png")
    settings = read_settings(tmp_path / "made.png")
    assert alone.settings == both.images[1].settings
    assert (settings["pipeline"], settings["seed"], settings["noise_level"]) == (name, 8, 20)
    if name == TEXT:
        assert {stage: it["scheduler"] for stage, it in settings["stages"].items()} == {
            "prior": "DDPMScheduler",
            "picture": "PNDMScheduler",
        }


@both_names
def test_pictures_are_made_again(make, name, tmp_path):
    pipe = make(name, scheduler="euler a")[0]
    assert_made_again(pipe, tmp_path, **call(name, noise_level=7))


def test_parts_are_shared_with_the_family(make):
    pipe = make(IMAGE)[0]
    assert StableDiffusionPipeline.from_pipe(pipe).unet is pipe.unet
    assert langevin.StableUnCLIPImg2ImgPipeline.from_pipe(make(IMAGE)[0]).image_encoder is pipe.image_encoder


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (TEXT, dict(noise_level=1000), r"noise_level is 1000; it must be in 0..999"),
        (TEXT, dict(prompt=None, prompt_embeds=torch.zeros(1, 16, 24)), "give a prompt"),
        (TEXT, dict(prompt=None), "neither of prompt and prompt_embeds"),
        (IMAGE, dict(image=None), "neither of image and image_embeds"),
        (IMAGE, dict(image=[pil(), pil()], prompt=["a", "b", "c"]), "2 image embeddings for 3 prompts"),
        (IMAGE, dict(noise_level=-1), "noise_level"),
    ],
)
def test_bad_input_gets_one_clear_line(make, name, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        make(name)[0](**call(name, **options))
    assert "\n" not in str(caught.value)
