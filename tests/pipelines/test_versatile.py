"""Versatile Diffusion against the reference: three flows over the same parts, none of which any call changes."""

from __future__ import annotations

import copy
import inspect
import json
import shutil

import numpy as np
import pytest
import torch
import transformers

import langevin
from langevin import DiffusionPipeline, SafeGuidance, SelfAttentionGuidance, VersatileDiffusionPipeline
from tests.helpers import in_threads, reference_parts
from tests.pipelines.again_checks import assert_made_again
from tests.pipelines.family_checks import SCHEDULERS, assert_same, generator, images, pil, steps
from tests.prompts.readers_parts import random

TEXT, VARIATION, DUAL = (
    f"VersatileDiffusion{name}Pipeline" for name in ("TextToImage", "ImageVariation", "DualGuided")
)
FLOWS = {
    TEXT: ("text_to_image", ["a cat"]),
    VARIATION: ("image_variation", [pil()]),
    DUAL: ("dual_guided", ["a cat", pil()]),
}
STEPS = dict(num_inference_steps=3)
SIZES = dict(sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24)
NETS = {"heads": dict(attention_head_dim=2), "linear": dict(attention_head_dim=4, use_linear_projection=True)}


def flat(**config):
    from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel

    blocks = dict(down_block_types=("CrossAttnDownBlockFlat", "DownBlockFlat"))
    blocks |= dict(up_block_types=("UpBlockFlat", "CrossAttnUpBlockFlat"))
    return UNetFlatConditionModel(in_channels=(6, 1, 1), out_channels=(6, 1, 1), **blocks, **SIZES, **config)


def whole(folder, **config):
    """The reference's pipeline with all parts, random and tiny."""
    import diffusers

    common = reference_parts(folder, unet={**SIZES, "norm_num_groups": 32, **config})
    text = transformers.CLIPTextConfig(**{**common["text_encoder"].config.to_dict(), "projection_dim": 24})
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=24)
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **vision)
    size = {"shortest_edge": 32}, {"height": 32, "width": 32}
    return diffusers.VersatileDiffusionPipeline(
        tokenizer=common["tokenizer"],
        text_encoder=random(transformers.CLIPTextModelWithProjection(text)),
        image_encoder=random(transformers.CLIPVisionModelWithProjection(vision)),
        image_feature_extractor=transformers.CLIPImageProcessor(size=size[0], crop_size=size[1]),
        image_unet=common["unet"],
        text_unet=flat(**config).eval(),
        vae=common["vae"],
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
    )


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Ours and the reference's, with all parts, by what their networks are like."""
    made = {}
    for name, config in NETS.items():
        folder = tmp_path_factory.mktemp("versatile")
        theirs = whole(folder, **config)
        theirs.save_pretrained(folder / "saved")
        made[name] = DiffusionPipeline.from_pretrained(folder / "saved"), theirs, folder / "saved"
    return made


@pytest.fixture
def both(wholes, monkeypatch):
    """A function (flow, scheduler, networks) -> (our pipeline, the reference's), each over parts of its own."""
    import diffusers
    from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel

    forward = DualTransformer2DModel.forward

    def without_mask(self, *args, encoder_attention_mask=None, **kwargs):
        """The reference's UNet hands its two transformers an argument that they do not take."""
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(DualTransformer2DModel, "forward", without_mask)

    def make(flow, scheduler="ddim", nets="heads"):
        pipes = []
        for library, pipe in zip((langevin, diffusers), wholes[nets][:2], strict=True):
            cls, (chosen, config) = getattr(library, flow), SCHEDULERS[scheduler]
            parts = {**pipe.components, "scheduler": getattr(library, chosen)(**config)}
            if library is diffusers:  # it moves attention from one network into the other
                parts |= {name: copy.deepcopy(parts[name]) for name in ("image_unet", "text_unet")}
            made = cls(**{n: part for n, part in parts.items() if n in inspect.signature(cls.__init__).parameters})
            made.set_progress_bar_config(disable=True)
            pipes.append(made)
        return tuple(pipes)

    return make


@pytest.mark.parametrize(
    "scheduler", ["ddim", "ddim old config", "ddim v trailing", "pndm", "euler", "euler a", "dpm++ 2m karras"]
)
@pytest.mark.parametrize("flow", FLOWS)
def test_pictures_are_the_references(both, flow, scheduler):
    assert_same(both(flow, scheduler), *FLOWS[flow][1], **steps(scheduler, 5))


@pytest.mark.parametrize("flow", FLOWS)
def test_other_networks_too(both, flow):
    assert_same(both(flow, nets="linear"), *FLOWS[flow][1], **STEPS)


