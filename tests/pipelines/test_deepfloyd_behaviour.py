"""What DeepFloyd IF's pipelines do beyond the reference, their folders, and what they refuse."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import langevin
from langevin import ClassifierFreeGuidance, CleanSurroundings, DiffusionPipeline, Inpaint, Windows
from tests.helpers import in_threads
from tests.pipelines.again_checks import assert_made_again
from tests.pipelines.deepfloyd_checks import Stages, judges, markers
from tests.pipelines.family_checks import assert_same, generator, images, mask, pil

TEXT, LARGE = "IFPipeline", "IFSuperResolutionPipeline"
IMAGE, IMAGE_LARGE = "IFImg2ImgPipeline", "IFImg2ImgSuperResolutionPipeline"
INPAINT, INPAINT_LARGE = "IFInpaintingPipeline", "IFInpaintingSuperResolutionPipeline"
STEPS = dict(num_inference_steps=4)
CALLS = {
    TEXT: {},
    LARGE: dict(image=pil(16, 16)),
    IMAGE: dict(image=pil(16, 16)),
    IMAGE_LARGE: dict(image=pil(16, 16), original_image=pil(32, 32, seed=1)),
    INPAINT: dict(image=pil(16, 16), mask_image=mask()),
    INPAINT_LARGE: dict(image=pil(16, 16), original_image=pil(32, 32), mask_image=mask(32, 32)),
}


@pytest.fixture(scope="module")
def stages():
    return Stages()


@pytest.fixture(scope="module")
def ours(stages):
    return lambda name=TEXT, **more: stages(name, **more)[0]


def seen_by(network, call):
    """What the network was given at each call, and what the call gave."""
    seen: list = []
    handle = network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0], kwargs)), with_kwargs=True
    )
    try:
        return seen, call()
    finally:
        handle.remove()


# -- numbers


@pytest.mark.parametrize("name", CALLS)
def test_a_picture_made_alone_with_its_own_seed_is_the_same(ours, name):
    call = {k: [v, v.transpose(0)] if k.endswith("image") else v for k, v in CALLS[name].items()}
    made = images(ours(name), prompt=["a", "b"], num_images_per_prompt=2, seed=5, **call, **STEPS)
    alone = {k: v[1] if k.endswith("image") else v for k, v in call.items()}
    np.testing.assert_allclose(made[3:], images(ours(name), prompt="b", seed=8, **alone, **STEPS), atol=1e-4)
    assert abs(made[2] - made[3]).max() > 1e-3


def test_the_noise_level_is_told_and_really_added(ours):
    pipe = ours(LARGE)
    clean = images(pipe, "a", image=pil(16, 16), noise_level=0, **STEPS)
    shown = {}
    for level in (0, 100, 400):
        seen, made = seen_by(pipe.unet, lambda k=level: images(pipe, "a", image=pil(16, 16), noise_level=k, **STEPS))
        assert {tuple(kwargs["class_labels"].tolist()) for _, kwargs in seen} == {(level, level)}
        shown[level] = seen[0][0][:1, 3:]
        assert all(torch.equal(x[:1, 3:], shown[level]) for x, _ in seen)
        assert level == 0 or abs(made - clean).max() > 1e-2
    for level in (100, 400):
        alpha = float(pipe.image_noising_scheduler.alphas_cumprod[level])
        added = shown[level] - alpha**0.5 * shown[0]
        assert float(added.std()) == pytest.approx((1 - alpha) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", [INPAINT, INPAINT_LARGE])
def test_surroundings_are_clean_or_noised_and_are_kept_at_the_end(ours, name):
    pipe = ours(name)
    large = name == INPAINT_LARGE
    picture = np.asarray(CALLS[name]["original_image" if large else "image"]) / 255
    outside = np.asarray(CALLS[name]["mask_image"]) == 0
    apart = {}
    for kind in ("clean", "noised"):
        call = dict(prompt="a", surroundings=kind, strength=1.0, **CALLS[name], **STEPS)
        seen, made = seen_by(pipe.unet, lambda call=call: images(pipe, **call))
        np.testing.assert_allclose(made[0][outside], picture[outside], atol=1e-5)
        assert abs(made[0][~outside] - picture[~outside]).max() > 0.1
        x = seen[0][0][0, :3].permute(1, 2, 0).numpy() / 2 + 0.5
        apart[kind] = float(abs(x[outside] - picture[outside]).max())
    assert apart["clean"] < 1e-5
    assert apart["noised"] > 0.5


def test_guiders_do_what_the_pipelines_do(ours):
    plain = images(ours(), "a cat", **STEPS)
    pixels, where = torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 1, 16, 16)
    where[..., 4:12] = 1
    kept = {}
    for kind in (Inpaint, CleanSurroundings):
        made = images(ours(), "a cat", guiders=[kind(pixels, where, 0.8)], **STEPS)
        np.testing.assert_allclose(made[..., :4, :], 0.75, atol=1e-5)
        kept[kind] = made[..., 4:12, :]
    assert abs(kept[Inpaint] - kept[CleanSurroundings]).max() > 1e-3
    np.testing.assert_array_equal(images(ours(), "a cat", guiders=[ClassifierFreeGuidance(7.0)], **STEPS), plain)
    others = ([langevin.SafeGuidance("dog", warmup_steps=0)], [ClassifierFreeGuidance(7.0, stop=0.5)])
    for guiders in others:
        assert abs(images(ours(), "a cat", guiders=guiders, **STEPS) - plain).max() > 1e-3
    assert abs(images(ours(), "a (cat)1.8", **STEPS) - plain).max() > 1e-3
    assert abs(images(ours(), "a [cat:dog:0.5]", **STEPS) - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("guider", "says"),
    [
        (langevin.SelfAttentionGuidance(0.75), "needs a network with self-attention"),
        (langevin.CFGPlusPlus(0.5), "does not work with DDPMRun"),
        (langevin.LowResolution(torch.zeros(1, 3, 16, 16), 1, langevin.DDPMScheduler()), "takes 3 channels"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_guiders_that_do_not_go_with_these_networks_say_so(ours, guider, says):
    with pytest.raises(ValueError, match=says) as caught:
        ours()("a cat", guiders=[guider], **STEPS)
    assert "\n" not in str(caught.value)


def test_large_pictures_go_in_windows_with_what_they_see(ours):
    pipe = ours(LARGE)
    call = dict(image=pil(16, 24), height=32, width=48, guiders=[Windows(32, 16, smooth=True)], **STEPS)
    seen, made = seen_by(pipe.unet, lambda: images(pipe, "a", **call))
    assert made.shape == (1, 32, 48, 3)
    assert {tuple(x.shape[1:]) for x, _ in seen} == {(6, 32, 32)}


def test_callbacks_see_and_change_x_and_a_call_can_be_ended(ours):
    pipe = ours(LARGE)
    told = []

    def look(call, i, t, tensors):
        told.append((i, {name: tuple(value.shape) for name, value in tensors.items()}))
        if i == 1:
            call._interrupt = True
        return {"latents": torch.zeros_like(tensors["latents"])} if i == 0 else None

    wanted = ["latents", "prompt_embeds"]
    pipe("a", callback_on_step_end=look, callback_on_step_end_tensor_inputs=wanted, **CALLS[LARGE], **STEPS)
    assert told == [(i, {"latents": (1, 3, 32, 32), "prompt_embeds": (2, 77, 16)}) for i in (0, 1)]


def test_eight_threads_with_a_picture_each(ours):
    pipe = ours(INPAINT_LARGE)

    def one(k):
        call = {**CALLS[INPAINT_LARGE], "image": pil(16, 16, seed=k)}
        return images(pipe, prompt="a", num_inference_steps=2, seed=1, **call)

    serial = [one(k) for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(one), strict=True))


# -- folders


@pytest.mark.parametrize("name", [TEXT, LARGE, IMAGE, INPAINT_LARGE])
def test_folders_load_on_both_sides(stages, name, tmp_path):
    ours, theirs = stages(name, **judges(), **markers())
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    read = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    # the reference cannot load the checkers that it saves itself: with this version of transformers it raises
    back = type(theirs).from_pretrained(tmp_path / "ours", safety_checker=theirs.safety_checker)
    assert type(read) is type(ours)
    judged = [load_file(tmp_path / side / "safety_checker" / "model.safetensors") for side in ("ours", "theirs")]
    assert judged[0].keys() == judged[1].keys()
    assert all(torch.equal(judged[0][key], value) for key, value in judged[1].items())
    for pipe in (read, back):
        pipe.set_progress_bar_config(disable=True)
    assert_same((read, back), prompt="a cat", **CALLS[name], **STEPS)
    for pipe in (read, back):
        assert torch.equal(pipe.watermarker.watermark_image, ours.watermarker.watermark_image)
    indices = [json.loads((tmp_path / side / "model_index.json").read_text()) for side in ("ours", "theirs")]
    for index in indices:
        index.pop("_diffusers_version", None)
        index.pop("feature_extractor")
    assert indices[0] == indices[1]
    assert indices[0]["watermarker"] == ["deepfloyd_if", "IFWatermarker"]


def test_folders_as_they_were_published_load(stages, tmp_path):
    """Other names of libraries and classes, parts that are not there, and none in the reference's list of them."""
    ours, _ = stages(LARGE, **judges(), **markers())
    ours.save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    index = json.loads(file.read_text())
    index |= {"safety_checker": ["diffusers", "IFSafetyChecker"], "watermarker": ["diffusers", "IFWatermarker"]}
    index |= {"feature_extractor": ["transformers", "CLIPFeatureExtractor"], "_diffusers_version": "0.15.0.dev0"}
    file.write_text(json.dumps(index))
    whole = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(whole.safety_checker).__name__ == "IFSafetyChecker"
    plain = DiffusionPipeline.from_pretrained(
        tmp_path, text_encoder=None, tokenizer=None, safety_checker=None, watermarker=None
    )
    assert plain.text_encoder is plain.tokenizer is plain.watermarker is None
    small = langevin.IFImg2ImgSuperResolutionPipeline.from_pretrained(tmp_path, unet=None, torch_dtype=torch.bfloat16)
    assert small.encode_prompt("a")[0].dtype == torch.bfloat16
    for name in ("watermarker", "safety_checker", "feature_extractor"):
        index.pop(name)
    file.write_text(json.dumps(index))
    assert DiffusionPipeline.from_pretrained(tmp_path).watermarker is None


