"""``langevin sound`` on tiny checkpoints, and its sounds made again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import langevin
from langevin import Sound

UNET = dict(block_out_channels=(8, 32, 32), extra_in_channels=16, sample_size=256, sample_rate=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "dance"
    pipe = langevin.DanceDiffusionPipeline(langevin.UNet1DModel(**UNET).eval(), langevin.IPNDMScheduler())
    pipe.save_pretrained(folder)
    return folder


def test_a_sound_is_made_and_made_again(run, model):
    said = run("sound", model, "--seconds", "1.5", "--steps", "3", "--seed", "4", "--out", "x.wav").stdout
    assert said == "x.wav  (seed 4, 1.50 s at 64 Hz)\n"
    sound = Sound.load("x.wav")
    assert sound.samples.shape == (2, 96)
    settings = json.loads(run("info", "x.wav", "--json").stdout)
    assert settings == sound.settings
    assert (settings["seed"], settings["audio_length_in_s"]) == (4, 1.5)
    said = run("again", "x.wav", "--yes").stdout
    assert "x-again.wav  (seed 4, 1.50 s at 64 Hz)" in said
    assert "identical: all 192 samples are those of x.wav" in said
    np.testing.assert_array_equal(Sound.load("x-again.wav").pcm(), sound.pcm())


def test_several_sounds_go_into_a_folder_with_another_scheduler(run, model, tmp_path):
    (tmp_path / "made").mkdir()
    run("sound", model, "-n", "2", "--steps", "2", "--seed", "7", "--scheduler", "ddim", "--out", "made")
    paths = sorted((tmp_path / "made").iterdir())
    assert [path.name for path in paths] == ["sound-7.wav", "sound-8.wav"]
    assert Sound.load(paths[1]).settings["scheduler"] == "DDIMScheduler"
    assert "same but for rounding" in (said := run("again", paths[1], "--yes").stdout) or "identical" in said


def test_an_edited_sound_is_told_of(run, model):
    run("sound", model, "--seconds", "1", "--steps", "2", "--seed", "4", "--out", "x.wav")
    sound = Sound.load("x.wav")
    sound.samples[0, 10] += 0.25 if sound.samples[0, 10] < 0 else -0.25  # of the left channel alone
    sound.save("x.wav")
    result = run("again", "x.wav", "--yes", code=1)
    assert "not identical: 1 of 128 samples differ from x.wav" in result.stdout
    sound.sample_rate = 128
    sound.save("x.wav")
    assert "the size is not that of x.wav" in run("again", "x.wav", "--yes", code=1).stdout


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (("--out", "x.mp3"), "sounds are not saved as '.mp3'; use .wav", 2),
        (("--out", "x"), "neither a folder nor a file name with .wav", 2),
        (("--seconds", "0.1"), "audio_length_in_s is 0.1; this network takes 0.375 and more", 1),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(run, model, arguments, line, code):
    assert line in run("sound", model, "--steps", "1", *arguments, code=code).stderr


def test_a_model_of_pictures_makes_no_sound(run):
    said = run("sound", "langevin/shapes-unconditional", "--steps", "1", code=2).stderr
    assert "langevin sound needs a DanceDiffusionPipeline or an AudioDiffusionPipeline" in said
    assert not run("info", "nothing.wav", code=1).stdout
