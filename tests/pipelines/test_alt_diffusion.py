"""AltDiffusion against the reference: Stable Diffusion that is told what XLM-R reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import langevin
from langevin import AltDiffusionImg2ImgPipeline, AltDiffusionPipeline, DiffusionPipeline, StableDiffusionPipeline
from tests.pipelines.family_checks import assert_made_again, assert_same, generator, images, picture, pil
from tests.prompts.readers_parts import random, xlm_r_sizes, xlm_r_tokenizer

TEXT, IMAGE = "AltDiffusionPipeline", "AltDiffusionImg2ImgPipeline"
STEPS = dict(num_inference_steps=4)
# how the encoder is made: transformation of the last layer, of the one before it, with padding hidden
ENCODERS = {
    "last": {},
    "before": dict(has_pre_transformation=True),
    "masked": dict(has_pre_transformation=True, use_attention_mask=True),
}


@pytest.fixture(scope="module")
def make(twins):
    from diffusers.pipelines.deprecated.alt_diffusion import modeling_roberta_series as theirs

    encoders = {}
    for name, config in ENCODERS.items():
        sizes = xlm_r_sizes(project_dim=24, **config)
        their = random(theirs.RobertaSeriesModelWithTransformation(theirs.RobertaSeriesConfig(**sizes)))
        our = langevin.RobertaSeriesModelWithTransformation(langevin.RobertaSeriesConfig(**sizes)).eval()
        our.load_state_dict(their.state_dict())
        encoders[name] = our, their
    tokenizer = xlm_r_tokenizer()

    def make(name=TEXT, encoder="masked", **more):
        return twins(name, text_encoder=encoders[encoder], tokenizer=(tokenizer, tokenizer), **more)

    return make


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    ("unet", "scheduler"), [("sd1", "pndm"), ("sd1", "ddim old config"), ("sd2", "euler karras v")]
)
def test_pictures_are_the_reference_ones(make, encoder, unet, scheduler):
    call = dict(prompt=["a cat", "eine Katze, ééé"], negative_prompt=["dog", "x"], **STEPS)
    assert_same(make(encoder=encoder, unet=unet, scheduler=scheduler), **call)
    call = dict(image=picture(), strength=0.6, num_inference_steps=5)
    assert_same(make(IMAGE, encoder=encoder, unet=unet, scheduler=scheduler), "a cat", **call)


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(negative_prompt="ugly", num_images_per_prompt=2, eta=0.7),
        dict(prompt=["a", "b"], generator=lambda: [generator(1), generator(2)], negative_prompt=["c", "d"]),
        dict(prompt=None, prompt_embeds=torch.ones(1, 24, 24), negative_prompt_embeds=torch.zeros(1, 24, 24)),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(make, options):
    assert_same(make(scheduler="ddim"), **{"prompt": "a cat", "height": 24, "width": 16, **STEPS, **options})
    image = [pil(), pil(seed=1)] if "generator" in options else pil(37, 26)  # the reference wants as many generators
    call = {"prompt": "a cat", "image": image, "strength": 0.5, **STEPS, **options}
    assert_same(make(IMAGE, scheduler="ddim"), **call)


def test_rescaled_guidance_and_own_timesteps(make):
    assert_same(make(scheduler="ddpm"), "a cat", guidance_rescale=0.7, timesteps=[900, 500, 100])


def test_layers_left_out_are_layers_left_out(make):
    """The reference raises here: it looks for a part that only CLIP has."""
    pipe = make(encoder="last")[0]
    shorter = langevin.RobertaSeriesModelWithTransformation(pipe.text_encoder.config)
    shorter.load_state_dict(pipe.text_encoder.state_dict())
    del shorter.roberta.encoder.layer[-1]
    other = AltDiffusionPipeline.from_pipe(pipe, text_encoder=shorter.eval())
    other.set_progress_bar_config(disable=True)
    call = dict(clip_skip_negative=True, **STEPS)
    skipped = images(pipe, "a cat", clip_skip=1, **call)
    assert abs(skipped - images(pipe, "a cat", **STEPS)).max() > 0.01
    np.testing.assert_allclose(skipped, images(other, "a cat", **STEPS), atol=1e-5)


def test_weights_and_long_prompts_work_here_too(make):
    pipe = make()[0]
    plain, heavy, light = (images(pipe, text, **STEPS) for text in ("a cat", "a (cat)1.5", "a (cat)1.0"))
    np.testing.assert_array_equal(plain, light)
    assert abs(heavy - plain).max() > 1e-3
    long = "cat dog " * 12
    assert abs(images(pipe, long, **STEPS) - images(pipe, long, long_prompts="cut", **STEPS)).max() > 1e-3


def test_folders_load_on_both_sides(make, tmp_path):
    """The reference writes "diffusers" for the encoder's library and finds nothing there, nor under the name that the
    public checkpoints and we have, "alt_diffusion": it reads the parts one by one. Both load here.
    """
    ours, theirs = make()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for side, library in (("ours", "alt_diffusion"), ("theirs", "diffusers")):
        index = json.loads((tmp_path / side / "model_index.json").read_text())
        assert index["text_encoder"] == [library, "RobertaSeriesModelWithTransformation"]
        with pytest.raises((ValueError, AttributeError)):
            type(theirs).from_pretrained(tmp_path / side)
        read = DiffusionPipeline.from_pretrained(tmp_path / side)
        assert type(read) is AltDiffusionPipeline
        encoder = type(theirs.text_encoder).from_pretrained(tmp_path / side / "text_encoder")
        back = type(theirs)(**{**theirs.components, "text_encoder": encoder}, requires_safety_checker=False)
        for pipe in (read, back):
            pipe.set_progress_bar_config(disable=True)
        assert_same((read, back), "a cat", **STEPS)


def test_callbacks_see_what_they_see_in_the_reference(make):
    logs: list[list] = [[], []]
    for pipe, log in zip(make(IMAGE), logs, strict=True):

        def look(pipe, i, t, tensors, log=log):
            log.append((i, int(t), *(tensors[name].sum().item() for name in tensors)))
            return {"latents": tensors["latents"] * 0.9}

        names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
        call = dict(callback_on_step_end=look, callback_on_step_end_tensor_inputs=names, strength=0.8, **STEPS)
        log.append(images(pipe, "a cat", image=pil(), **call).tolist())
    assert len(logs[0]) == len(logs[1])
    for ours, theirs in zip(*logs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_picture_made_alone_is_the_same_and_carries_its_settings(make):
    pipe = make(IMAGE)[0]
    call = dict(image=pil(), strength=0.7, **STEPS)
    several = pipe(["a cat", "a dog"], seed=[3, 8], **call)
    assert type(several) is langevin.AltDiffusionPipelineOutput
    alone = pipe("a dog", seed=8, **call).images[0]
    assert np.array_equal(alone, several.images[1])
    settings = several.images[1].settings
    assert (settings["pipeline"], settings["prompt"], settings["seed"]) == (IMAGE, "a dog", 8)


def test_pictures_are_made_again(make, tmp_path):
    assert_made_again(make(IMAGE)[0], tmp_path, "a cat", image=pil(), strength=0.7, **STEPS)


def test_parts_are_shared_with_the_family(make):
    pipe = make()[0]
    other = AltDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert all(other.components[name] is part for name, part in pipe.components.items())
    assert StableDiffusionPipeline.from_pipe(other).unet is pipe.unet