def test_upscalers_with_a_watermarker_load_and_mark_as_the_reference_does(twins, tmp_path):
    import diffusers

    low = langevin.DDPMScheduler(), diffusers.DDPMScheduler()
    ours, theirs = twins("StableDiffusionUpscalePipeline", unet="upscale", low_res_scheduler=low, **markers())
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    read = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    back = diffusers.StableDiffusionUpscalePipeline.from_pretrained(tmp_path / "ours")
    made = []
    for pipe in (read, back):
        pipe.set_progress_bar_config(disable=True)
        made.append(pipe("a", image=pil(40, 40), num_inference_steps=2, generator=generator()).images[0])
    apart = np.abs(np.asarray(made[0]).astype(int) - np.asarray(made[1]))
    assert apart.max() <= 1
    read.watermarker = None
    plain = read("a", image=pil(40, 40), num_inference_steps=2, generator=generator()).images[0]
    assert (np.asarray(plain) != np.asarray(made[0])).any(-1)[-8:, -8:].any()


@pytest.mark.parametrize("name", [TEXT, LARGE, IMAGE_LARGE, INPAINT])
def test_it_can_be_made_again(ours, name, tmp_path):
    call = dict(negative_prompt="ugly", num_inference_steps=3, seed=1, **CALLS[name])
    if name == INPAINT:
        call |= dict(surroundings="noised", clean_caption=False)
    assert_made_again(ours(name, **markers()), tmp_path, prompt="a <b>Cat</b>", **call)


