"""unCLIP against the reference: from a prompt by way of a prior, and from a picture."""

from __future__ import annotations

import copy
import json
import logging

import numpy as np
import pytest
import torch

import langevin
from langevin import DiffusionPipeline, SafeGuidance, UnCLIPPipeline, UnCLIPTextProjModel
from langevin.media.schema import WrongSettings, check_settings
from langevin.media.settings import read_settings
from tests.helpers import in_threads, tiny_tokenizer
from tests.models.models_oracle import random_weights
from tests.pipelines.family_checks import assert_offloading_changes_nothing, assert_same, generator, images, pil
from tests.prompts.readers_parts import clip_encoder, clip_vision

TEXT, IMAGE = "UnCLIPPipeline", "UnCLIPImageVariationPipeline"
PROJECTION = dict(clip_embeddings_dim=24, time_embed_dim=64, cross_attention_dim=16, clip_extra_context_tokens=3)
DECODER = dict(
    sample_size=8,
    in_channels=3,
    out_channels=6,
    block_out_channels=(16, 32),
    layers_per_block=1,
    cross_attention_dim=16,
    attention_head_dim=8,
    norm_num_groups=8,
    class_embed_type="identity",
    resnet_time_scale_shift="scale_shift",
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
)
LARGER = dict(
    sample_size=16,
    in_channels=6,
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    add_attention=False,
    resnet_time_scale_shift="scale_shift",
    down_block_types=("ResnetDownsampleBlock2D",) * 2,
    up_block_types=("ResnetUpsampleBlock2D",) * 2,
)
CONFIGS = {  # of decoder and super-resolution: network, scheduler
    "karlo": (
        (DECODER, dict(variance_type="learned_range")),
        (LARGER, {}),
    ),
    "all variances learned": (
        (
            {**DECODER, "layers_per_block": 2},
            dict(prediction_type="sample", clip_sample_range=1.5, variance_type="learned_range"),
        ),
        ({**LARGER, "out_channels": 6, "sample_size": 12}, dict(variance_type="learned_range")),
    ),
}
PRIORS = {
    "karlo": dict(prediction_type="sample", clip_sample_range=5.0),
    "epsilon": dict(clip_sample_range=2.0, num_train_timesteps=400),
}
STEPS = dict(decoder_num_inference_steps=3, super_res_num_inference_steps=3)


def pair(kind, seed=0, theirs=None, **config):
    """Our network and the reference's, of the same random weights."""
    import diffusers

    theirs = (theirs or getattr(diffusers, kind))(**config).eval()
    ours = getattr(langevin, kind)(**config).eval()
    for network in (theirs, ours):
        network.load_state_dict(random_weights(theirs, seed))
    return ours, theirs