COMMON = [
    dict(guidance_scale=1.0),
    dict(guidance_scale=12.0, num_images_per_prompt=2),
    dict(eta=0.7),
    dict(height=24, width=16),
    dict(latents=torch.randn(1, 4, 8, 8, generator=generator(3))),
    dict(num_images_per_prompt=2, generator=lambda: [generator(1), generator(2)]),
]
OWN = {
    TEXT: [dict(negative_prompt="ugly"), dict(prompt=["a cat", "two dogs"], negative_prompt=["x", "bad"])],
    VARIATION: [
        dict(image=pil(37, 26), negative_prompt=pil(seed=4)),
        dict(image=[pil(), pil(seed=1)], num_images_per_prompt=2),
    ],
    DUAL: [
        dict(text_to_image_strength=0.0),
        dict(text_to_image_strength=0.8),
        dict(prompt=["a cat", "two dogs"], image=[pil(), pil(30, 40, seed=1)], num_images_per_prompt=2),
    ],
}


@pytest.mark.parametrize(
    ("flow", "options"),
    [(flow, options) for flow in FLOWS for options in COMMON + OWN[flow]],
    ids=lambda value: value.removeprefix("VersatileDiffusion") if isinstance(value, str) else ",".join(value),
)
def test_options_give_the_references_numbers(both, flow, options):
    names = {TEXT: ["prompt"], VARIATION: ["image"], DUAL: ["prompt", "image"]}[flow]
    call = {**dict(zip(names, FLOWS[flow][1], strict=True)), **STEPS, **options}
    assert_same(both(flow), **call)


def test_all_flows_share_their_parts_and_change_none(wholes, both):
    ours = wholes["heads"][0]
    ours.set_progress_bar_config(disable=True)
    before = {name: copy.deepcopy(net.state_dict()) for name, net in ours._networks().items()}
    layers = {name: [*net.modules()] for name, net in ours._networks().items()}
    for _ in range(2):
        for name, (method, arguments) in FLOWS.items():
            made = getattr(ours, method)(*arguments, seed=5, output_type="np", **STEPS).images
            np.testing.assert_array_equal(made, images(both(name)[0], *arguments, seed=5, **STEPS))
    for name, net in ours._networks().items():
        assert all(a is b for a, b in zip(net.modules(), layers[name], strict=True))
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in before[name].items())


def test_the_one_pipeline_takes_the_references_arguments():
    import diffusers

    for method, _ in FLOWS.values():
        theirs = inspect.signature(getattr(diffusers.VersatileDiffusionPipeline, method)).parameters
        ours = inspect.signature(getattr(VersatileDiffusionPipeline, method)).parameters
        assert [p for p in ours if ours[p].kind is ours[p].POSITIONAL_OR_KEYWORD] == [*theirs][1:]
    with pytest.raises(TypeError, match="takes no argument 'num_inferense_steps'; nearest: num_inference_steps"):
        VersatileDiffusionPipeline.text_to_image(object.__new__(VersatileDiffusionPipeline), num_inferense_steps=3)


def test_text_and_picture_each_have_their_effect(both):
    ours, _ = both(DUAL)
    call = dict(seed=3, num_inference_steps=2)
    plain = images(ours, "a cat", pil(), **call)
    assert abs(images(ours, "a horse", pil(), **call) - plain).max() > 1e-3
    assert abs(images(ours, "a cat", pil(seed=9), **call) - plain).max() > 1e-3
    alone = images(ours, "a cat", pil(), text_to_image_strength=1.0, **call)
    np.testing.assert_allclose(alone, images(both(TEXT)[0], "a cat", **call), atol=1e-5)
    np.testing.assert_array_equal(images(ours, "a cat", pil(seed=9), text_to_image_strength=1.0, **call), alone)
    alone = images(ours, "a cat", pil(), text_to_image_strength=0.0, **call)
    np.testing.assert_allclose(alone, images(both(VARIATION)[0], pil(), **call), atol=1e-5)


def test_the_picture_without_anything_may_be_grey_as_is_meant(both):
    for name in (VARIATION, DUAL):
        ours, _ = both(name)
        call = dict(seed=3, **STEPS)
        grey = images(ours, *FLOWS[name][1], grey_negative=True, **call)
        assert abs(grey - images(ours, *FLOWS[name][1], **call)).max() > 1e-3
    from PIL import Image

    ours, _ = both(VARIATION)
    as_given = images(ours, pil(), negative_prompt=Image.new("RGB", (64, 64), (127,) * 3), **call)
    np.testing.assert_allclose(images(ours, pil(), grey_negative=True, **call), as_given, atol=1e-4)