def test_settings_are_recorded(ours):
    settings = ours(IMAGE_LARGE)(prompt="a", seed=3, **CALLS[IMAGE_LARGE], **STEPS).images[0].settings
    assert settings["pipeline"] == IMAGE_LARGE
    assert settings["guidance_scale"] == 4.0
    assert settings["noise_level"] == 250
    assert settings["clean_caption"] is True
    assert settings["strength"] == 0.8
    assert settings["seed"] == 3
    assert (settings["height"], settings["width"]) == (32, 32)
    assert {"png"} == set(settings["original_image"]) == set(settings["image"])


# -- what is refused


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (TEXT, dict(prompt=None), "neither of prompt and prompt_embeds given"),
        (TEXT, dict(clean_caption="yes"), "clean_caption is 'yes'"),
        (LARGE, dict(image=None), "image: expected PIL images, numpy arrays or tensors"),
        (LARGE, dict(noise_level=1000), "noise_level is 1000; image_noising_scheduler knows 0 to 999"),
        (LARGE, dict(noise_level=-1), "noise_level is -1"),
        (LARGE, dict(image=[pil(8, 8)] * 3), "3 images for a batch of 1"),
        (LARGE, dict(image=torch.zeros(1, 2, 8, 8)), r"image is float32 \(1, 2, 8, 8\).*expected 3 channels"),
        (IMAGE, dict(strength=1.5), "strength is 1.5"),
        (IMAGE_LARGE, dict(original_image=None), "original_image: expected"),
        (INPAINT, dict(mask_image=None), "mask_image: expected"),
        (INPAINT, dict(mask_image=mask(24, 16)), "mask_image and the picture are 24 x 16 and 16 x 16"),
        (INPAINT, dict(surroundings="dark"), "surroundings is 'dark'"),
        (INPAINT_LARGE, dict(noise_level=2000), "noise_level is 2000"),
    ],
)
def test_bad_input_gets_one_clear_line(ours, name, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        ours(name)(**{"prompt": "a", **CALLS[name], **STEPS, **options})
    assert "\n" not in str(caught.value)


def test_pictures_in_other_ranges_are_told_of_and_integers_brought_into_form(ours, caplog):
    pipe = ours(LARGE)
    unit = torch.rand(1, 3, 16, 16, generator=generator(1))
    with caplog.at_level(logging.WARNING):
        images(pipe, "a", image=unit, num_inference_steps=1)
    assert "image has no value below 0 and is taken to be in [-1, 1]; from [0, 1], give 2 * x - 1" in caplog.text
    whole = np.asarray(pil(16, 16))
    made = [images(pipe, "a", image=one, num_inference_steps=2) for one in (whole, pil(16, 16))]
    np.testing.assert_allclose(made[0], made[1], atol=1e-5)


def test_a_network_without_channels_for_the_picture_is_refused(ours):
    pipe = langevin.IFSuperResolutionPipeline(**{**ours(LARGE).components, "unet": ours(TEXT).unet})
    with pytest.raises(ValueError, match=r"takes 3 channels, where x and what is joined to it \(image\) have"):
        pipe("a", image=pil(16, 16), **STEPS)
