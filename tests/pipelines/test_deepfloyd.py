"""DeepFloyd IF's six pipelines against the reference, on several networks, schedulers and options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import langevin
from tests.pipelines.deepfloyd_checks import DDPM, SCHEDULERS, UNETS, Stages, judges, markers
from tests.pipelines.family_checks import assert_same, generator, images, mask, pil

TEXT, LARGE = "IFPipeline", "IFSuperResolutionPipeline"
IMAGE, IMAGE_LARGE = "IFImg2ImgPipeline", "IFImg2ImgSuperResolutionPipeline"
INPAINT, INPAINT_LARGE = "IFInpaintingPipeline", "IFInpaintingSuperResolutionPipeline"


def rough_mask(height, width):
    """Of all shades."""
    return Image.fromarray((np.random.RandomState(3).rand(height, width) * 255).astype("uint8"))


CALLS = {
    TEXT: dict(num_inference_steps=3),
    LARGE: dict(image=pil(16, 16), num_inference_steps=3),
    IMAGE: dict(image=pil(16, 16), num_inference_steps=4),
    IMAGE_LARGE: dict(image=pil(16, 16), original_image=pil(32, 32, seed=1), num_inference_steps=4),
    INPAINT: dict(image=pil(16, 16), mask_image=mask(), num_inference_steps=4, strength=0.8),
    INPAINT_LARGE: dict(image=pil(16, 16), original_image=pil(32, 32), mask_image=mask(32, 32), num_inference_steps=4),
}
TENSOR = 2 * torch.rand(1, 3, 16, 16, generator=generator(8)) - 1
EMBEDS = torch.randn(2, 1, 77, 16, generator=generator(4))


@pytest.fixture(scope="module")
def stages():
    return Stages()


def refuses(scheduler):
    """Schedulers without a ``variance_type``, on which the reference's pipelines raise."""
    return scheduler in ("ddim", "unipc", "euler")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("unet", ["scaled", "deep"])
def test_pictures_are_the_reference_ones(stages, name, unet):
    assert_same(stages(name, unet=unet), prompt="a Cat sat", **CALLS[name])


@pytest.mark.parametrize("name", [TEXT, LARGE, INPAINT_LARGE])
@pytest.mark.parametrize("scheduler", [s for s in SCHEDULERS if not refuses(s)])
def test_so_they_are_with_other_schedulers(stages, name, scheduler):
    assert_same(stages(name, unet="plain", scheduler=scheduler), prompt="a cat", **CALLS[name])


@pytest.mark.parametrize("unet", ["plain", "transformer"])
def test_so_they_are_with_other_networks_and_texts(stages, unet):
    for name in (TEXT, LARGE):
        assert_same(stages(name, unet=unet, text="t5 1.1"), prompt="a cat", **CALLS[name])


