"""``langevin edit``, ``inpaint`` and ``control`` on tiny checkpoints, and their pictures made again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import langevin
from langevin.cli.errors import BadUsage
from langevin.cli.tasks import parse_box, shaped
from langevin.media.settings import read_settings


@pytest.fixture
def circle(tmp_path):
    image = Image.new("RGB", (16, 16), "gray")
    ImageDraw.Draw(image).ellipse((4, 4, 12, 12), fill="red")
    image.save(tmp_path / "circle.png")
    return tmp_path / "circle.png"


@pytest.fixture(scope="module")
def net(tiny_sd_folder, tmp_path_factory):
    """A control network whose word counts: its last layers are not the zeros that they begin as."""
    torch.manual_seed(1)
    unet = langevin.UNet2DConditionModel.from_pretrained(tiny_sd_folder, subfolder="unet")
    made = langevin.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    for layer in (*made.controlnet_down_blocks, made.controlnet_mid_block, made.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.2)
    folder = tmp_path_factory.mktemp("net")
    made.save_pretrained(folder)
    return folder


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


SHORT = ("--steps", "4", "--seed", "3")


def test_edit_with_a_model_that_paints_from_prompts(run, tiny_sd_folder, circle):
    call = ("edit", circle, "a blue circle", "-m", tiny_sd_folder, *SHORT)
    run(*call, "--strength", "0.5", "-o", "half.png")
    run(*call, "--strength", "1", "-o", "whole.png")
    settings = read_settings("half.png")
    assert settings["pipeline"] == "StableDiffusionImg2ImgPipeline"
    assert settings["strength"] == 0.5
    assert settings["image"]["file"] == str(circle)
    assert abs(pixels("half.png") - pixels("whole.png")).max() > 0
    assert "takes no --image-guidance" in run(*call, "--image-guidance", "2", code=2).stderr


def test_again_takes_the_picture_it_was_made_from(run, tiny_sd_folder, circle):
    run("edit", circle, "a blue circle", "-m", tiny_sd_folder, *SHORT, "--strength", "0.5", "-o", "blue.png")
    assert "identical" in run("again", "blue.png", "--yes").stdout
    Image.open(circle).transpose(Image.Transpose.FLIP_TOP_BOTTOM).rotate(90).save(circle)
    Image.new("RGB", (16, 16), "white").save(circle)
    assert "has changed since" in run("again", "blue.png", "--yes", code=1).stderr
    circle.unlink()
    assert "is not there" in run("again", "blue.png", "--yes", code=1).stderr


def test_inpaint_keeps_every_pixel_outside_a_box(run, tiny_sd_folder, circle):
    call = ("inpaint", circle, "a star", "-m", tiny_sd_folder, *SHORT)
    run(*call, "--box", "0,0,8,16", "-o", "half.png")
    before, after = pixels(circle), pixels("half.png")
    np.testing.assert_array_equal(after[:, 8:], before[:, 8:])
    assert abs(after[:, :8] - before[:, :8]).max() > 0
    run(*call, "--box", "0,0,8,16", "--no-keep", "-o", "loose.png")
    assert abs(pixels("loose.png")[:, 8:] - before[:, 8:]).max() > 0


def test_inpaint_with_a_mask_from_a_file(run, tiny_sd_folder, circle):
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 16, 8))
    mask.save("mask.png")
    run("inpaint", circle, "a star", "--mask", "mask.png", "-m", tiny_sd_folder, *SHORT, "-o", "top.png")
    run("inpaint", circle, "a star", "--box", "0,0,16,8", "-m", tiny_sd_folder, *SHORT, "-o", "box.png")
    np.testing.assert_array_equal(pixels("top.png"), pixels("box.png"))
    assert "identical" in run("again", "top.png", "--yes").stdout
    assert "identical" in run("again", "box.png", "--yes").stdout, "the box is written into the picture"


def test_control_acts_and_can_be_made_again(run, tiny_sd_folder, net, circle):
    call = ("control", circle, "a star", "-m", tiny_sd_folder, "--net", net, "--size", "16", *SHORT)
    run(*call, "-o", "with.png")
    run(*call, "--scale", "0", "-o", "off.png")
    run("generate", "a star", "-m", tiny_sd_folder, "--size", "16", *SHORT, "-o", "without.png")
    np.testing.assert_array_equal(pixels("off.png"), pixels("without.png"))
    assert abs(pixels("with.png") - pixels("off.png")).max() > 0
    (described,) = read_settings("with.png")["control"]
    assert described["class"] == "Control"
    assert described["network"] == {"network": "ControlNetModel", "from": str(net)}
    assert "identical" in run("again", "with.png", "--yes").stdout


@pytest.mark.parametrize("size", [(17, 23), (15, 16), (31, 9)])
def test_inpaint_takes_pictures_of_odd_sizes(run, tiny_sd_folder, tmp_path, size):
    noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save("odd.png")
    run("inpaint", "odd.png", "a star", "--box", "2,2,9,8", "-m", tiny_sd_folder, *SHORT, "-o", "star.png")
    before, after = pixels("odd.png"), pixels("star.png")
    assert after.shape == before.shape
    apart = abs(after - before).max(axis=2)
    assert apart[2:8, 2:9].max() > 0
    apart[2:8, 2:9] = 0
    assert apart.max() == 0
    assert "identical" in run("again", "star.png", "--yes").stdout
    run("inpaint", "odd.png", "x", "--box", "2,2,9,8", "--crop", "1", "-m", tiny_sd_folder, *SHORT, "-o", "near.png")
    assert pixels("near.png").shape == before.shape


def test_a_mask_on_a_transparent_layer_paints_what_is_visible(run, tiny_sd_folder, circle):
    layer = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    layer.paste("white", (0, 0, 16, 8))
    layer.save("mask.png")
    run("inpaint", circle, "a star", "--mask", "mask.png", "-m", tiny_sd_folder, *SHORT, "-o", "top.png")
    run("inpaint", circle, "a star", "--box", "0,0,16,8", "-m", tiny_sd_folder, *SHORT, "-o", "box.png")
    np.testing.assert_array_equal(pixels("top.png"), pixels("box.png"))
    assert "identical" in run("again", "top.png", "--yes").stdout


def test_a_turned_photograph_is_painted_upright_and_comes_again(run, tiny_sd_folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(3).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save("turned.jpg", exif=exif.tobytes())
    for crop in ((), ("--crop", "2")):
        call = ("inpaint", "turned.jpg", "a star", "--box", "2,2,9,20", *crop, "-m", tiny_sd_folder, *SHORT)
        run(*call, "-o", "star.png", "--force")
        assert Image.open("star.png").size == (16, 24)
        assert "identical" in run("again", "star.png", "--yes", "-o", "star-again.png", "--force").stdout


@pytest.mark.parametrize("size", [(32, 16), (16, 32), (30, 30), (300, 100), (8, 4)])
def test_control_keeps_the_pictures_shape(run, tiny_sd_folder, net, size):
    Image.new("RGB", size, "white").save("outline.png")
    run("control", "outline.png", "a star", "-m", tiny_sd_folder, "--net", net, *SHORT, "-o", "with.png")
    width, height = Image.open("with.png").size
    assert abs(np.log(width / height) - np.log(size[0] / size[1])) < 0.15
    assert 0.75 < width * height / 256 < 1.34
    assert "identical" in run("again", "with.png", "--yes").stdout


def test_shapes():
    assert shaped((512, 512), 512 * 512, 8) == (512, 512)
    assert shaped((4000, 3000), 512 * 512, 8) == (592, 440)
    assert shaped((10_000, 1), 64 * 64, 8) == (6400, 8)


def test_out_is_tried_before_painting(run, tiny_sd_folder, circle, monkeypatch):
    import tempfile

    def full(**how):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("langevin.cli.generate.load_pipeline", None)
    calls = (["generate", "x"], ["edit", circle, "x"], ["inpaint", circle, "x", "--box", "1,1,9,9"])
    long = "x" * 300 + ".png"
    for call in calls:
        assert "File name too long" in run(*call, "-o", long, code=1).stderr
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    for call in (*calls, ["control", circle, "x"]):
        for out in ((), ("-o", "."), ("-o", "x.png")):
            assert "cannot save pictures in" in run(*call, *out, code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("edit", "nothing.png", "x"), 1, "there is no file nothing.png"),
        (("edit", ".", "x"), 2, "is a folder"),
        (("edit", "text.png", "x"), 1, "is not a picture"),
        (("inpaint", "circle.png", "x"), 2, "either --mask FILE"),
        (("inpaint", "circle.png", "x", "--box", "1,1,2,2", "--mask", "circle.png"), 2, "either --mask FILE"),
        (("inpaint", "circle.png", "x", "--box", "8,8,4,12"), 2, "LEFT,TOP,RIGHT,BOTTOM"),
        (("inpaint", "circle.png", "x", "--box", "0,0,17,16"), 2, "16x16"),
        (("control", "circle.png", "x", "--net", "nowhere/at-all"), 1, "nowhere/at-all"),
    ],
)
def test_errors_are_one_line(run, circle, arguments, code, words):
    circle.with_name("text.png").write_text("no picture")
    result = run(*arguments, code=code)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_boxes():
    assert parse_box("1, 2,3 4", (10, 10)) == (1, 2, 3, 4)
    for wrong in ("", "1,2,3", "a,b,c,d", "-1,0,4,4", "1,1,1,4"):
        with pytest.raises(BadUsage):
            parse_box(wrong, (10, 10))


def test_settings_of_pictures_that_cannot_be_made_again_say_so(tiny_sd_folder):
    pipe = langevin.StableDiffusionImg2ImgPipeline.from_pretrained(tiny_sd_folder)
    pipe.set_progress_bar_config(disable=True)
    start = langevin.ImageStart(torch.zeros(1, 3, 16, 16))
    made = langevin.StableDiffusionPipeline.from_pipe(pipe)("a", num_inference_steps=2, guiders=[start])
    settings = json.loads(json.dumps(made.images[0].settings))
    assert settings["not_recorded"] == ["ImageStart's image"]
    assert settings["guiders"] == [{"class": "ImageStart", "image": None, "strength": 0.8}]
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    made = pipe("a", image=large, num_inference_steps=2, height=16, width=16)
    assert made.images[0].settings["not_recorded"] == ["image"]


def test_pictures_of_edits_by_text_can_be_made_again(run, tiny_sd_folder, circle):
    from PIL import Image as Images

    plain = langevin.StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    plain.scheduler = langevin.DDIMScheduler.from_config(plain.scheduler.config)
    edits = dict(editing_prompt=["blue", "red"], reverse_editing_direction=[False, True], edit_warmup_steps=[0, 1])
    guider = langevin.SemanticGuidance(["blue", "red"], [False, True], warmup_steps=[0, 1])
    sides = dict(source_prompts=["a cat", "cats"], target_prompts=["a dog"])
    calls = {
        "semantic": ("SemanticStableDiffusionPipeline", edits),
        "guider": ("StableDiffusionPipeline", dict(guiders=[guider])),
        "cycle": ("CycleDiffusionPipeline", dict(source_prompt=["x", "y"], image=Images.open(circle), eta=0.5)),
        "zero": ("StableDiffusionPix2PixZeroPipeline", sides),
    }
    for name, (cls, call) in calls.items():
        pipe = getattr(langevin, cls).from_pipe(plain)
        pipe.set_progress_bar_config(disable=True)
        made = pipe(["a cat", "a dog"], num_inference_steps=3, seed=3, **call).images[1]
        made.save(f"{name}.png")
        said = run("again", f"{name}.png", "--yes").stdout
        assert "identical" in said or "the same but for rounding" in said, (name, said)
