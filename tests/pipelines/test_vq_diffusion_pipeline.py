"""VQ-Diffusion against the reference, and what a family of codes means."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import langevin
from langevin import (
    ClassifierFreeGuidance,
    DiffusionPipeline,
    ImageStart,
    SafeGuidance,
    SelfAttentionGuidance,
    Truncation,
)
from langevin.codecs.codes import CodeCodec
from tests.helpers import in_threads, tiny_tokenizer
from tests.pipelines.again_checks import assert_made_again
from tests.pipelines.family_checks import assert_same, generator, images, picture
from tests.prompts.readers_parts import clip_encoder, random

CODES = 12
SIZES = dict(num_attention_heads=2, attention_head_dim=8, cross_attention_dim=24, num_embeds_ada_norm=100)
SIZES |= dict(num_vector_embeds=CODES + 1, sample_size=4)
NETS = {
    "as published": dict(attention_bias=True, activation_fn="geglu-approximate", num_layers=2),
    "wider": dict(num_attention_heads=4, norm_elementwise_affine=False, activation_fn="geglu"),
}
SCHEDULERS = {
    "usual": {},
    "noisier": dict(alpha_cum_start=0.9, alpha_cum_end=0.1, gamma_cum_start=0.05, gamma_cum_end=0.6),
}
STEPS = dict(num_inference_steps=6)
WORDS = dict(prompt="a cat", **STEPS)


def parts(folder, learnable=True, **net):
    """The reference's parts, random and tiny."""
    import diffusers
    from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
        LearnedClassifierFreeSamplingEmbeddings as Learned,
    )

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    stages = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    sizes = dict(
        block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, num_vq_embeddings=CODES, vq_embed_dim=4
    )
    made = dict(
        vqvae=random(diffusers.VQModel(**stages, **sizes)),
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=random(diffusers.Transformer2DModel(**{**SIZES, **net})),
        learned_classifier_free_sampling_embeddings=Learned(learnable, 24, 16),
    )
    made["transformer"].out.weight.data *= 0.3  # many codes are likely
    for block in made["transformer"].transformer_blocks:
        block.attn2.to_v.weight.data *= 8  # and the text says which
    made["learned_classifier_free_sampling_embeddings"].embeddings.data.normal_(
        std=0.2
    )  # last: all else is the same without
    return made


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function (networks, scheduler, learnable) -> (our pipeline, the reference's)."""
    import diffusers

    made = {}

    def make(nets="as published", scheduler="usual", learnable=True):
        if (nets, scheduler, learnable) not in made:
            folder = tmp_path_factory.mktemp("vq")
            plan = diffusers.VQDiffusionScheduler(num_vec_classes=CODES + 1, **SCHEDULERS[scheduler])
            theirs = diffusers.VQDiffusionPipeline(**parts(folder, learnable, **NETS[nets]), scheduler=plan)
            theirs.save_pretrained(folder / "saved")
            ours = DiffusionPipeline.from_pretrained(folder / "saved")
            for pipe in (ours, theirs):
                pipe.set_progress_bar_config(disable=True)
            made[nets, scheduler, learnable] = ours, theirs, folder / "saved"
        return made[nets, scheduler, learnable][:2]

    make.folder = lambda: made["as published", "usual", True][2]
    return make


@pytest.mark.parametrize("learnable", [True, False])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("nets", NETS)
def test_codes_and_pictures_are_the_references(make, nets, scheduler, learnable):
    both = make(nets, scheduler, learnable)
    for steps in (9, 100) if nets == "as published" else (9,):
        logs: list[list] = [[], []]
        pictures = [
            images(pipe, "a cat", num_inference_steps=steps,
                   callback=lambda i, t, x, log=log: log.append((i, int(t), x.tolist())))
            for pipe, log in zip(both, logs, strict=True)
        ]  # fmt: skip
        assert logs[0] == logs[1]
        assert len(logs[0]) == steps
        assert len(set(logs[0][-1][2][0])) > 3
        np.testing.assert_allclose(*pictures, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=9.0, num_images_per_prompt=2),
        dict(truncation_rate=0.86),
        dict(truncation_rate=0.3, guidance_scale=2.0),
        dict(truncation_rate=0.0),
        dict(prompt=["a cat", "two dogs"], num_images_per_prompt=2),
        dict(latents=torch.randint(CODES + 1, (1, 16), generator=generator(3))),
        dict(latents=torch.full((1, 16), CODES)),
        dict(callback_steps=3, callback=lambda: lambda i, t, x: None),
    ],
    ids=lambda o: ",".join(f"{name}" for name in o),
)
def test_options_give_the_references_numbers(make, options):
    assert_same(make(), **WORDS | options)


def test_each_picture_has_its_own_seed(make):
    ours, _ = make()
    made = images(ours, **WORDS, num_images_per_prompt=3, seed=[4, 9, 5])
    np.testing.assert_allclose(made[1:2], images(ours, **WORDS, seed=9), atol=1e-5)
    assert abs(made[0] - made[1]).max() > 1e-3


