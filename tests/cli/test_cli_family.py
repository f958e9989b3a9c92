"""``langevin upscale``, ``vary`` and ``depth`` on tiny checkpoints, and their pictures made again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import langevin
from langevin.cli.app import app
from langevin.media.settings import read_settings
from tests.pipelines.family_checks import Twins, pil

SHORT = ("--steps", "3", "--seed", "3")


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    return Twins(tmp_path_factory.mktemp("twins"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pil(8, 8).save("small.png")

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    return call


@pytest.fixture(scope="module")
def model(twins, tmp_path_factory):
    """A function that saves a tiny model of a kind, and gives its folder."""

    def make(name, unet, **parts):
        folder = tmp_path_factory.mktemp("model")
        pairs = {part: (one, one) for part, one in parts.items()}
        twins(name, unet=unet, **pairs)[0].save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def upscaler(model):
    return model("StableDiffusionUpscalePipeline", "upscale", low_res_scheduler=langevin.DDPMScheduler())


def apart(one, two):
    return abs(np.asarray(Image.open(one)).astype(int) - np.asarray(Image.open(two)).astype(int)).max()


def test_upscale_whole_and_in_windows(run, upscaler):
    call = ("upscale", "small.png", "a cat", "-m", upscaler, *SHORT)
    run(*call, "-o", "plain.png")
    run(*call, "--noise", "200", "-o", "noisy.png")
    pil(8, 16).save("small.png")
    run(*call, "--window", "8", "-o", "wide.png")
    assert Image.open("plain.png").size == (16, 16)
    assert Image.open("wide.png").size == (32, 16)
    assert read_settings("noisy.png")["noise_level"] == 200
    assert read_settings("wide.png")["guiders"][0]["class"] == "Windows"
    assert apart("plain.png", "noisy.png") > 0
    assert "identical" in run("again", "wide.png", "--yes").stdout


def test_upscale_latents(run, model):
    folder = model("StableDiffusionLatentUpscalePipeline", "latent upscale")
    run("upscale", "small.png", "-m", folder, *SHORT, "-o", "twice.png")
    assert Image.open("twice.png").size == (16, 16)
    assert "identical" in run("again", "twice.png", "--yes").stdout
    assert "takes no --noise" in run("upscale", "small.png", "-m", folder, "--noise", "5", code=2).stderr


def test_vary(run, model):
    import transformers

    torch.manual_seed(2)
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=24,
        image_size=32, patch_size=8,
    )  # fmt: skip
    size = {"shortest_edge": 32}, {"height": 32, "width": 32}
    folder = model(
        "StableDiffusionImageVariationPipeline", "sd1",
        image_encoder=transformers.CLIPVisionModelWithProjection(config).eval(),
        feature_extractor=transformers.CLIPImageProcessor(size=size[0], crop_size=size[1]),
    )  # fmt: skip
    run("vary", "small.png", "-m", folder, *SHORT, "-n", "2", "-o", "like.png")
    assert apart("like-1.png", "like-2.png") > 0
    assert "rounding" in (said := run("again", "like-2.png", "--yes").stdout) or "identical" in said


def test_depth_from_a_map(run, model):
    folder = model("StableDiffusionDepth2ImgPipeline", "depth", depth_estimator=None, feature_extractor=None)
    pil(16, 16).save("room.png")
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, near in (("map.png", levels), ("other.png", levels.T.copy())):
        Image.fromarray(near).save(name)
    call = ("depth", "room.png", "a cat", "-m", folder, "--strength", "0.7", *SHORT)
    run(*call, "--map", "map.png", "-o", "one.png")
    run(*call, "--map", "other.png", "-o", "two.png")
    assert apart("one.png", "two.png") > 0
    assert "identical" in run("again", "one.png", "--yes").stdout
    assert "give a depth_map" in run(*call, code=1).stderr


def test_models_of_another_kind_are_refused(run, upscaler, tiny_sd_folder):
    said = run("vary", "small.png", "-m", upscaler, code=2).stderr
    assert "needs a StableDiffusionImageVariationPipeline or a VersatileDiffusionImageVariationPipeline" in said
    assert "this model is a StableDiffusionUpscalePipeline" in said
    for call in (("upscale", "small.png"), ("depth", "small.png", "a cat")):
        assert "this model is a StableDiffusionPipeline" in run(*call, "-m", tiny_sd_folder, code=2).stderr
        assert "Missing option" in run(*call, code=2).stderr
