"""A picture of a batch is what it is alone, whatever its neighbours are, and can be made again alone."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import langevin
from langevin import Control, Guider
from langevin.cli.app import app

LONG = "a very long text " * 60
STEPS = dict(num_inference_steps=3, guidance_scale=3.0)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return quiet(langevin.StableDiffusionPipeline.from_pretrained("langevin/shapes"))


@pytest.fixture(scope="module")
def outline():
    return langevin.ControlNetModel.from_pretrained("langevin/shapes-outline")


def pixels(pipe, *args, **kwargs):
    return pipe(*args, output_type="pt", **{**STEPS, **kwargs}).images


def ring(box, size=(64, 64)):
    picture = Image.new("RGB", size)
    ImageDraw.Draw(picture).ellipse(box, outline="white")
    return picture


@pytest.mark.parametrize("order", [1, -1])
def test_a_long_prompt_does_not_change_its_neighbours(pipe, order):
    prompts = ["a red circle", LONG, "a blue star"][::order]
    together = pixels(pipe, prompts, seed=[1, 2, 3])
    for k, prompt in enumerate(prompts):  # but for rounding, of which two of one length have some
        torch.testing.assert_close(together[k], pixels(pipe, prompt, seed=[1 + k])[0], atol=5e-4, rtol=0)


def test_nor_does_a_long_negative_prompt_or_one_that_changes(pipe, outline):
    control = [Control(outline, [ring((4, 4, 30, 30)), ring((20, 20, 60, 60))], scale=0.8)]
    call = dict(negative_prompt=["grey", LONG], seed=[1, 2], control=control)
    together = pixels(pipe, ["a [red:blue:0.5] circle", "a star"], **call)
    alone = dict(call, control=[Control(outline, control[0].image[0], scale=0.8)], seed=1, negative_prompt="grey")
    torch.testing.assert_close(together[:1], pixels(pipe, "a [red:blue:0.5] circle", **alone), atol=2e-5, rtol=0)


def test_prompts_of_one_length_go_through_the_network_together(pipe):
    rows = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    pixels(pipe, ["a red circle", "a blue star"], seed=1, num_inference_steps=1)
    pixels(pipe, ["a red circle", LONG, "a blue star"], seed=1, num_inference_steps=1)
    hook.remove()
    assert rows == [4, 4, 2]


# -- made again alone ------------------------------------------------------------------------------------------------


def again(path):
    """``langevin again``: whether the pixels are the same."""
    result = CliRunner().invoke(app, ["again", str(path), "--force"])
    return result.exit_code == 0 and ("identical" in result.output or "but for rounding" in result.output)


def test_each_picture_of_a_batch_carries_what_it_was_made_from(pipe, outline, tmp_path):
    starts = []
    for k, colour in enumerate(("red", "green")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"start{k}.png")
        starts.append(Image.open(tmp_path / f"start{k}.png"))
    masks = [Image.new("L", (64, 64)) for _ in range(2)]
    for k, mask in enumerate(masks):
        mask.paste(255, (10, 10, 40 + 10 * k, 40))
    control = [Control(outline, [ring((4, 4, 30, 30)), ring((20, 20, 60, 60))])]
    paint = quiet(langevin.StableDiffusionInpaintPipeline.from_pipe(pipe))
    call = dict(image=starts, mask_image=masks, control=control, seed=5, **STEPS)
    for k, made in enumerate(paint(["a red circle", "a blue star"], **call).images):
        assert "not_recorded" not in made.settings
        made.save(tmp_path / f"made{k}.png")
        assert again(tmp_path / f"made{k}.png")


def test_what_cannot_be_recorded_is_named():
    model = quiet(langevin.StableDiffusionPipeline.from_pretrained("langevin/shapes"))
    assert "not_recorded" not in model("a star", num_inference_steps=1, seed=1).images[0].settings
    with torch.no_grad():
        next(model.unet.parameters()).mul_(1.001)
    assert any(
        "unet" in lost for lost in model("a star", num_inference_steps=1, seed=1).images[0].settings["not_recorded"]
    )
    model.enable_freeu(1.1, 0.9, 1.2, 1.1)
    assert model("a star", num_inference_steps=1, seed=1).images[0].settings["freeu"]["b1"] == 1.2


# -- what is cropped together stays together -------------------------------------------------------------------------


def test_a_control_picture_is_cropped_with_the_picture(pipe, outline):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (20, 20, 50, 50))
    paint = quiet(langevin.StableDiffusionInpaintPipeline.from_pipe(pipe))
    seen = []

    class Look(Guider):
        def prepare(self, setup):
            seen.append(next(g for g in setup.guiders if isinstance(g, Control)).shown)

    call = dict(image=Image.new("RGB", (64, 64), "grey"), mask_image=mask, padding_mask_crop=4, seed=1, **STEPS)
    paint("a red circle", control=[Control(outline, ring((24, 24, 46, 46)))], guiders=[Look()], **call)
    white = (seen[0][0].mean(0) > 0.5).nonzero()
    # the box is 16..54, so a ring from 24 to 46 of it lies from (24 - 16) / 38 to (46 - 16) / 38 of the crop
    wanted = [round((edge - 16) / 38 * 64) for edge in (24, 46)]
    assert abs(int(white.amin()) - wanted[0]) <= 2
    assert abs(int(white.amax()) - wanted[1]) <= 2
