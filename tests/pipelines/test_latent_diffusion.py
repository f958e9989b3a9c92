"""Latent diffusion against the reference: from texts, from nothing, and to larger pictures."""

from __future__ import annotations

import copy
import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import langevin
from langevin import DiffusionPipeline, ImageStart, LDMPipeline, LDMSuperResolutionPipeline, LDMTextToImagePipeline
from langevin.media.settings import read_settings
from tests.helpers import TINY_UNET, in_threads, tiny_tokenizer
from tests.models.models_oracle import twins
from tests.pipelines.family_checks import (
    assert_made_again,
    assert_offloading_changes_nothing,
    assert_same,
    generator,
    images,
    picture,
    pil,
)
from tests.prompts.readers_parts import bert_sizes, bert_tokenizer, clip_encoder, random

TEXT, LARGER, ALONE = "LDMTextToImagePipeline", "LDMSuperResolutionPipeline", "LDMPipeline"
STAGES = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
VAES = {
    "kl": ("AutoencoderKL", dict(block_out_channels=(4, 4, 8, 8), latent_channels=4)),
    "vq 8": ("VQModel", dict(block_out_channels=(4, 4, 8, 8), latent_channels=4, num_vq_embeddings=20)),
    "vq": ("VQModel", dict(block_out_channels=(8, 8), num_vq_embeddings=24, scaling_factor=0.4)),
    "vq narrow": ("VQModel", dict(block_out_channels=(8, 8, 8), latent_channels=5, vq_embed_dim=3)),
    "kl 3": ("AutoencoderKL", dict(block_out_channels=(8, 8), latent_channels=3)),
}
TEXT_UNET = {**TINY_UNET, "sample_size": 4}
UNET = dict(
    sample_size=8,
    in_channels=3,
    out_channels=3,
    block_out_channels=(16, 16),
    layers_per_block=1,
    norm_num_groups=8,
    attention_head_dim=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
SCHEDULERS = {
    "ddim": ("DDIMScheduler", dict(clip_sample=False, beta_schedule="scaled_linear")),
    "ddim clipped": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", dict(skip_prk_steps=True)),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler a": ("EulerAncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
}


def pair(kind, **config):
    """Our network and the reference's, of the same random weights."""
    return twins(getattr(langevin, kind), **config)[::-1]


def autoencoder(name):
    kind, config = VAES[name]
    count = len(config["block_out_channels"])
    stages = {key: value[:1] * count for key, value in STAGES.items()}
    return pair(kind, norm_num_groups=4, **stages, **config)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Parts that both have, by name and kind, as (ours, the reference's)."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    theirs = random(LDMBertModel(LDMBertConfig(**bert_sizes())))
    ours = langevin.LDMBertModel(langevin.LDMBertConfig(**bert_sizes())).eval()
    ours.load_state_dict(theirs.state_dict())
    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), window=77)
    clip, words = clip_encoder(tokenizer), bert_tokenizer()
    return {
        "bert": dict(bert=(ours, theirs), tokenizer=(words, words)),
        "clip": dict(bert=(clip, clip), tokenizer=(tokenizer, tokenizer)),
        **{name: dict(vqvae=autoencoder(name)) for name in VAES},
        TEXT: dict(unet=pair("UNet2DConditionModel", **TEXT_UNET)),
        LARGER: dict(unet=pair("UNet2DModel", **{**UNET, "in_channels": 6})),
        ALONE: dict(unet=pair("UNet2DModel", **UNET)),
    }


@pytest.fixture
def make(parts):
    def make(name=TEXT, scheduler="ddim", vqvae=None, text="bert"):
        import diffusers

        chosen = {**parts[name], **parts[vqvae or ("kl" if name == TEXT else "vq")]}
        chosen |= parts[text] if name == TEXT else {}
        kind, config = SCHEDULERS[scheduler]
        pipes = []
        for k, library in enumerate((langevin, diffusers)):
            own = {part: both[k] for part, both in chosen.items()}
            pipes.append(getattr(library, name)(**own, scheduler=getattr(library, kind)(**config)))
            pipes[-1].set_progress_bar_config(disable=True)
        return tuple(pipes)

    return make


def small(count=1, seed=0, side=32):
    """Small pictures in the form that the reference takes, [-1, 1]."""
    return 2 * picture(side, side, seed, count=count) - 1


def assert_same_noise(both, *args, **kwargs):
    """The same where steps add noise: the reference draws it from torch's global state, whatever generator it has."""
    made = []
    for pipe in both:
        torch.manual_seed(5)
        made.append(images(pipe, *args, **kwargs, generator=None))
    np.testing.assert_allclose(*made, atol=1e-4)


def call(name, **options):
    own = {TEXT: dict(prompt="a cat"), LARGER: dict(image=pil(40, 70)), ALONE: {}}[name]
    return {**own, "num_inference_steps": 3, **options}


each = pytest.mark.parametrize("name", [TEXT, LARGER, ALONE])


# -- numbers


@pytest.mark.parametrize("text", ["bert", "clip"])
@pytest.mark.parametrize(
    ("scheduler", "vqvae"), [("ddim", "kl"), ("ddim clipped", "vq 8"), ("pndm", "kl"), ("dpm++", "vq 8")]
)
def test_pictures_from_texts_are_the_reference_ones(make, text, scheduler, vqvae):
    both = make(TEXT, scheduler, vqvae, text)
    assert_same(both, **call(TEXT, prompt=["a cat", "two dogs"], guidance_scale=3.0, num_inference_steps=5))


@pytest.mark.parametrize(
    "options",
    [
        dict(prompt="a dog"),
        dict(guidance_scale=1.0),
        dict(guidance_scale=0.5),
        dict(guidance_scale=0.0),
        dict(guidance_scale=6.0, height=40, width=24),
        dict(latents=lambda: torch.randn(1, 4, 4, 4, generator=generator(9))),
        dict(prompt=["a", "b"], generator=lambda: [generator(1), generator(2)], guidance_scale=2.0),
        dict(prompt=""),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_from_texts(make, options):
    assert_same(make(TEXT), **call(TEXT, **options))


@pytest.mark.parametrize(
    ("scheduler", "vqvae"),
    [
        *((scheduler, "vq") for scheduler in ("ddim", "euler", "euler a", "lms", "dpm++", "pndm")),
        *((scheduler, vqvae) for scheduler in ("ddim", "euler") for vqvae in ("vq narrow", "kl 3")),
    ],
)
def test_larger_pictures_are_the_reference_ones(make, scheduler, vqvae):
    same = assert_same_noise if scheduler == "euler a" else assert_same
    same(make(LARGER, scheduler, vqvae), **call(LARGER, image=small(), num_inference_steps=5))


@pytest.mark.parametrize(
    "options",
    [
        dict(image=pil(70, 40)),
        dict(image=pil(32, 32)),
        dict(image=small(2)),
        dict(image=small(2), batch_size=2, generator=lambda: [generator(1), generator(2)]),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_of_larger_pictures(make, options):
    assert_same(make(LARGER), **call(LARGER, **options))


@pytest.mark.parametrize("vqvae", ["vq", "vq narrow", "kl 3"])
@pytest.mark.parametrize("scheduler", ["ddim", "ddim clipped", "euler", "pndm"])
def test_pictures_from_nothing_are_the_reference_ones(make, scheduler, vqvae):
    assert_same(make(ALONE, scheduler, vqvae), **call(ALONE, batch_size=2, num_inference_steps=5))


@each
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_fresh_noise(make, name, eta):
    both = make(name)
    assert_same_noise(both, **call(name, eta=eta))
    one, two, other = (images(both[0], **call(name, eta=eta), seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert abs(one - other).max() > 1e-3


# -- where the reference does otherwise


@pytest.mark.parametrize("scheduler", ["euler", "lms", "ddim"])
def test_it_is_stable_diffusion_of_other_parts(make, scheduler):
    """With schedulers that count in noise levels the reference's is not: it begins with noise of spread 1 and shows the
    network x unscaled.
    """
    ours, theirs = make(TEXT, scheduler, text="clip")
    stable = langevin.StableDiffusionPipeline(
        ours.vqvae, ours.bert, ours.tokenizer, ours.unet, ours.scheduler, requires_safety_checker=False
    )
    stable.set_progress_bar_config(disable=True)
    made = [images(pipe, **call(TEXT, guidance_scale=3.0, height=32, width=32)) for pipe in (ours, stable, theirs)]
    if scheduler != "ddim":
        np.testing.assert_array_equal(made[0], made[1])
    assert (abs(made[0] - made[2]).max() < 1e-4) == (scheduler == "ddim")


@pytest.mark.parametrize("scheduler", ["euler", "lms", "ddim"])
def test_the_small_picture_may_be_shown_as_it_is(make, scheduler):
    pipe = make(LARGER, scheduler)[0]
    shown: list[float] = []
    hook = pipe.unet.register_forward_pre_hook(lambda m, a: shown.append(float(a[0][:, 3:].std())))
    usual, right = (images(pipe, **call(LARGER, image=small(), scale_image=scaled)) for scaled in (True, False))
    hook.remove()
    spread = float(small().std())
    assert shown[3:] == pytest.approx([spread] * 3)
    if scheduler == "ddim":
        np.testing.assert_array_equal(usual, right)
        return
    assert shown[0] < spread / 50  # at the first step nothing of it is left
    assert abs(usual - right).max() > 1e-3


def test_sizes_fit_autoencoders_of_any_factor(make):
    """The reference divides by 8, whatever the factor is."""
    pipe = make(TEXT, vqvae="kl")[0]
    vae = autoencoder("kl 3")[0]
    unet = langevin.UNet2DConditionModel(**{**TEXT_UNET, "in_channels": 3, "out_channels": 3}).eval()
    two = LDMTextToImagePipeline.from_pipe(pipe, vqvae=vae, unet=unet)
    two.set_progress_bar_config(disable=True)
    assert images(two, **call(TEXT)).shape == (1, 8, 8, 3)
    assert images(two, **call(TEXT, height=12, width=16)).shape == (1, 12, 16, 3)


def test_as_many_larger_pictures_as_asked_for(make):
    """The reference makes one for each small one, whatever batch_size is."""
    pipe = make(LARGER)[0]
    two = images(pipe, **call(LARGER, image=small(), batch_size=2), seed=[4, 5])
    each = [images(pipe, **call(LARGER, image=small()), seed=seed)[0] for seed in (4, 5)]
    np.testing.assert_allclose(two, each, atol=1e-3)
    assert images(pipe, **call(LARGER, image=[pil(32, 32), pil(40, 32)])).shape == (2, 64, 64, 3)
    four = images(pipe, **call(LARGER, image=small(2), batch_size=4, eta=0.0))
    assert four.shape == (4, 64, 64, 3)


@pytest.mark.parametrize(
    "image",
    [small()[0], (small() + 1) / 2, ((small()[0] + 1) / 2).permute(1, 2, 0).numpy(), pil(32, 32).convert("L")],
    ids=["one tensor", "in [0, 1]", "array", "grey"],
)
def test_kinds_of_small_pictures(make, image):
    pipe = make(LARGER)[0]
    tensor = isinstance(image, torch.Tensor)
    made = images(pipe, **call(LARGER, image=image, prepared=not tensor or image.ndim == 3))
    same = image if tensor and image.ndim == 3 else small()
    if not hasattr(image, "convert"):
        np.testing.assert_allclose(made, images(pipe, **call(LARGER, image=same)), atol=1e-4)
    assert made.shape == (1, 64, 64, 3)


# -- folders


@each
def test_folders_load_on_both_sides(make, name, tmp_path):
    both = make(name)
    for pipe, place in zip(both, ("ours", "theirs"), strict=True):
        pipe.save_pretrained(tmp_path / place)
    index = [json.loads((tmp_path / place / "model_index.json").read_text()) for place in ("ours", "theirs")]
    kept = [{k: v for k, v in one.items() if not k.startswith("_") or k == "_class_name"} for one in index]
    assert kept[0] == kept[1]
    reads = DiffusionPipeline.from_pretrained(tmp_path / "theirs"), type(both[1]).from_pretrained(tmp_path / "ours")
    assert type(reads[0]) is type(both[0])
    wanted = images(both[1], **call(name))
    for pipe in reads:
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(images(pipe, **call(name)), wanted, atol=1e-4)


def test_old_folders_load(make, tmp_path):
    """As CompVis/ldm-text2im-large-256 and its sisters were written: by 0.0.4, with settings that are gone, names of
    attention weights that are old, and ``pytorch_model.bin`` for the text encoder.
    """
    pipe = make(TEXT, vqvae="vq 8")[0]
    wanted = images(pipe, **call(TEXT))
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {"_diffusers_version": "0.0.4", "tokenizer": ["transformers", "BertTokenizerFast"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for part, gone in (
        ("unet", {"_diffusers_version": "0.0.4"}),
        ("vqvae", {"_diffusers_version": "0.0.4", "scaling_factor": None}),
        ("scheduler", {"timestep_values": None, "trained_betas": None}),
    ):
        place = next((tmp_path / part).glob("*config.json"))
        config = {**json.loads(place.read_text()), **gone}
        place.write_text(json.dumps({k: v for k, v in config.items() if v is not None or k == "trained_betas"}))
    weights = tmp_path / "vqvae/diffusion_pytorch_model.bin"
    state = torch.load(weights)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    torch.save(state, weights)
    torch.save(load_file(tmp_path / "bert/model.safetensors"), tmp_path / "bert/pytorch_model.bin")
    (tmp_path / "bert/model.safetensors").unlink()
    read = DiffusionPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    assert type(read) is LDMTextToImagePipeline
    assert read.vqvae.config.scaling_factor == 0.18215
    np.testing.assert_allclose(images(read, **call(TEXT)), wanted, atol=1e-5)  # 32 pixels, not 64 latents
    assert wanted.shape == (1, 32, 32, 3)


PUBLISHED_BERT = dict(
    activation_dropout=0.0, activation_function="gelu", attention_dropout=0.0, classifier_dropout=0.0, d_model=1280,
    dropout=0.1, encoder_attention_heads=8, encoder_ffn_dim=5120, encoder_layerdrop=0.0, encoder_layers=32, head_dim=64,
    init_std=0.02, max_position_embeddings=77, model_type="ldmbert", num_hidden_layers=32, pad_token_id=0,
    scale_embedding=False, use_cache=True, vocab_size=30522,
)  # fmt: skip


def test_the_published_text_encoder_is_known():
    """The other networks of the three published models stand in ``tests/models/test_models_published.py``."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    with torch.device("meta"):
        theirs = LDMBertModel(LDMBertConfig(**PUBLISHED_BERT)).state_dict()
        ours = langevin.LDMBertModel(langevin.LDMBertConfig(**PUBLISHED_BERT)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


# -- what every pipeline does


@each
def test_a_picture_made_alone_is_the_same_and_carries_its_settings(make, name, tmp_path):
    pipe = make(name)[0]
    pipe = type(pipe)(**copy.deepcopy(pipe.components)).to(torch.float64)  # a codebook makes much of rounding
    pipe.set_progress_bar_config(disable=True)
    two, one = {
        TEXT: (dict(prompt=["a cat", "a dog"]), dict(prompt="a dog")),
        LARGER: (dict(image=[pil(32, 32), pil(32, 32, seed=1)]), dict(image=pil(32, 32, seed=1))),
        ALONE: (dict(batch_size=2), {}),
    }[name]
    both = pipe(**call(name, eta=0.5, **two), seed=[3, 8])
    alone = pipe(**call(name, eta=0.5, **one), seed=8).images[0]
    assert type(both) is langevin.ImagePipelineOutput
    assert abs(np.asarray(alone, dtype=float) - np.asarray(both.images[1], dtype=float)).max() <= 1
    alone.save(tmp_path / "made.png")
    settings = read_settings(tmp_path / "made.png")
    assert alone.settings == both.images[1].settings
    assert (settings["pipeline"], settings["seed"], settings["eta"]) == (name, 8, 0.5)
    assert settings["scheduler"] == "DDIMScheduler"


@each
def test_pictures_are_made_again(make, name, tmp_path):
    more = {TEXT: dict(guidance_scale=0.5), LARGER: dict(scale_image=False), ALONE: dict(eta=0.2)}[name]
    assert_made_again(make(name)[0], tmp_path, **call(name, **more))


def test_words_weigh_and_change_on_the_way(make):
    pipe = make(TEXT)[0]
    plain, same, heavy, changed, away = (
        images(pipe, **call(TEXT, prompt=text, negative_prompt=negative, guidance_scale=3.0))
        for text, negative in (
            ("a cat", None), ("a (cat)1.0", ""), ("a (cat)1.6", None), ("a [cat:dog:0.5]", None), ("a cat", "a dog"),
        )
    )  # fmt: skip
    np.testing.assert_array_equal(plain, same)
    for other in (heavy, changed, away):
        assert abs(plain - other).max() > 1e-4


def test_long_prompts_are_read_in_several_windows(make, caplog):
    pipe = make(TEXT)[0]
    long = "a cat " * 40
    with caplog.at_level(logging.WARNING):
        whole, cut = (images(pipe, **call(TEXT, prompt=long, long_prompts=how)) for how in ("chunk", "cut"))
    assert abs(whole - cut).max() > 1e-4
    assert "not seen" in caplog.text
    embeds = pipe.encode_prompt("a cat", num_images_per_prompt=2, do_classifier_free_guidance=False)[0]
    assert embeds.shape == (2, 77, 24)
    given = images(pipe, **call(TEXT, prompt=None, prompt_embeds=embeds[:1]))
    np.testing.assert_allclose(given, images(pipe, **call(TEXT)), atol=1e-5)


def test_guiders_stack(make):
    pipe = make(TEXT)[0]
    usual = images(pipe, **call(TEXT, guidance_scale=3.0))
    for guider in (
        langevin.GuidanceRescale(0.7),
        langevin.SafeGuidance("dog", warmup_steps=0, threshold=0.5),
        langevin.ClassifierFreeGuidance(3.0, stop=0.5),
        ImageStart(2 * picture(32, 32, count=1) - 1, strength=0.7),
    ):
        assert abs(usual - images(pipe, **call(TEXT, guidance_scale=3.0), guiders=[guider])).max() > 1e-5
    for name, side in ((ALONE, 16), (LARGER, 64)):
        pipe = make(name)[0]
        start = ImageStart(2 * picture(side, side, count=1) - 1, strength=0.4)
        own = call(name) if name == ALONE else call(name, image=small())
        assert abs(images(pipe, **own) - images(pipe, **own, guiders=[start])).max() > 1e-3
        mask, pixels = torch.zeros(1, 1, side, side), picture(side, side, 3, count=1)
        mask[..., : side // 2] = 1
        filled = images(pipe, **own, guiders=[langevin.Inpaint(2 * pixels - 1, mask, keep_outside=True)])
        kept = pixels[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(filled[0, :, side // 2 :], kept[:, side // 2 :], atol=1e-5)
        assert abs(filled[0] - kept)[:, : side // 2].max() > 1e-2
        with pytest.raises(ValueError, match="does not have"):
            images(pipe, **own, guiders=[langevin.ClassifierFreeGuidance(3.0)])


def test_large_pictures_go_in_windows(make):
    pipe = make(LARGER, "euler")[0]
    whole, parts = (images(pipe, **call(LARGER, image=small(), guiders=g)) for g in ([], [langevin.Windows(16, 8)]))
    assert whole.shape == parts.shape
    assert abs(whole - parts).max() > 1e-3
    alone = images(pipe, **call(LARGER, image=small(), guiders=[langevin.Windows(32, 32)]))
    np.testing.assert_allclose(alone, whole, atol=1e-4)


def test_a_start_is_encoded_into_the_book_s_latents(make):
    pipe = make(ALONE)[0]
    pixels = 2 * picture(16, 16, count=1) - 1
    kept = images(pipe, **call(ALONE), guiders=[ImageStart(pixels, strength=0.0)])
    with torch.no_grad():
        through = pipe.vqvae(pixels).sample
    np.testing.assert_allclose(kept[0], ((through[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0), atol=1e-5)
    latents = pipe.codec.encode(pixels)
    same = images(pipe, **call(ALONE), guiders=[ImageStart(latents, strength=0.0)])
    np.testing.assert_allclose(same, kept, atol=1e-5)


@each
def test_callbacks_and_interruption(make, name):
    pipe = make(name)[0]
    seen, old = [], []

    def watch(call, i, t, tensors):
        seen.append((i, int(t)))
        call._interrupt = i == 1
        return {"latents": tensors["latents"] + 1}

    ended = images(pipe, **call(name), callback_on_step_end=watch, callback=lambda i, t, x: old.append((i, int(t))))
    assert seen == old == [(0, 666), (1, 333)]
    whole = images(pipe, **call(name))
    assert ended.shape == whole.shape
    assert abs(ended - whole).max() > 1e-3


@each
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_gives_the_same_pictures(make, name, way):
    assert_offloading_changes_nothing(make(name)[0], way, **call(name))


def test_one_pipeline_serves_many_threads(make):
    pipe = make(LARGER)[0]
    made = in_threads(lambda k: images(pipe, **call(LARGER), seed=k % 2), count=4)
    np.testing.assert_array_equal(made[0], made[2])
    assert abs(made[0] - made[1]).max() > 1e-3


def test_latents_may_be_given_and_taken(make):
    pipe = make(TEXT)[0]
    latents = pipe(**call(TEXT), output_type="latent", seed=3).images
    assert latents.shape == (1, 4, 4, 4)
    pipe = make(LARGER)[0]
    given = torch.randn(1, 3, 32, 32, generator=generator(0))
    np.testing.assert_array_equal(
        images(pipe, **call(LARGER, image=small(), latents=given), generator=None),
        images(pipe, **call(LARGER, image=small())),
    )


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (TEXT, dict(prompt=None), "neither of prompt and prompt_embeds"),
        (TEXT, dict(height=20), "height and width are 20 and 32; both must be multiples of 8"),
        (TEXT, dict(latents=torch.zeros(1, 4, 3, 3)), r"latents is \(1, 4, 3, 3\); \(1, 4, 4, 4\)"),
        (LARGER, dict(image=None), "image is missing"),
        (LARGER, dict(image=torch.zeros(1, 4, 32, 32)), r"image is \(1, 4, 32, 32\); \(n, 3, height, width\)"),
        (LARGER, dict(image=torch.zeros(2, 3, 32, 32), batch_size=3), "batch_size is 3 for 2 pictures"),
        (LARGER, dict(image="a.png"), "image"),
        (ALONE, dict(batch_size=0), "batch_size is 0"),
        (ALONE, dict(eta=2.0), "eta is 2.0"),
    ],
)
def test_bad_input_gets_one_clear_line(make, name, options, says):
    with pytest.raises((ValueError, OSError), match=says) as caught:
        make(name)[0](**call(name, **options))
    assert "\n" not in str(caught.value)


def test_doors():
    assert {LDMPipeline, LDMSuperResolutionPipeline, LDMTextToImagePipeline} <= {
        getattr(langevin, name) for name in langevin.__all__ if name.startswith("LDM")
    }