@pytest.mark.parametrize("scheduler", filter(refuses, SCHEDULERS))
def test_schedulers_that_the_reference_refuses_work_here(stages, scheduler):
    ours, theirs = stages(LARGE, scheduler=scheduler)
    with pytest.raises(AttributeError, match="variance_type"):
        theirs("a cat", **CALLS[LARGE])
    made = images(ours, "a cat", **CALLS[LARGE])
    assert np.isfinite(made).all()
    assert made.std() > 0.02


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=3.0, negative_prompt="Ugly, <b>bad</b>"),
        dict(num_images_per_prompt=2),
        dict(prompt=["A cat & more", "see www.dogs.com"], negative_prompt=["", "x"]),
        dict(prompt=["a", "b"], generator=lambda: [generator(1), generator(2)]),
        dict(clean_caption=False, prompt="A Cat, see http://cats.com  "),
        dict(timesteps=[900, 500, 30]),
        dict(prompt=None, prompt_embeds=EMBEDS[0], negative_prompt_embeds=EMBEDS[1]),
        dict(prompt=None, prompt_embeds=EMBEDS[0], negative_prompt="ugly"),
        dict(prompt=None, prompt_embeds=EMBEDS[0], num_images_per_prompt=2),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(stages, options):
    assert_same(stages(), **{"prompt": "a cat", **CALLS[TEXT], **options})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (TEXT, dict(height=24, width=8)),
        (LARGE, dict(height=24, width=40)),
        (LARGE, dict(noise_level=0)),
        (LARGE, dict(noise_level=999)),
        (LARGE, dict(image=pil(10, 13))),
        (LARGE, dict(image=TENSOR)),
        (LARGE, dict(image=TENSOR.permute(0, 2, 3, 1).numpy())),
        (LARGE, dict(prompt=["a", "b"], image=[pil(16, 16), pil(16, 16, seed=1)], num_images_per_prompt=2)),
        (LARGE, dict(prompt=["a", "b"], image=[pil(16, 16)] * 2, generator=lambda: [generator(1), generator(2)])),
        (IMAGE, dict(strength=1.0)),
        (IMAGE, dict(strength=0.3)),
        (IMAGE, dict(image=pil(20, 33))),
        (IMAGE, dict(image=pil(40, 17))),
        (IMAGE, dict(image=TENSOR)),
        (IMAGE, dict(timesteps=[900, 500, 30], strength=0.7)),
        (IMAGE, dict(prompt=["a", "b"], image=[pil(16, 16), pil(16, 16, seed=1)], num_images_per_prompt=2)),
        (IMAGE_LARGE, dict(original_image=pil(40, 33))),
        (IMAGE_LARGE, dict(image=TENSOR, noise_level=0, strength=0.5)),
        (INPAINT, dict(strength=1.0)),
        (INPAINT, dict(image=pil(33, 40), mask_image=rough_mask(33, 40))),
        (INPAINT, dict(mask_image=mask(box=(0, 0, 0, 0)))),
        (INPAINT, dict(mask_image=[np.array(mask()).astype("float32") / 255])),
        (INPAINT, dict(prompt=["a", "b"], image=[pil(16, 16)] * 2, mask_image=mask(), num_images_per_prompt=2)),
        (INPAINT_LARGE, dict(strength=0.5, noise_level=100)),
        (INPAINT_LARGE, dict(original_image=pil(33, 40), mask_image=rough_mask(33, 40))),
    ],
    ids=lambda o: o if isinstance(o, str) else ",".join(o),
)  # fmt: skip
def test_so_do_those_of_each_pipeline(stages, name, options):
    assert_same(stages(name), **{"prompt": "a cat", **CALLS[name], **options})


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_prompts_are_encoded_as_in_the_reference(stages, guided, clean):
    texts = ["A Cat <b>x</b>", "two dogs, http://a.com  ", "a" * 40]
    ours, theirs = (
        pipe.encode_prompt(texts, guided, 2, None, ["Ugly", "b", ""], clean_caption=clean) for pipe in stages()
    )
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    assert (ours[1] is None) == (theirs[1] is None) == (not guided)
    if guided:
        torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=1e-5)


def test_long_prompts_are_read_whole_or_cut_as_in_the_reference(stages):
    ours, theirs = stages()
    text = "a cat " * 20
    whole, _ = ours.encode_prompt(text)
    assert whole.shape[1] == 2 * 77
    cut, _ = ours.encode_prompt(text, long_prompts="cut")
    torch.testing.assert_close(cut, theirs.encode_prompt(text)[0], atol=1e-5, rtol=1e-5)


def test_a_pipeline_without_its_network_encodes_and_one_without_its_encoder_paints(stages):
    ours, _ = stages()
    reader = langevin.IFPipeline(**{**ours.components, "unet": None})
    told, untold = reader.encode_prompt("A cat", clean_caption=True)
    painter = langevin.IFPipeline(**{**ours.components, "tokenizer": None, "text_encoder": None})
    painter.set_progress_bar_config(disable=True)
    made = images(painter, prompt_embeds=told, negative_prompt_embeds=untold, **CALLS[TEXT])
    np.testing.assert_allclose(made, images(ours, "A cat", **CALLS[TEXT]), atol=5e-5)  # read in other batches
    with pytest.raises(ValueError, match="there is no tokenizer to read texts with; give prompt_embeds"):
        painter("a cat", **CALLS[TEXT])


@pytest.mark.parametrize("name", CALLS)
def test_outputs_have_the_reference_forms(stages, name):
    for output in ("pt", "np", "pil"):
        ours, theirs = (
            pipe(prompt="a", output_type=output, generator=generator(), **CALLS[name]) for pipe in stages(name)
        )
        assert type(ours).__name__ == type(theirs).__name__ == "IFPipelineOutput"
        assert type(ours.images) is type(theirs.images)
        if output == "pt":  # what the next stage takes
            torch.testing.assert_close(ours.images, theirs.images, atol=2e-4, rtol=0)
            assert ours.images.min() < -0.1
    assert ours.images[0].size == theirs.images[0].size
    tuples = [pipe(prompt="a", output_type="np", return_dict=False, **CALLS[name]) for pipe in stages(name)]
    assert len(tuples[0]) == len(tuples[1]) == 3
    assert tuples[0][1:] == tuples[1][1:] == (None, None)
    raw = stages(name)[0](prompt="a", output_type="latent", generator=generator(), **CALLS[name]).images
    torch.testing.assert_close(raw, ours_again(stages, name))