def test_a_tensor_is_a_picture(both):
    ours, _ = both(VARIATION)
    tensor = torch.from_numpy(np.asarray(pil(32, 32)) / np.float32(255)).permute(2, 0, 1)
    wanted = images(ours, pil(32, 32), **STEPS)
    np.testing.assert_allclose(images(ours, tensor, **STEPS), wanted, atol=1e-4)
    ready = ours.image_feature_extractor(images=pil(32, 32), return_tensors="pt").pixel_values
    np.testing.assert_allclose(images(ours, ready, prepared=True, **STEPS), wanted, atol=1e-4)


@pytest.mark.parametrize("flow", FLOWS)
def test_each_picture_has_its_own_seed(both, flow):
    ours, _ = both(flow)
    made = images(ours, *FLOWS[flow][1], num_images_per_prompt=3, seed=[4, 9, 5], **STEPS)
    np.testing.assert_allclose(made[1:2], images(ours, *FLOWS[flow][1], seed=9, **STEPS), atol=1e-4)


@pytest.mark.parametrize("flow", FLOWS)
def test_callbacks_and_interruption(both, flow, wholes):
    logs: list[list] = [[], []]
    for pipe, log in zip(both(flow), logs, strict=True):
        images(pipe, *FLOWS[flow][1], callback=lambda i, t, x, log=log: log.append((i, int(t), x.shape)),
               callback_steps=2, **STEPS)  # fmt: skip
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2
    ours, seen = wholes["heads"][0], []

    def stop(call, i, t, tensors):
        seen.append(tensors["latents"].shape)
        ours._interrupt = i == 1

    getattr(ours, FLOWS[flow][0])(*FLOWS[flow][1], callback_on_step_end=stop, num_inference_steps=5)
    assert len(seen) == 2
    assert ours.num_timesteps == 5


def test_prompts_are_read_as_everywhere(both):
    for name, more in ((TEXT, []), (DUAL, [pil()])):
        ours, _ = both(name)
        call = dict(seed=3, **STEPS)
        plain = images(ours, "a cat", *more, **call)
        for prompt in ("a (cat)1.5", "a [cat:dog:0.5]", "a very very very very long prompt of a cat"):
            assert abs(images(ours, prompt, *more, **call) - plain).max() > 1e-4
        texts = ["a cat", "a very very very very long prompt of a cat"]
        two = images(ours, texts, *more, seed=[3, 4], num_inference_steps=3)
        np.testing.assert_allclose(two[:1], plain, atol=1e-4)
        np.testing.assert_allclose(two[1:], images(ours, texts[1], *more, seed=4, **STEPS), atol=1e-4)


def test_guiders_have_their_effect(both):
    for name in FLOWS:
        ours, _ = both(name)
        call = dict(seed=3, **STEPS)
        plain = images(ours, *FLOWS[name][1], **call)
        assert abs(images(ours, *FLOWS[name][1], guiders=[SelfAttentionGuidance(1.5)], **call) - plain).max() > 1e-3
        wide = images(ours, *FLOWS[name][1], width=32, guiders=[langevin.Windows(8, 4)], **call)
        assert wide.shape == (1, 16, 32, 3)
        if name == VARIATION:
            with pytest.raises(ValueError, match="needs a pipeline that reads texts"):
                ours(pil(), guiders=[SafeGuidance("dog")], **STEPS)
        else:
            safe = images(ours, *FLOWS[name][1], guiders=[SafeGuidance("dog", warmup_steps=0)], **call)
            assert abs(safe - plain).max() > 1e-4


def test_folders_go_both_ways(wholes, tmp_path):
    import diffusers

    ours, _, folder = wholes["heads"]
    assert type(ours) is VersatileDiffusionPipeline
    assert json.loads((folder / "model_index.json").read_text())["text_unet"][0] == "diffusers"  # which it cannot load
    ours.save_pretrained(tmp_path / "ours")
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(back) is diffusers.VersatileDiffusionPipeline
    for name in ("image_unet", "text_unet"):
        saved = getattr(ours, name).state_dict()
        assert all(torch.equal(value, saved[key]) for key, value in getattr(back, name).state_dict().items())
    read = langevin.VersatileDiffusionImageVariationPipeline.from_pretrained(folder)
    there = diffusers.VersatileDiffusionImageVariationPipeline.from_pretrained(tmp_path / "ours")
    for pipe in (read, there):
        pipe.set_progress_bar_config(disable=True)
    assert_same((read, there), pil(), **STEPS)


