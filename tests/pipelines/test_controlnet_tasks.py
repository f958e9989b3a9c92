"""Image to image and inpainting with control networks, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin import Control, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from tests.pipelines.control_checks import controlnets, several
from tests.pipelines.family_checks import (
    assert_checkpoints_go_both_ways,
    assert_made_again,
    assert_same,
    generator,
    images,
    mask,
    pil,
    steps,
)

IMG2IMG, INPAINT = "StableDiffusionControlNetImg2ImgPipeline", "StableDiffusionControlNetInpaintPipeline"
STEPS = dict(num_inference_steps=4)
TASKS = {IMG2IMG: dict(image=pil()), INPAINT: dict(image=pil(), mask_image=mask())}
tasks = pytest.mark.parametrize("name", TASKS)


@pytest.fixture
def make(twins, tmp_path_factory):
    def made(name, count=1, unet="sd1", scheduler="ddim"):
        of = "sd1" if unet == "inpaint" else unet
        pairs = [controlnets(twins, tmp_path_factory, unet=of, seed=k) for k in range(count)]
        return twins(name, unet=unet, scheduler=scheduler, controlnet=pairs[0] if count == 1 else several(pairs))

    return made


def call(name, **options):
    return {**TASKS[name], "control_image": pil(seed=2), "strength": 0.7, **STEPS, **options}


@tasks
@pytest.mark.parametrize(
    ("unet", "scheduler"),
    [("sd1", "pndm"), ("sd1", "ddim old config"), ("sd1", "euler a"), ("sd2", "euler karras v"), ("sd2", "unipc")],
)
def test_pictures_are_the_reference_ones(make, name, unet, scheduler):
    assert_same(make(name, unet=unet, scheduler=scheduler), "a cat", **call(name, **steps(scheduler, 5)))


@pytest.mark.parametrize("options", [{}, dict(strength=1.0), dict(strength=1.0, eta=0.5)], ids=str)
def test_a_network_made_for_inpainting(make, options):
    assert_same(make(INPAINT, unet="inpaint"), "a cat", **call(INPAINT, **options))


@tasks
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(strength=1.0, eta=0.8),
        dict(strength=0.3),
        dict(guidance_scale=1.0, controlnet_conditioning_scale=1.3),
        dict(guess_mode=True, negative_prompt="ugly", num_images_per_prompt=2, eta=0.4),
        dict(control_guidance_start=0.3, control_guidance_end=0.7, num_inference_steps=7),
        dict(prompt=["a", "b"], generator=lambda: [generator(1), generator(2)], image=[pil(), pil(seed=1)]),
        dict(height=24, width=8, clip_skip=1),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(make, name, options):
    assert_same(make(name), **{"prompt": "a cat", **call(name, **options)})


def test_given_latents(make):
    latents = torch.randn(1, 4, 8, 8, generator=generator(3))
    assert_same(make(INPAINT), "a cat", **call(INPAINT, latents=latents, strength=1.0))
    assert_same(make(INPAINT), "a cat", **call(INPAINT, latents=latents, eta=0.5))


def test_latents_are_the_noise_that_a_picture_is_noised_with(make):
    """The reference takes them for where the run begins, however far on it begins; here they are noise, as in image to
    image without control, and noise that is drawn is the same as noise that is given.
    """
    pipe = make(IMG2IMG)[0]
    _, noise = torch.randn(2, 1, 4, 8, 8, generator=generator(0)).split(1)
    given = images(pipe, "a cat", **call(IMG2IMG, latents=noise[0]))
    drawn = images(pipe, "a cat", **call(IMG2IMG))
    np.testing.assert_allclose(given, drawn, atol=1e-5)


@pytest.mark.parametrize("options", [{}, dict(height=24, width=16)], ids=str)
def test_a_part_of_the_picture_is_made_anew(make, options):
    made = []
    pictures = dict(image=pil(24, 16), mask_image=mask(24, 16), control_image=pil(24, 16, seed=2))
    for pipe in make(INPAINT):
        out = pipe("a cat", **call(INPAINT, padding_mask_crop=2, generator=generator(), **pictures, **options))
        made.append(np.asarray(out.images[0], dtype=float) / 255)
    np.testing.assert_allclose(*made, atol=1.01 / 255)


@tasks
def test_several_control_networks(make, name):
    pictures = [pil(seed=2), pil(seed=3)]
    numbers = dict(controlnet_conditioning_scale=[0.3, 0.9], control_guidance_end=[0.5, 1.0])
    assert_same(make(name, 2), "a cat", **call(name, control_image=pictures, **numbers))


@tasks
def test_callbacks_see_and_replace_what_they_do_in_the_reference(make, name):
    names = ["latents", "control_image", *(["mask", "masked_image_latents"] if name == INPAINT else [])]
    seen: list[list] = [[], []]
    made = []
    for pipe, log in zip(make(name), seen, strict=True):

        def look(pipe, i, t, tensors, log=log):
            log.append((int(t), [tensors[k].clone() for k in names]))
            return {"control_image": 1 - tensors["control_image"], "latents": tensors["latents"]} if i == 1 else {}

        watch = dict(callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
        made.append(images(pipe, "a cat", **call(name, **watch)))
    np.testing.assert_allclose(*made, atol=1e-4)
    for (t, ours), (other, theirs) in zip(*seen, strict=True):
        assert t == other
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@tasks
def test_the_older_callback(make, name):
    logs: list[list] = [[], []]
    for pipe, log in zip(make(name), logs, strict=True):
        images(pipe, "a", callback=lambda i, t, x, log=log: log.append((i, int(t))), callback_steps=2, **call(name))
    assert logs[0] == logs[1]


@tasks
def test_folders_load_on_both_sides(make, name, tmp_path):
    assert_checkpoints_go_both_ways(make(name), tmp_path, **call(name))


@tasks
def test_it_is_the_plain_task_with_a_control(make, name):
    ours, _ = make(name)
    plain = {IMG2IMG: StableDiffusionImg2ImgPipeline, INPAINT: StableDiffusionInpaintPipeline}[name].from_pipe(ours)
    plain.set_progress_bar_config(disable=True)
    assert plain.unet is ours.unet
    options = call(name, height=16, width=16) if name == INPAINT else call(name)
    control = [Control(ours.controlnet, options.pop("control_image"), 0.6)]
    made = images(ours, "a cat", control_image=pil(seed=2), controlnet_conditioning_scale=0.6, **options)
    np.testing.assert_array_equal(made, images(plain, "a cat", control=control, **options))


@tasks
def test_a_picture_made_alone_is_the_same_and_carries_its_settings(make, name):
    pipe = make(name)[0]
    pictures = [pil(seed=2), pil(seed=3)]
    both = pipe(["a cat", "a dog"], seed=[3, 8], **call(name, control_image=pictures))
    alone = pipe("a dog", seed=8, **call(name, control_image=pictures[1])).images[0]
    assert abs(np.asarray(alone, dtype=float) - np.asarray(both.images[1], dtype=float)).max() <= 1  # rounding
    settings = [{**one.settings, "pipeline": name} for one in (alone, both.images[1])]
    assert settings[0] == settings[1]
    assert settings[0]["control_image"]
    assert settings[0]["image"]
    assert settings[0]["strength"] == 0.7


@tasks
def test_pictures_are_made_again(make, name, tmp_path):
    assert_made_again(make(name)[0], tmp_path, "a cat", **call(name, controlnet_conditioning_scale=0.7))


@tasks
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(control_image=None), "control_image is missing"),
        (dict(image=None), "image is missing"),
        (dict(control_guidance_end=1.5), "control from 0.0 to 1.5"),
        (dict(controlnet_conditioning_scale="much"), "'much'"),
    ],
)
def test_bad_input_gets_one_clear_line(make, name, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        make(name)[0]("a cat", **call(name, **options))
    assert "\n" not in str(caught.value)
    assert langevin.StableDiffusionControlNetPipeline.from_pipe(make(name)[0])


def test_what_is_masked_is_made_where_the_outline_says():
    from PIL import Image

    from langevin.zoo.evaluate_tasks import overlap
    from langevin.zoo.outlines import outlines
    from langevin.zoo.world import Scene, Thing, render

    shapes = ["circle", "square", "triangle", "star"]
    asked = [Scene((Thing(shape, "blue", "medium", 42, 30, 10),), "white") for shape in shapes]
    pixels = torch.from_numpy(render([Scene((), "white")])).permute(0, 3, 1, 2) / 255
    network = langevin.ControlNetModel.from_pretrained("langevin/shapes-outline")
    plain = langevin.DiffusionPipeline.from_pretrained("langevin/shapes")
    pipe = langevin.StableDiffusionControlNetInpaintPipeline.from_pipe(plain, controlnet=network)
    pipe.set_progress_bar_config(disable=True)
    covered = torch.zeros(1, 1, 64, 64)
    covered[..., 24:] = 1
    texts = [f"a blue {shape} on white" for shape in shapes]
    hints = [Image.fromarray(lines) for lines in outlines(asked)]

    def shared(scale):
        made = pipe(
            texts,
            image=pixels,
            mask_image=covered,
            control_image=hints,
            controlnet_conditioning_scale=scale,
            guidance_scale=2.0,
            num_inference_steps=20,
            seed=0,
        )
        assert all(np.asarray(image)[:, :16].min() > 200 for image in made.images)  # white, as it was
        return np.mean([overlap(np.asarray(image), scene) for image, scene in zip(made.images, asked, strict=True)])

    led = shared(1.0)
    assert led > 0.7
    assert led > shared(0.0) + 0.2
