"""``langevin video`` on tiny checkpoints, and its videos made again."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from langevin.cli.app import app
from langevin.media.settings import read_settings
from langevin.media.video import Video, load_video
from tests.pipelines.video_checks import VideoTwins, clip_pil

SHORT = ("--steps", "2", "--seed", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    VideoTwins(tmp_path_factory.mktemp("twins"))()[0].save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    return call


def apart(one, two):
    one, two = (np.stack([np.asarray(frame, int) for frame in load_video(file)]) for file in (one, two))
    return np.abs(one - two).max()


@pytest.mark.parametrize("ending", ["webp", "png", "gif", "mp4"])
def test_a_video_is_made_shown_and_made_again(run, folder, ending):
    if ending == "mp4":
        pytest.importorskip("av")
    call = ("video", folder, "a (red)1.3 cat", *SHORT, "--frames", "3", "--size", "24x16", "--fps", "12")
    said = run(*call, "--out", f"cat.{ending}")
    assert said.stdout == f"cat.{ending}  (seed 3, 3 frames of 24x16)\n"
    shown = json.loads(run("info", f"cat.{ending}", "--json").stdout)
    assert (shown["num_frames"], shown["fps"], shown["width"], shown["prompt"]) == (3, 12, 24, "a (red)1.3 cat")
    assert load_video(f"cat.{ending}").fps == pytest.approx(12, abs=0.1)
    result = run("again", f"cat.{ending}", "--yes")
    assert f"cat-again.{ending}  (seed 3, 3 frames of 24x16)" in result.stdout
    if ending in ("webp", "png"):
        assert "identical: all 1152 pixels" in result.stdout
        assert read_settings(f"cat-again.{ending}") == shown
    assert apart(f"cat.{ending}", f"cat-again.{ending}") == 0  # the same file, whatever was lost on the way


def test_a_video_from_a_video(run, folder):
    Video(clip_pil(3)).save("begin.webp")
    call = ("video", folder, "a dog", *SHORT)
    run(*call, "--from", "begin.webp", "--strength", "0.5", "--out", "dog.webp")
    assert read_settings("dog.webp")["pipeline"] == "VideoToVideoSDPipeline"
    assert "identical" in run("again", "dog.webp", "--yes").stdout
    Video(clip_pil(2, 17, 19)).save("odd.gif")
    run(*call, "--from", "odd.gif", "--out", "odd.webp")
    assert "(seed 3, 2 frames of 18x16)" in (said := run("again", "odd.webp", "--yes").stdout)
    assert "identical" in said
    Video(clip_pil(3, seed=1)).save("begin.webp")
    assert "has changed since" in run("again", "dog.webp", "--yes", code=1).stderr


def test_a_stranger_may_name_any_file_as_a_video(run, folder, tmp_path):
    Video(clip_pil(2)).save("begin.gif")
    run("video", folder, "a dog", *SHORT, "--from", "begin.gif", "--out", "dog.webp")
    video = load_video("dog.webp")
    for named in (os.devnull, str(folder / "model_index.json"), str(tmp_path), "none.gif", 5):
        video.settings["video"] = {"video": named, "sha256": "0" * 64}
        video.save("stranger.webp")
        said = run("again", "stranger.webp", "--yes", code=1).stderr
        assert len(said.strip().splitlines()) == 1
        assert not list(tmp_path.glob("*again*"))


def test_several_videos_have_seeds_and_names(run, folder):
    said = run("video", folder, "a cat", "--steps", "1", "--seed", "8", "--frames", "2", "--count", "2", "-o", "c.webp")
    assert [line.split("  ")[0] for line in said.stdout.splitlines()] == ["c-1.webp", "c-2.webp"]
    assert [read_settings(f"c-{k}.webp")["seed"] for k in (1, 2)] == [8, 9]


def test_mistakes_are_told_before_anything_is_loaded(run, folder, tiny_sd_folder, monkeypatch):
    call = ("video", folder, "a cat", *SHORT)
    assert "videos are not saved as '.avi'; use .mp4, .gif or .webp" in run(*call, "-o", "c.avi", code=2).stderr
    assert "pictures are not saved as '.mp4'" in run("generate", "a cat", "-o", "c.mp4", code=2).stderr
    assert "name one with --from" in run(*call, "--strength", "0.5", "-o", "c.gif", code=2).stderr
    assert "there is no file none.gif" in run(*call, "--from", "none.gif", "-o", "c.gif", code=1).stderr
    Video(clip_pil(2)).save("b.gif")
    assert "as long as that" in run(*call, "--from", "b.gif", "--frames", "3", "-o", "c.gif", code=2).stderr
    wrong = run("video", tiny_sd_folder, "a cat", *SHORT, "-o", "c.gif", code=2).stderr
    assert "langevin video needs a TextToVideoSDPipeline or a VideoToVideoSDPipeline" in wrong
    for command in ("generate", "compare-schedulers"):
        told = run(command, "a cat", "-m", folder, "--steps", "2", "-o", "c.png", code=2).stderr
        assert "is for: langevin video" in told
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'langevin[video]'" in run(*call, "-o", "c.mp4", code=1).stderr
    assert "pip install 'langevin[video]'" in run(*call, code=1).stderr  # an MP4 is what is made without --out
