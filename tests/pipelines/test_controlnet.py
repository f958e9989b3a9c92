"""Text to image under control pictures against the reference."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch

import langevin
from langevin import Control, DiffusionPipeline, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from langevin.checkpoints import model_index
from langevin.checkpoints.errors import CheckpointError
from tests.helpers import in_threads
from tests.pipelines.control_checks import controlnets, several
from tests.pipelines.family_checks import SCHEDULERS, assert_same, generator, images, picture, pil, steps

NAME = "StableDiffusionControlNetPipeline"
STEPS = dict(num_inference_steps=5)


@pytest.fixture(scope="module")
def make(twins, tmp_path_factory):
    """``make(count=1, unet=…, scheduler=…)``: both pipelines, with that many control networks."""

    def made(count=1, unet="sd1", scheduler="ddim", **options):
        of = "sd1" if unet == "distilled" else unet
        pairs = [controlnets(twins, tmp_path_factory, unet=of, seed=k, **options) for k in range(count)]
        return twins(NAME, unet=unet, scheduler=scheduler, controlnet=pairs[0] if count == 1 else several(pairs))

    return made


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("unet", ["sd1", "sd2"])
def test_pictures_are_the_reference_ones(make, unet, scheduler):
    assert_same(make(unet=unet, scheduler=scheduler), "a cat", image=picture(count=1), **steps(scheduler, 5))


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=1.0, guess_mode=True),
        dict(guess_mode=True),
        dict(negative_prompt="ugly", num_images_per_prompt=2),
        dict(controlnet_conditioning_scale=0.4),
        dict(controlnet_conditioning_scale=0.0),
        dict(control_guidance_start=0.3, control_guidance_end=0.8),
        dict(control_guidance_start=[0.2], control_guidance_end=0.6),
        dict(eta=0.8),
        dict(clip_skip=1),
        dict(height=24, width=40),
        dict(width=24),
    ],
    ids=lambda o: ",".join(map(str, o.items())),
)
def test_options_give_the_reference_numbers(make, options):
    assert_same(make(), "a cat", image=pil(), **STEPS, **options)


@pytest.mark.parametrize("scheduler", ["pndm", "heun"])
def test_start_and_end_count_network_calls_as_the_reference_does(make, scheduler):
    call = dict(image=picture(count=1), control_guidance_start=0.25, control_guidance_end=0.75, num_inference_steps=4)
    assert_same(make(scheduler=scheduler), "a cat", **call)


def test_kinds_of_pictures(make):
    both = make()
    assert_same(both, "a cat", image=pil(37, 26), **STEPS)  # rounded down to what the model takes
    assert_same(both, "a cat", image=pil().convert("L"), **STEPS)
    assert_same(both, "a cat", image=picture().permute(1, 2, 0)[None].numpy(), **STEPS)
    assert_same(both, "a cat", image=picture(24, 16)[None], **STEPS)
    assert_same(both, ["a cat", "a dog"], image=pil(), num_images_per_prompt=2, **STEPS)
    assert_same(both, ["a cat", "a dog"], image=[pil(), pil(seed=1)], num_images_per_prompt=2, **STEPS)
    assert_same(both, ["a cat", "a dog"], image=picture(count=2), **STEPS)


def test_given_embeddings_latents_and_timesteps(make):
    embeds, negative = torch.randn(2, 1, 16, 24, generator=generator(4))
    latents = torch.randn(1, 4, 8, 8, generator=generator(3))
    both = make(scheduler="ddpm")
    given = dict(prompt_embeds=embeds, negative_prompt_embeds=negative, latents=latents)
    assert_same(both, image=pil(), timesteps=[900, 500, 100], **given)
    assert_same(make(scheduler="euler"), "a cat", image=pil(), sigmas=[10.0, 3.0, 1.0, 0.2, 0.0])


def test_a_generator_for_each_picture(make):
    call = dict(image=pil(), num_images_per_prompt=2, eta=1.0, **STEPS)
    assert_same(make(), "a cat", generator=lambda: [generator(1), generator(2)], **call)


def test_a_guidance_distilled_network(make):
    assert_same(make(unet="distilled"), "a cat", image=pil(), guidance_scale=4.0, **STEPS)


def test_a_network_that_pools_its_maps_tells_the_positive_branch_alone(make):
    both = make(global_pool_conditions=True)
    assert_same(both, "a cat", image=pil(), **STEPS)
    called = dict(image=pil(), **STEPS)
    np.testing.assert_array_equal(images(both[0], "a", **called), images(both[0], "a", guess_mode=True, **called))


@pytest.mark.parametrize(
    "options",
    [
        dict(image=[pil(), pil(seed=1)]),
        dict(
            image=[picture(count=1), picture(count=1, seed=1)],
            controlnet_conditioning_scale=[0.3, 0.9],
            guess_mode=True,
        ),
        dict(image=[pil(), pil(seed=1)], control_guidance_start=[0.0, 0.3], control_guidance_end=[0.5, 1.0]),
        dict(image=[pil(), pil(seed=1)], control_guidance_end=[0.5, 1.0], controlnet_conditioning_scale=0.5),
        dict(image=[[pil(), pil(seed=1)], [pil(seed=2), pil(seed=3)]], prompt=["a", "b"], num_images_per_prompt=2),
    ],
    ids=lambda o: ",".join(o),
)
def test_several_control_networks(make, options):
    assert_same(make(2), **{"prompt": "a cat", **STEPS, **options})


@pytest.mark.parametrize("options", [{}, dict(guess_mode=True), dict(guidance_scale=1.0)], ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_callbacks_see_and_replace_the_pictures_as_in_the_reference(make, count, options):
    seen: list[list] = [[], []]
    made = []
    for pipe, log in zip(make(count), seen, strict=True):

        def look(pipe, i, t, tensors, log=log):
            shown = tensors["image"]
            log.append([one.clone() for one in shown] if count > 1 else [shown.clone()])
            if i == 1:
                other = [1 - one for one in shown] if count > 1 else 1 - shown
                return {"image": other, "latents": tensors["latents"]}
            return {}

        call = dict(callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents", "image"])
        image = [pil(seed=k) for k in range(count)] if count > 1 else pil()
        made.append(images(pipe, "a cat", image=image, num_images_per_prompt=2, **call, **options, **STEPS))
    np.testing.assert_allclose(*made, atol=1e-4)
    for ours, theirs in zip(*seen, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_the_older_callback(make):
    logs: list[list] = [[], []]
    for pipe, log in zip(make(), logs, strict=True):
        images(
            pipe, "a", image=pil(), callback=lambda i, t, x, log=log: log.append((i, int(t))), callback_steps=2, **STEPS
        )
    assert logs[0] == logs[1]


@pytest.mark.parametrize("count", [1, 2])
def test_folders_load_on_both_sides(make, tmp_path, count):
    import diffusers

    call = dict(image=[pil(), pil(seed=1)][:count] if count > 1 else pil(), **STEPS)
    ours, theirs = make(count)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    index = [json.loads((tmp_path / side / "model_index.json").read_text()) for side in ("ours", "theirs")]
    assert index[0]["controlnet"] == index[1]["controlnet"]
    wanted = images(theirs, "a cat", **call)
    again = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(again) is StableDiffusionControlNetPipeline
    there = diffusers.StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "ours")
    there.text_encoder.__dict__.setdefault("text_model", there.text_encoder)
    for pipe in (again, there):
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(images(pipe, "a cat", **call), wanted, atol=1e-4)


def test_several_networks_are_saved_in_the_form_asked_for_and_fetched_from_the_hub(make, tmp_path):
    ours, _ = make(2)
    ours.save_pretrained(tmp_path / "saved", variant="half")
    files = [str(f.relative_to(tmp_path / "saved")) for f in (tmp_path / "saved").rglob("*") if f.is_file()]
    nets = {f"controlnet{k}/diffusion_pytorch_model.half.safetensors" for k in ("", "_1")}
    assert nets <= set(files)
    fetched = model_index.files_needed(None, set(), "half", None, files, lambda name: tmp_path / "saved" / name)
    assert nets <= set(fetched)


def test_fewer_networks_do_not_leave_an_older_one_behind_unsaid(make, tmp_path):
    make(2)[0].save_pretrained(tmp_path / "saved")
    two = make(2)[0].controlnet
    three = type(two)([*two.nets, two.nets[0]])
    three.save_pretrained(tmp_path / "saved/controlnet")
    before = (tmp_path / "saved/model_index.json").stat().st_mtime_ns
    with pytest.raises(CheckpointError, match="controlnet_2 is there already"):
        make(2)[0].save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/model_index.json").stat().st_mtime_ns == before


def test_a_control_network_is_added_to_a_checkpoint_without_one(make, tiny_sd_folder):
    net = make()[0].controlnet
    pipe = StableDiffusionControlNetPipeline.from_pretrained(tiny_sd_folder, controlnet=[net, net])
    assert type(pipe.controlnet) is langevin.MultiControlNetModel
    shared = StableDiffusionControlNetPipeline.from_pipe(
        StableDiffusionPipeline.from_pretrained(tiny_sd_folder), controlnet=net
    )
    assert shared.controlnet is net


def test_it_is_text_to_image_with_a_control(make, twins):
    ours, _ = make(2)
    text_to_image, _ = twins()
    nets = ours.controlnet.nets
    call = dict(**STEPS, height=16, width=16)
    made = images(
        ours,
        "a cat",
        image=[pil(), pil(seed=1)],
        controlnet_conditioning_scale=[0.3, 1.0],
        control_guidance_end=[1.0, 0.6],
        **call,
    )
    alike = images(
        text_to_image, "a cat", control=[Control(nets[0], pil(), 0.3), Control(nets[1], pil(seed=1), stop=0.6)], **call
    )
    np.testing.assert_array_equal(made, alike)
    split = images(
        text_to_image,
        "a cat",
        control=[Control(nets[0], pil(), 0.3)],
        guiders=[Control(nets[1], pil(seed=1), stop=0.6)],
        **call,
    )
    np.testing.assert_array_equal(made, split)


def test_more_control_on_top_of_the_pipelines_own(make):
    ours, _ = make()
    two, _ = make(2)
    more = [Control(two.controlnet.nets[1], pil(seed=1))]
    both = images(two, "a cat", image=[pil(), pil(seed=1)], **STEPS)
    np.testing.assert_array_equal(images(ours, "a cat", image=pil(), control=more, **STEPS), both)


def test_pictures_carry_the_settings_that_made_them(make):
    call = dict(image=picture(count=1), controlnet_conditioning_scale=0.4, seed=3, **STEPS)
    settings = make()[0]("a cat", **call).images[0].settings
    assert (settings["controlnet_conditioning_scale"], settings["height"], settings["seed"]) == (0.4, 16, 3)
    assert settings["pipeline"] == NAME
    assert "image" in settings["not_recorded"]


def test_eight_threads_with_a_picture_each(make):
    pipe, _ = make()

    def one(k):
        return pipe("a cat", image=pil(seed=k), num_inference_steps=2, seed=1, output_type="np").images

    serial = [one(k) for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(one), strict=True))
    assert abs(serial[0] - serial[1]).max() > 0.01


@pytest.mark.parametrize(
    ("count", "options", "says"),
    [
        (1, dict(image=None), "image is missing"),
        (1, dict(image="cat.png"), "PIL images"),
        (1, dict(image=[pil(), pil(), pil()]), "3 control images for 1 prompts"),
        (1, dict(controlnet_conditioning_scale=[0.1, 0.2]), "controlnet_conditioning_scale"),
        (1, dict(controlnet_conditioning_scale="much"), "'much'"),
        (1, dict(control_guidance_start=0.5, control_guidance_end=0.5), "start < stop"),
        (1, dict(control_guidance_end=1.5), "control from 0.0 to 1.5"),
        (2, dict(), "2 control networks"),
        (2, dict(image=[pil()]), "1 pictures; .* 2 control networks"),
        (2, dict(image=[[pil()], [pil()]]), "each needs 2 pictures"),
        (2, dict(image=[pil(), pil()], control_guidance_start=[0.1]), "control_guidance_start"),
    ],
)
def test_bad_input_gets_one_clear_line(make, count, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        make(count)[0]("a cat", **{**STEPS, "image": pil(), **options})
    assert "\n" not in str(caught.value)


def test_names_and_defaults_are_the_reference_ones():
    import diffusers

    ours, theirs = (
        inspect.signature(library.StableDiffusionControlNetPipeline.__call__).parameters
        for library in (langevin, diffusers)
    )
    missing = set(theirs) - set(ours) - {"kwargs", "ip_adapter_image", "ip_adapter_image_embeds"}
    assert not missing
    for name in ("controlnet_conditioning_scale", "guess_mode", "control_guidance_start", "control_guidance_end"):
        assert ours[name].default == theirs[name].default
    assert ours["num_inference_steps"].default == theirs["num_inference_steps"].default