@pytest.mark.parametrize("flow", [TEXT, DUAL])
def test_a_flow_that_is_saved_whole_loads_there(both, flow, tmp_path):
    import diffusers

    ours, _ = both(flow)
    ours.save_pretrained(tmp_path)
    there = getattr(diffusers, flow).from_pretrained(tmp_path)
    there.set_progress_bar_config(disable=True)
    assert_same((DiffusionPipeline.from_pretrained(tmp_path), there), *FLOWS[flow][1], **STEPS)


def test_the_published_index_and_configs_are_read(wholes, tmp_path):
    ours, _, folder = wholes["heads"]
    shutil.copytree(folder, tmp_path / "old")
    index = {
        "_class_name": "VersatileDiffusionPipeline",
        "_diffusers_version": "0.8.0.dev0",
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "image_feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "image_unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_unet": ["versatile_diffusion", "UNetFlatConditionModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (tmp_path / "old" / "model_index.json").write_text(json.dumps(index))
    for name in ("image_unet", "text_unet"):  # configs of that time say less
        file = tmp_path / "old" / name / "config.json"
        config = json.loads(file.read_text())
        known = "down_block_types up_block_types in_channels out_channels block_out_channels layers_per_block"
        known += " cross_attention_dim attention_head_dim sample_size norm_num_groups norm_eps act_fn _class_name"
        file.write_text(json.dumps({key: config[key] for key in known.split()}))
    call = dict(seed=3, output_type="np", **STEPS)
    wanted = ours.dual_guided("a cat", pil(), **call).images
    for cls in (DiffusionPipeline, langevin.VersatileDiffusionDualGuidedPipeline):
        pipe = cls.from_pretrained(tmp_path / "old")
        make = pipe.dual_guided if cls is DiffusionPipeline else pipe
        np.testing.assert_array_equal(make("a cat", pil(), **call).images, wanted)


@pytest.mark.parametrize("flow", [TEXT, DUAL])
def test_what_a_flow_needs_can_be_kept_alone(both, flow, tmp_path):
    import diffusers

    ours, theirs = both(flow)
    wanted = images(ours, *FLOWS[flow][1], **STEPS)
    image_unet, text_unet = ours.image_unet, ours.text_unet
    keys = [*image_unet.state_dict()]
    ours.remove_unused_weights()
    assert ours.text_unet is None
    assert [*image_unet.state_dict()] == keys
    assert ours.image_unet is not image_unet
    np.testing.assert_array_equal(images(ours, *FLOWS[flow][1], **STEPS), wanted)
    ours.save_pretrained(tmp_path / "ours")
    theirs.remove_unused_weights()
    theirs.save_pretrained(tmp_path / "theirs")
    for pipe in (
        DiffusionPipeline.from_pretrained(tmp_path / "ours"),
        DiffusionPipeline.from_pretrained(tmp_path / "theirs"),
        getattr(diffusers, flow).from_pretrained(tmp_path / "ours"),
    ):
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(images(pipe, *FLOWS[flow][1], **STEPS), wanted, atol=1e-4)
    assert text_unet is not None


def test_a_network_that_looks_at_both_serves_all_flows(both):
    dual, _ = both(DUAL)
    call = dict(seed=3, **STEPS)
    wanted = {name: images(both(name)[0], *FLOWS[name][1], **call) for name in (TEXT, VARIATION)}
    dual.remove_unused_weights()
    for name in (TEXT, VARIATION):
        pipe = getattr(langevin, name).from_pipe(dual)
        np.testing.assert_array_equal(images(pipe, *FLOWS[name][1], **call), wanted[name])


@pytest.mark.parametrize("flow", FLOWS)
def test_it_can_be_made_again(both, wholes, tmp_path, flow):
    ours, _ = both(flow)
    call = dict(num_images_per_prompt=2, seed=3, eta=1.0, width=24, **STEPS)
    call |= {
        VARIATION: dict(negative_prompt=pil(seed=6)),
        DUAL: dict(text_to_image_strength=0.3, grey_negative=True),
    }.get(flow, {})
    assert_made_again(ours, tmp_path, *FLOWS[flow][1], row=1, **call)


def test_what_the_one_pipeline_made_can_be_made_again(wholes, tmp_path):
    from typer.testing import CliRunner

    from langevin.cli.app import app

    pipe = DiffusionPipeline.from_pretrained(wholes["heads"][2])
    pipe.set_progress_bar_config(disable=True)
    plain = pipe.dual_guided("a cat", pil(), 0.7, seed=4, **STEPS).images[0]
    pipe.enable_freeu(s1=0.5, s2=0.2, b1=1.5, b2=1.6)
    made = pipe.dual_guided("a cat", pil(), 0.7, seed=4, **STEPS).images[0]
    assert made.tobytes() != plain.tobytes()
    made.save(tmp_path / "made.png")
    result = CliRunner().invoke(app, ["again", str(tmp_path / "made.png"), "--yes"])
    assert result.exit_code == 0, result.output
    assert "identical: all" in result.output


def test_the_command_line_knows_the_one_pipeline(wholes, tmp_path):
    from PIL import Image
    from typer.testing import CliRunner

    from langevin.cli.app import app

    ours, _, folder = wholes["heads"]
    pil().save(tmp_path / "given.png")
    for words, method, arguments in (
        (["generate", "a cat"], ours.text_to_image, ["a cat"]),
        (["vary", str(tmp_path / "given.png")], ours.image_variation, [Image.open(tmp_path / "given.png")]),
    ):
        out = tmp_path / f"{words[0]}.png"
        options = ["--model", str(folder), "--steps", "3", "--seed", "3", "--out", str(out)]
        result = CliRunner().invoke(app, [*words, *options])
        assert result.exit_code == 0, result.output
        made = method(*arguments, seed=3, **STEPS).images[0]
        np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(made))
    np.testing.assert_array_equal(np.asarray(ours("a cat", seed=3, **STEPS).images[0]),
                                  np.asarray(ours.text_to_image("a cat", seed=3, **STEPS).images[0]))  # fmt: skip


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_parts_may_be_offloaded(wholes, way):
    pytest.importorskip("accelerate")
    kept = wholes["heads"][0]
    wanted = {m: getattr(kept, m)(*a, seed=2, output_type="np", **STEPS).images for m, a in FLOWS.values()}
    pipe = DiffusionPipeline.from_pretrained(wholes["heads"][2])
    pipe.set_progress_bar_config(disable=True)
    getattr(pipe, way)(device="cpu")
    for method, arguments in FLOWS.values():
        made = getattr(pipe, method)(*arguments, seed=2, output_type="np", **STEPS).images
        np.testing.assert_allclose(made, wanted[method], atol=1e-5)