def projection(**config):
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel as Theirs

    return pair("UnCLIPTextProjModel", theirs=Theirs, **{**PROJECTION, **config})


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Parts that both have, as (ours, the reference's), with the networks of every config."""
    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    text_encoder = clip_encoder(tokenizer, projection=24)
    vision, extractor = clip_vision(projection_dim=24)
    prior = dict(num_attention_heads=2, attention_head_dim=6, num_layers=2, embedding_dim=24, num_embeddings=16)
    parts = dict(
        tokenizer=(tokenizer, tokenizer),
        text_encoder=(text_encoder, text_encoder),
        image_encoder=(vision, vision),
        feature_extractor=(extractor, extractor),
        text_proj=projection(),
        prior=pair("PriorTransformer", **prior),
    )
    networks = {
        name: dict(
            decoder=pair("UNet2DConditionModel", **decoder),
            super_res_first=pair("UNet2DModel", 1, **larger),
            super_res_last=pair("UNet2DModel", 2, **larger),
        )
        for name, ((decoder, _), (larger, _)) in CONFIGS.items()
    }
    return parts, networks


@pytest.fixture
def make(shared):
    def make(name=TEXT, config="karlo", prior="karlo"):
        import diffusers

        parts, networks = shared
        (_, decoder), (_, larger) = CONFIGS[config]
        pipes = []
        for k, library in enumerate((langevin, diffusers)):
            kept = {part: both[k] for part, both in {**parts, **networks[config]}.items()}
            for part, settings in (("prior", PRIORS[prior]), ("decoder", decoder), ("super_res", larger)):
                kept[f"{part}_scheduler"] = library.UnCLIPScheduler(**settings)
            lacking = ("image_encoder", "feature_extractor") if name == TEXT else ("prior", "prior_scheduler")
            pipes.append(getattr(library, name)(**{p: v for p, v in kept.items() if p not in lacking}))
            pipes[-1].set_progress_bar_config(disable=True)
        return tuple(pipes)

    return make


def call(name, **options):
    own = dict(prompt="a cat", prior_num_inference_steps=3) if name == TEXT else dict(image=pil(40, 30))
    return {**own, **STEPS, **options}


both_names = pytest.mark.parametrize("name", [TEXT, IMAGE])


@both_names
@pytest.mark.parametrize("config", CONFIGS)
def test_pictures_are_the_reference_ones(make, name, config):
    assert_same(make(name, config), **call(name))


@pytest.mark.parametrize("prior", PRIORS)
def test_configs_of_the_prior(make, prior):
    assert_same(make(prior=prior), **call(TEXT, prior_num_inference_steps=5, num_images_per_prompt=2))


def noise(*shape, seed=4):
    return lambda: torch.randn(shape, generator=generator(seed))


@pytest.mark.parametrize(
    "options",
    [
        dict(prompt=["a cat", "two dogs"], num_images_per_prompt=2),
        dict(prior_guidance_scale=1.0),
        dict(decoder_guidance_scale=1.0),
        dict(prior_guidance_scale=1.0, decoder_guidance_scale=1.0),
        dict(prior_guidance_scale=7.0, decoder_guidance_scale=2.5),
        dict(prior_guidance_scale=0.5),
        dict(decoder_guidance_scale=0.3),
        dict(prior_guidance_scale=0.5, decoder_guidance_scale=0.3),
        dict(prior_latents=noise(1, 24), decoder_latents=noise(1, 3, 8, 8), super_res_latents=noise(1, 3, 16, 16)),
        dict(decoder_num_inference_steps=2, super_res_num_inference_steps=7, prior_num_inference_steps=2),
        dict(prompt=["a", "b"], generator=lambda: [generator(1), generator(2)]),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(make, options):
    assert_same(make(), **call(TEXT, **options))


@pytest.mark.parametrize(
    "options",
    [
        dict(image=[pil(), pil(40, 30, seed=1)], num_images_per_prompt=2),
        dict(image=torch.randn(2, 3, 32, 32, generator=generator(2))),
        dict(image=None, image_embeddings=torch.randn(2, 24, generator=generator(2)), num_images_per_prompt=2),
        dict(decoder_guidance_scale=1.0, super_res_latents=noise(1, 3, 16, 16)),
        dict(decoder_guidance_scale=3.0, decoder_latents=noise(1, 3, 8, 8)),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_of_variations(make, options):
    assert_same(make(IMAGE), **call(IMAGE, **options))


@pytest.mark.parametrize("form", ["output", "pair"])
def test_what_the_text_model_gives_may_take_the_prompts_place(make, form):
    ours, theirs = make()
    texts = ours.tokenizer(["a cat", "two dogs"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = ours.text_encoder(texts.input_ids)
    if form == "pair":
        output = (output.text_embeds, output.last_hidden_state)
    given = dict(prompt=None, text_model_output=output, text_attention_mask=texts.attention_mask)
    assert_same((ours, theirs), **call(TEXT, **given, num_images_per_prompt=2))
    plain = images(ours, **call(TEXT, prompt=["a cat", "two dogs"]))
    np.testing.assert_allclose(images(ours, **call(TEXT, **given)), plain, atol=1e-4)


def test_the_last_step_has_a_network_of_its_own(make):
    pipe = make()[0]
    asked = []
    for name in ("super_res_first", "super_res_last"):
        network = getattr(pipe, name)
        network.register_forward_pre_hook(lambda m, a, name=name: asked.append((name, a[0].shape, int(a[1]))))
    try:
        images(pipe, **call(TEXT, super_res_num_inference_steps=3))
        shape = (1, 6, 16, 16)
        first, last = "super_res_first", "super_res_last"
        assert asked == [(first, shape, 999), (first, shape, 500), (last, shape, 0)]
        asked.clear()
        assert np.isfinite(images(pipe, **call(TEXT, super_res_num_inference_steps=1))).all()  # 0/0 in the reference
        assert asked == [(last, shape, 999)]
    finally:
        for network in (pipe.super_res_first, pipe.super_res_last):
            network._forward_pre_hooks.clear()


@pytest.mark.parametrize("config", [{}, dict(clip_extra_context_tokens=1, time_embed_dim=8, cross_attention_dim=10)])
@torch.no_grad()
def test_the_projection(config, tmp_path):
    ours, theirs = projection(**config)
    pictures, vectors = torch.randn(2, 24, generator=generator(1)), torch.randn(4, 24, generator=generator(2))
    tokens = torch.randn(4, 5, 24, generator=generator(3))
    for guided, rows in ((True, 4), (False, 2)):
        given = dict(prompt_embeds=vectors[:rows], text_encoder_hidden_states=tokens[:rows])
        said = [net(image_embeddings=pictures, **given, do_classifier_free_guidance=guided) for net in (ours, theirs)]
        for mine, his in zip(*said, strict=True):
            torch.testing.assert_close(mine, his, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="2 of pictures, 4 and 4 of texts"):
        ours(image_embeddings=pictures, prompt_embeds=vectors, text_encoder_hidden_states=tokens)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = [json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs")]
    kept = [{k: v for k, v in one.items() if k[0] != "_"} for one in written]
    assert kept[0] == kept[1]
    for read in (
        type(theirs).from_pretrained(tmp_path / "ours"),
        UnCLIPTextProjModel.from_pretrained(tmp_path / "theirs"),
    ):
        assert all(torch.equal(weight, read.state_dict()[name]) for name, weight in theirs.state_dict().items())


@both_names
def test_folders_load_on_both_sides(make, name, tmp_path):
    """The reference's pipeline loads no folder, its own neither, since it does not find its projection by any name;
    but it loads each part of ours. Here all three names that the projection's library has had are known.
    """
    ours, theirs = make(name)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = images(theirs, **call(name))
    index = json.loads((tmp_path / "ours/model_index.json").read_text())
    assert index["text_proj"] == ["unclip", "UnCLIPTextProjModel"]  # as the published folders have it
    with pytest.raises((ValueError, AttributeError)):
        type(theirs).from_pretrained(tmp_path / "theirs")
    kinds = {part: type(value) for part, value in theirs.components.items()}
    parts = {part: kind.from_pretrained(tmp_path / "ours" / part) for part, kind in kinds.items()}
    reads = [type(theirs)(**parts), DiffusionPipeline.from_pretrained(tmp_path / "ours")]
    for library in ("deprecated", "unclip", "diffusers"):
        place = tmp_path / "theirs/model_index.json"
        entries = json.loads(place.read_text())
        entries["text_proj"] = [library, "UnCLIPTextProjModel"]
        place.write_text(json.dumps(entries))
        reads.append(DiffusionPipeline.from_pretrained(tmp_path / "theirs"))
        assert type(reads[-1]) is type(ours)
    for pipe in (*reads[:2], reads[-1]):
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(images(pipe, **call(name)), wanted, atol=1e-4)


KARLO = {
    "prior": dict(
        additional_embeddings=4, attention_head_dim=64, dropout=0.0, embedding_dim=768, num_attention_heads=32,
        num_embeddings=77, num_layers=20,
    ),
    "text_proj": dict(
        clip_embeddings_dim=768, clip_extra_context_tokens=4, cross_attention_dim=1536, time_embed_dim=1280
    ),
    "prior_scheduler": dict(
        clip_sample=True, clip_sample_range=5.0, num_train_timesteps=1000, prediction_type="sample",
        variance_type="fixed_small_log",
    ),
    "decoder_scheduler": dict(
        clip_sample=True, clip_sample_range=1.0, num_train_timesteps=1000, prediction_type="epsilon",
        variance_type="learned_range",
    ),
    "super_res_scheduler": dict(
        clip_sample=True, clip_sample_range=1.0, num_train_timesteps=1000, prediction_type="epsilon",
        variance_type="fixed_small_log",
    ),
}  # fmt: skip


def test_the_published_configs_are_known():
    """The networks of Karlo's decoder and super-resolution stand in ``tests/models/test_models_published.py``."""
    import diffusers
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel as Theirs

    with torch.device("meta"):
        for ours, theirs, part in (
            (langevin.PriorTransformer, diffusers.PriorTransformer, "prior"),
            (UnCLIPTextProjModel, Theirs, "text_proj"),
        ):
            shapes = [
                {key: value.shape for key, value in kind(**KARLO[part]).state_dict().items()} for kind in (ours, theirs)
            ]
            assert shapes[0] == shapes[1]
    for name in ("prior_scheduler", "decoder_scheduler", "super_res_scheduler"):
        assert len(langevin.UnCLIPScheduler.from_config(KARLO[name]).plan(7)) == 7


@both_names
def test_a_picture_made_alone_is_the_same_and_carries_its_settings(make, name, tmp_path):
    pipe = make(name)[0]
    pipe = type(pipe)(**copy.deepcopy(pipe.components)).to(torch.float64)  # random networks make much of rounding
    pipe.set_progress_bar_config(disable=True)
    two = dict(prompt=["a cat", "a dog"]) if name == TEXT else dict(image=[pil(), pil(seed=1)])
    one = dict(prompt="a dog") if name == TEXT else dict(image=pil(seed=1))
    both = pipe(**call(name, **two), seed=[3, 8])
    alone = pipe(**call(name, **one), seed=8).images[0]
    assert type(both) is langevin.ImagePipelineOutput
    assert abs(np.asarray(alone, dtype=float) - np.asarray(both.images[1], dtype=float)).max() <= 1  # rounding
    alone.save(tmp_path / "made.png")
    settings = read_settings(tmp_path / "made.png")
    assert alone.settings == both.images[1].settings
    assert (settings["pipeline"], settings["seed"], settings["decoder_num_inference_steps"]) == (name, 8, 3)
    stages = ["prior", "decoder", "super-resolution"]
    assert list(settings["stages"]) == (stages if name == TEXT else stages[1:])
    assert settings["stages"]["decoder"]["scheduler_config"]["variance_type"] == "learned_range"


@both_names
def test_pictures_are_made_again(make, name, tmp_path):
    from langevin.cli.again import again

    make(name)[0].save_pretrained(tmp_path / "saved")
    read = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    read.set_progress_bar_config(disable=True)
    read.decoder_scheduler = langevin.UnCLIPScheduler(clip_sample_range=0.7, variance_type="learned_range")
    read.super_res_scheduler = langevin.DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    read(**call(name, decoder_guidance_scale=3.0), seed=3).images[0].save(tmp_path / "made.png")
    stages = read_settings(tmp_path / "made.png")["stages"]
    assert [stages[k]["part"] for k in ("decoder", "super-resolution")] == ["decoder_scheduler", "super_res_scheduler"]
    again(tmp_path / "made.png", out=None, model=None, device="cpu", force=False, yes=True)


def test_the_command_line_makes_pictures_and_says_what_it_cannot(make, tmp_path):
    from typer.testing import CliRunner

    from langevin.cli.app import app

    make()[0].save_pretrained(tmp_path / "model")
    ask = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "made.png")]
    made = CliRunner().invoke(app, ["generate", "a cat", "--seed", "3", *ask])
    assert made.exit_code == 0, made.output
    assert read_settings(tmp_path / "made.png")["prompt"] == "a cat"
    for wrong, says in (
        (["generate", "a cat", "--scheduler", "ddim", *ask], "--scheduler is for one"),
        (["generate", "a cat", "--spacing", "karras", *ask], "--spacing is for one"),
        (["generate", "a cat", "--steps", "3", *ask], "takes no --steps"),
        (["compare-schedulers", "a cat", *ask], "compare-schedulers is for one"),
    ):
        refused = CliRunner().invoke(app, wrong)
        assert refused.exit_code == 2
        assert says in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([], "stages is a list of 0"),
        ({"decoder": {"scheduler": "DDIMScheduler"}}, "the schedulers of stages, by name is needed"),
        ({"decoder": {"scheduler": 3, "scheduler_config": {}}}, "the schedulers of stages"),
        ({"decoder": {"scheduler": "DDIMScheduler", "scheduler_config": {}, "part": []}}, "the schedulers of stages"),
        (
            {"decoder": {"scheduler": "DDIMScheduler", "scheduler_config": {"num_train_timesteps": 10**9}}},
            "scheduler_config has 1000000000 as num_train_timesteps",
        ),
    ],
)
def test_a_strangers_stages_are_refused(stages, says):
    with pytest.raises(WrongSettings, match=says):
        check_settings({"seed": 1, "stages": stages})


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DDPMScheduler"])
def test_every_stage_takes_other_schedulers(make, kind):
    """The reference calls its steps as only its own scheduler takes it."""
    pipe = make()[0]
    usual = images(pipe, **call(TEXT))
    for part in ("decoder_scheduler", "super_res_scheduler"):
        setattr(pipe, part, getattr(langevin, kind)(beta_schedule="squaredcos_cap_v2"))
    made = images(pipe, **call(TEXT))
    assert np.isfinite(made).all()
    assert abs(made - usual).max() > 1e-2


def test_words_reach_the_prior_and_the_decoder(make):
    """Weights, words that change on the way, and what to move away from."""
    pipe = make()[0]
    kept = dict(prior_latents=noise(1, 24)(), prior_num_inference_steps=4, decoder_num_inference_steps=4)
    seen: dict[str, list] = {}
    for text in ("a cat", "a (cat)1.0", "a (cat)1.6", "a [cat:dog:0.5]", "a [cat:dog:2]"):
        step = dict(callback_on_step_end=lambda c, i, t, x, text=text: seen.setdefault(text, []).append(x["latents"]))
        images(pipe, **call(TEXT, prompt=text, **kept), **step)
    plain = seen["a cat"]
    assert all(torch.equal(one, other) for one, other in zip(plain, seen["a (cat)1.0"], strict=True))
    for place in (3, 7):  # the last of the prior; the last of the decoder
        assert abs(plain[place] - seen["a (cat)1.6"][place]).max() > 1e-4
    changing = seen["a [cat:dog:0.5]"]
    assert torch.equal(changing[1], plain[1])
    assert not torch.equal(changing[2], plain[2])
    usual, away = (images(pipe, **call(TEXT, negative_prompt=text)) for text in (None, "ugly"))
    assert abs(usual - away).max() > 1e-3
    assert (usual == images(pipe, **call(TEXT, negative_prompt=""))).all()


@both_names
def test_guiders_act_on_the_decoder(make, name):
    pipe = make(name)[0]
    usual = images(pipe, **call(name))
    for guider in (
        langevin.GuidanceRescale(0.7),
        langevin.ClassifierFreeGuidance(2.0, stop=0.5),
        langevin.Windows(4, 2),
    ):
        assert abs(usual - images(pipe, **call(name), guiders=[guider])).max() > 1e-4
    safe = [SafeGuidance("dog", warmup_steps=0, threshold=0.5)]
    if name == TEXT:
        assert abs(usual - images(pipe, **call(name), guiders=safe)).max() > 1e-4
    one = images(pipe, **call(name, decoder_guidance_scale=1.0), guiders=[langevin.ClassifierFreeGuidance(8.0)])
    if name == IMAGE:
        np.testing.assert_allclose(one, usual, atol=1e-5)


def test_another_vector_may_take_the_place_of_the_priors(make):
    pipe = make()[0]
    found = {}

    def watch(call, i, t, tensors):
        if call.setup.name == "decoder":
            found["vector"] = call.setup.told["image_embeds"]

    wanted = images(pipe, **call(TEXT), seed=3, callback_on_step_end=watch)
    same, other = (
        images(
            pipe,
            **call(TEXT, prior_guidance_scale=2.0),
            seed=3,
            guiders=[langevin.ProjectedEmbedding(vector, pipe.text_proj)],
        )
        for vector in (found["vector"], -found["vector"])
    )
    np.testing.assert_array_equal(same, wanted)
    assert abs(other - wanted).max() > 1e-2


def test_callbacks_see_each_stage_and_may_end_it(make, capsys):
    pipe, _ = make()
    seen, old = [], []

    def watch(call, i, t, tensors):
        seen.append((call.setup.name, i, int(t), tuple(tensors["latents"].shape)))
        call._interrupt = call.setup.name == "decoder" and i == 1
        return {}

    images(pipe, **call(TEXT), callback_on_step_end=watch, callback=lambda i, t, x: old.append((i, int(t))))
    prior = [("prior", i, t, (1, 24)) for i, t in enumerate((999, 500, 0))]
    assert seen == [*prior, ("decoder", 0, 999, (1, 3, 8, 8)), ("decoder", 1, 500, (1, 3, 8, 8))]
    assert old[:3] == [(0, 999), (1, 500), (2, 0)]
    pipe.set_progress_bar_config()
    images(pipe, **call(TEXT))
    bars = capsys.readouterr().err
    assert all(f"{name}: 100%" in bars for name in ("prior", "decoder", "super-resolution"))
    pipe.set_progress_bar_config(disable=True)


@both_names
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_gives_the_same_pictures(make, name, way):
    assert_offloading_changes_nothing(make(name)[0], way, **call(name))


def test_one_pipeline_serves_many_threads(make):
    pipe = make()[0]
    made = in_threads(lambda k: images(pipe, **call(TEXT), seed=k % 2), count=4)
    for k in (0, 1):
        np.testing.assert_array_equal(made[k], made[k + 2])
    assert abs(made[0] - made[1]).max() > 1e-3


def test_long_prompts_lose_their_end_with_a_warning(make, caplog):
    pipe = make()[0]
    with caplog.at_level(logging.WARNING):
        long = images(pipe, **call(TEXT, prompt="a cat on a mat in a hat"))
    assert "not seen: 'at'" in caplog.text
    assert long.shape == (1, 16, 16, 3)


def test_parts_are_shared_with_variations(make):
    pipe = make(IMAGE)[0]
    other = make(TEXT)[0]
    made = UnCLIPPipeline.from_pipe(pipe, prior=other.prior, prior_scheduler=other.prior_scheduler)
    assert made.decoder is pipe.decoder


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (TEXT, dict(prompt=None), "neither of prompt and text_model_output given"),
        (TEXT, dict(text_model_output=(1, 2)), "both of prompt and text_model_output given"),
        (TEXT, dict(prompt=None, text_model_output=(1, 2)), "text_attention_mask go together"),
        (TEXT, dict(prompt=["a", None]), "prompt is an empty list or has an empty place"),
        (TEXT, dict(prior_latents=torch.zeros(1, 5)), r"latents is \(1, 5\); \(1, 24\) is needed"),
        (TEXT, dict(super_res_latents=torch.zeros(1, 3, 8, 8)), r"latents is \(1, 3, 8, 8\); \(1, 3, 16, 16\)"),
        (TEXT, dict(super_res_num_inference_steps=0), "super_res_num_inference_steps is 0"),
        (IMAGE, dict(image=None), "neither of image and image_embeddings given"),
        (IMAGE, dict(image_embeddings=torch.zeros(1, 24)), "both of image and image_embeddings given"),
        (IMAGE, dict(image=None, image_embeddings=torch.zeros(1, 7)), r"image embeddings are \(1, 7\); \(1, 24\)"),
        (IMAGE, dict(image=[]), "image is an empty list"),
    ],
)
def test_bad_input_gets_one_clear_line(make, name, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        make(name)[0](**call(name, **options))
    assert "\n" not in str(caught.value)