def test_callbacks_may_change_codes_and_stop(make):
    ours, _ = make()
    seen = []

    def stop(call, i, t, tensors):
        seen.append((int((tensors["latents"] == CODES).sum()), call.guidance_scale, tensors["prompt_embeds"].shape))
        call._interrupt = i == 2
        return {"latents": tensors["latents"].clone()}

    out = ours("a cat", num_inference_steps=100, seed=3, callback_on_step_end=stop, output_type="np",
               callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])  # fmt: skip
    assert len(seen) == 3
    assert seen[-1][0] > 0, "some places are still masked"
    assert seen[0][1:] == (5.0, (2, 16, 24))
    assert np.isfinite(out.images).all()


def test_a_callback_sees_a_prompt_longer_than_what_was_learned(make):
    ours, _ = make()
    long, seen = "a very very very very long prompt of a cat", []

    def look(call, i, t, tensors):
        seen.append(tensors["prompt_embeds"].shape)
        return {"prompt_embeds": -tensors["prompt_embeds"]}

    call = dict(num_inference_steps=20, seed=3, guidance_scale=40.0)
    inputs = dict(callback_on_step_end=look, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    changed = images(ours, long, **call, **inputs)
    assert set(seen) == {(1, 48, 24)}
    assert abs(changed - images(ours, long, **call)).max() > 1e-4


def test_steps_may_be_spread_as_published(make):
    ours, _ = make(scheduler="noisier")
    times: list = []
    images(ours, "a cat", num_inference_steps=4, as_published=True, callback=lambda i, t, x: times.append(int(t)))
    assert times == [99, 74, 49, 24]
    times.clear()
    images(ours, "a cat", num_inference_steps=4, callback=lambda i, t, x: times.append(int(t)))
    assert times == [3, 2, 1, 0]


def test_prompts_are_read_as_everywhere(make):
    ours, _ = make()
    call = dict(num_inference_steps=20, seed=3, guidance_scale=40.0)  # of a random network, texts change little
    plain = images(ours, "a cat", **call)
    for prompt in ("two dogs", "a (cat)1.8", "a [cat:horse:0.3]", "a very very very very long prompt of a cat"):
        assert abs(images(ours, prompt, **call) - plain).max() > 1e-4, prompt
    assert abs(images(ours, "a cat", negative_prompt="ugly", **call) - plain).max() > 1e-4
    texts = ["a cat", "a very very very very long prompt of a cat"]
    two = images(ours, texts, **call | dict(seed=[3, 4]))
    np.testing.assert_allclose(two[:1], plain, atol=1e-4)
    np.testing.assert_allclose(two[1:], images(ours, texts[1], **call | dict(seed=4)), atol=1e-4)


def test_a_prompt_that_is_cut_keeps_its_end_mark(make):
    ours, theirs = make()
    call = dict(num_inference_steps=20, guidance_scale=40.0)
    long, seen = "a very very very v ery long prompt", "a very very very v"  # 14 letters, and two marks
    cut = images(ours, long, **call, long_prompts="cut")
    np.testing.assert_allclose(cut, images(theirs, seen, **call), atol=1e-4)


def test_what_was_learned_for_no_text_counts(make):
    learned, _ = make()
    empty, _ = make(learnable=False)
    call = dict(num_inference_steps=20, seed=3)
    assert abs(images(learned, "a cat", **call) - images(empty, "a cat", **call)).max() > 1e-4
    np.testing.assert_array_equal(images(learned, "a cat", negative_prompt="", **call), images(empty, "a cat", **call))
    moved = make()[0].learned_classifier_free_sampling_embeddings
    assert moved.embeddings.shape == (16, 24)
    assert empty.learned_classifier_free_sampling_embeddings.embeddings.numel() == 0


def test_guiders_act_where_their_idea_makes_sense(make):
    ours, _ = make()
    call = dict(num_inference_steps=20, seed=3)
    plain = images(ours, "a cat", **call)
    strong = images(ours, "a cat", guidance_scale=12.0, **call)
    assert abs(strong - plain).max() > 1e-4
    np.testing.assert_array_equal(images(ours, "a cat", guiders=[ClassifierFreeGuidance(12.0)], **call), strong)
    np.testing.assert_array_equal(
        images(ours, "a cat", guiders=[Truncation(0.4)], **call), images(ours, "a cat", truncation_rate=0.4, **call)
    )
    safe = images(ours, "a cat", guiders=[SafeGuidance("dog", warmup_steps=0)], **call)
    assert abs(safe - plain).max() > 1e-4
    for guider in (SelfAttentionGuidance(0.7), ImageStart(picture(8, 8, count=1) * 2 - 1, 0.5), langevin.Windows(4, 2)):
        with pytest.raises(ValueError) as caught:
            ours("a cat", guiders=[guider], **call)
        assert "\n" not in str(caught.value)


def test_truncation_keeps_the_likeliest_codes():
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()[:, :, None]
    kept = {rate: Truncation(rate).combine(p, {}, p, None).exp()[0, :, 0] for rate in (0.0, 0.4, 0.6, 0.85, 1.0)}
    assert [int((one > 1e-6).sum()) for one in kept.values()] == [1, 1, 2, 3, 4]
    torch.testing.assert_close(kept[1.0], p.exp()[0, :, 0])
    shuffled = Truncation(0.6).combine(p[:, [3, 1, 0, 2]] + 5, {}, p, None).exp()[0, :, 0]
    torch.testing.assert_close(shuffled, torch.tensor([0.0, 0.3, 0.5, 0.0]))
    with pytest.raises(ValueError, match=r"rate of Truncation is 1\.5"):
        Truncation(1.5)


def test_the_codec_goes_there_and_back(make):
    ours, _ = make()
    codec = CodeCodec(ours.vqvae, 4, 4)
    codes = codec.encode(picture(8, 8, count=2) * 2 - 1)
    assert codec.shape(2, (8, 8)) == codes.shape == (2, 16)
    with torch.no_grad():
        wanted = ours.vqvae(picture(8, 8, count=2) * 2 - 1).sample
        torch.testing.assert_close(codec.decode(codes), wanted)
        masked = codec.decode(torch.full((2, 16), CODES))
        assert masked.isfinite().all()
        mean = ours.vqvae.quantize.embedding.weight.mean(0)[None, :, None, None].expand(2, -1, 4, 4)
        torch.testing.assert_close(masked, ours.vqvae.decode(mean, force_not_quantize=True).sample)
    with pytest.raises(ValueError, match="must be multiples of 2"):
        codec.shape(1, (7, 8))


def test_folders_go_both_ways(make, tmp_path):
    import diffusers

    ours, _ = make()
    ours.save_pretrained(tmp_path / "ours")
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    back.set_progress_bar_config(disable=True)
    assert type(back) is diffusers.VQDiffusionPipeline
    assert_same((DiffusionPipeline.from_pretrained(tmp_path / "ours"), back), **WORDS)
    none, _ = make(learnable=False)
    none.save_pretrained(tmp_path / "none")
    np.testing.assert_array_equal(
        images(DiffusionPipeline.from_pretrained(tmp_path / "none"), **WORDS, seed=3), images(none, **WORDS, seed=3)
    )


def test_the_published_index_and_configs_are_read(make, tmp_path):
    ours, _ = make()
    shutil.copytree(make.folder(), tmp_path / "old")
    index = {
        "_class_name": "VQDiffusionPipeline",
        "_diffusers_version": "0.7.0.dev0",
        "learned_classifier_free_sampling_embeddings": ["vq_diffusion", "LearnedClassifierFreeSamplingEmbeddings"],
        "scheduler": ["diffusers", "VQDiffusionScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "Transformer2DModel"],
        "vqvae": ["diffusers", "VQModel"],
    }
    (tmp_path / "old" / "model_index.json").write_text(json.dumps(index))
    file = tmp_path / "old" / "transformer" / "config.json"
    config = json.loads(file.read_text())
    known = "_class_name activation_fn attention_bias attention_head_dim cross_attention_dim dropout in_channels"
    known += " norm_num_groups num_attention_heads num_embeds_ada_norm num_layers num_vector_embeds sample_size"
    file.write_text(json.dumps({key: config[key] for key in known.split()}))
    read = DiffusionPipeline.from_pretrained(tmp_path / "old")
    np.testing.assert_array_equal(images(read, **WORDS, seed=3), images(ours, **WORDS, seed=3))


def test_it_can_be_made_again(make, tmp_path):
    ours, _ = make()
    call = dict(num_images_per_prompt=2, seed=3, truncation_rate=0.7, as_published=True, num_inference_steps=10)
    assert_made_again(ours, tmp_path, "a (cat)1.3", row=1, **call)


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_parts_may_be_offloaded(make, way):
    pytest.importorskip("accelerate")
    wanted = images(make()[0], **WORDS, seed=3)
    pipe = DiffusionPipeline.from_pretrained(make.folder())
    pipe.set_progress_bar_config(disable=True)
    getattr(pipe, way)(device="cpu")
    np.testing.assert_allclose(images(pipe, **WORDS, seed=3), wanted, atol=1e-5)


def test_threads_do_not_see_each_other(make):
    ours, _ = make()

    def one(k):
        return ours("a cat", num_inference_steps=3, seed=k, output_type="np").images

    serial = [one(k) for k in range(6)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(one, 6), strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(prompt=None), "prompt is missing"),
        (dict(prompt=5), "prompt is a int"),
        (dict(latents=torch.zeros(1, 16)), "they are codes, whole numbers"),
        (dict(latents=torch.full((1, 16), CODES + 1)), "codes go from 0 to 12"),
        (dict(latents=torch.zeros(1, 9, dtype=torch.int64)), r"\(1, 16\) is needed"),
        (dict(truncation_rate=1.2), "truncation_rate is 1.2"),
        (dict(num_inference_steps=101), "more than the 100 timesteps"),
        (dict(output_type="latent"), "output_type is 'latent'"),
    ],
)
def test_bad_input_gets_one_clear_line(make, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        make()[0](**WORDS | options)
    assert "\n" not in str(caught.value)


def test_learned_embeddings_need_a_size():
    with pytest.raises(ValueError, match="need a hidden_size and a length"):
        langevin.LearnedClassifierFreeSamplingEmbeddings(True)