def test_threads_do_not_see_each_other(wholes):
    ours = wholes["heads"][0]
    jobs = [(*FLOWS[name], k) for k in range(2) for name in FLOWS]

    def one(k):
        method, arguments, seed = jobs[k]
        return getattr(ours, method)(*arguments, seed=seed, num_inference_steps=2, output_type="np").images

    serial = [one(k) for k in range(len(jobs))]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(one, len(jobs)), strict=True))


def test_a_config_without_a_size_means_512_pixels(both):
    ours, _ = both(VARIATION)
    unet = langevin.UNet2DConditionModel.from_config({**ours.image_unet.config, "sample_size": None})
    assert langevin.VersatileDiffusionImageVariationPipeline.from_pipe(ours, image_unet=unet).size(None, None) == (
        128,
        128,
    )


@pytest.mark.parametrize(
    ("flow", "options", "says"),
    [
        (TEXT, dict(prompt=None), "neither of prompt and prompt_embeds given"),
        (VARIATION, dict(image=None), "image is missing"),
        (VARIATION, dict(image="cat.png"), "image is a str"),
        (VARIATION, dict(negative_prompt="ugly"), "negative_prompt is a text"),
        (DUAL, dict(image=[pil(), pil(), pil()]), "3 pictures for 1 prompts"),
        (DUAL, dict(text_to_image_strength=1.5), "text_to_image_strength is 1.5"),
        (DUAL, dict(height=17), "both must be multiples of 2"),
    ],
)
def test_bad_input_gets_one_clear_line(both, flow, options, says):
    names = {TEXT: ["prompt"], VARIATION: ["image"], DUAL: ["prompt", "image"]}[flow]
    call = {**dict(zip(names, FLOWS[flow][1], strict=True)), **STEPS, **options}
    with pytest.raises(ValueError, match=says) as caught:
        both(flow)[0](**call)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_fit_are_told_of(both):
    ours, _ = both(DUAL)
    with pytest.raises(ValueError, match="needs dual_cross_attention"):
        type(ours)(**{**ours.components, "text_unet": None})("a cat", pil(), **STEPS)
    deeper = dict(down_block_types=("CrossAttnDownBlockFlat",) * 2, up_block_types=("CrossAttnUpBlockFlat",) * 2)
    other = langevin.UNetFlatConditionModel(attention_head_dim=2, **SIZES, **deeper)
    with pytest.raises(ValueError, match="attention at the same places"):
        type(ours)(**{**ours.components, "text_unet": other})("a cat", pil(), **STEPS)