def ours_again(stages, name):
    return stages(name)[0](prompt="a", output_type="pt", generator=generator(), **CALLS[name]).images


@pytest.mark.parametrize("name", [TEXT, INPAINT_LARGE])
def test_the_older_callback(stages, name):
    logs: list[list] = [[], []]
    for pipe, log in zip(stages(name), logs, strict=True):
        pipe(prompt="a", callback_steps=2, generator=generator(), **CALLS[name],
             callback=lambda i, t, x, log=log: log.append((i, int(t), x.clone())))  # fmt: skip
    assert [one[:2] for one in logs[0]] == [one[:2] for one in logs[1]]
    for ours, theirs in zip(*logs, strict=True):
        torch.testing.assert_close(ours[2], theirs[2], atol=2e-4, rtol=0)


def evenly(pipe, name):
    """How far the judges must lean so that they are of two minds about pictures of this call."""
    checker, extractor = pipe.safety_checker, pipe.feature_extractor
    pipe.safety_checker = None
    made = pipe(prompt="a", num_images_per_prompt=5, generator=generator(), **CALLS[name]).images
    pipe.safety_checker = checker
    with torch.no_grad():
        vectors = checker.vision_model(**extractor(made, return_tensors="pt")).image_embeds
        return [0.5 - float(head(vectors).median()) + 1e-3 for head in (checker.p_head, checker.w_head)]


@pytest.mark.parametrize("name", [TEXT, IMAGE_LARGE])
def test_unsafe_and_marked_pictures_are_told_and_blacked_out_as_in_the_reference(stages, name):
    lean = evenly(stages(name, **judges())[0], name)
    call = dict(prompt="a", num_images_per_prompt=5, **CALLS[name])
    both = stages(name, **judges(*lean))
    ours, theirs = (pipe(output_type="np", generator=generator(), **call) for pipe in both)
    assert ours.nsfw_detected == theirs.nsfw_detected
    assert ours.watermark_detected == theirs.watermark_detected
    assert {*ours.nsfw_detected} == {*ours.watermark_detected} == {False, True}
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-4)
    either = [unsafe or marked for unsafe, marked in zip(ours.nsfw_detected, ours.watermark_detected, strict=True)]
    assert [image.max() == 0 for image in ours.images] == either
    shown = both[0](output_type="np", generator=generator(), safety_action="flag", **call)
    assert shown.nsfw_detected == ours.nsfw_detected
    assert all(image.max() > 0 for image in shown.images)


def test_a_safety_checker_needs_a_feature_extractor(stages):
    with pytest.raises(ValueError, match="a safety_checker needs a feature_extractor"):
        stages(**{**judges(), "feature_extractor": (None, None)})


def test_pil_pictures_are_marked_as_in_the_reference(stages):
    both = stages(LARGE, **markers())
    call = dict(height=64, width=48, **CALLS[LARGE])
    ours, theirs = (pipe("a", generator=generator(), **call).images[0] for pipe in both)
    apart = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))
    assert apart.max() <= 1
    plain = stages(LARGE)[0]("a", generator=generator(), **call).images[0]
    changed = (np.asarray(plain) != np.asarray(ours)).any(-1)
    assert changed.any()
    assert not changed[:-8].any()
    assert ours.settings["noise_level"] == 250
    assert_same(both, "a", **call)  # others are not


@pytest.mark.parametrize("size", [(1024, 1024), (64, 64), (96, 64), (300, 517), (40, 40), (1, 1)])
@pytest.mark.parametrize("side", [None, 32, 64, 256])
def test_the_mark_is_where_the_reference_lays_it(size, side):
    ours, theirs = markers()["watermarker"]
    plain = Image.fromarray((np.random.RandomState(0).rand(*size[::-1], 3) * 255).astype("uint8"))
    mine = ours.apply_watermark([plain.copy(), plain.copy()], side)
    try:
        wanted = theirs.apply_watermark([plain.copy(), plain.copy()], side)
    except ValueError:  # a mark of less than a pixel
        wanted = [plain, plain]
    assert [one.tobytes() for one in mine] == [one.tobytes() for one in wanted]


def test_published_settings_of_the_noising_scheduler_are_its_own(stages):
    noising = {**DDPM, "beta_schedule": "linear"}
    assert_same(stages(LARGE, noising=noising), "a", **CALLS[LARGE])
    made = [images(stages(LARGE, noising=n)[0], "a", **CALLS[LARGE]) for n in (noising, DDPM)]
    assert abs(made[0] - made[1]).max() > 1e-3


@pytest.mark.parametrize("unet", UNETS)
def test_networks_have_the_references_weights(stages, unet):
    for large in (False, True):
        ours, theirs = stages.unets(unet, large)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
