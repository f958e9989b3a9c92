"""Videos into files and from files, with the settings that made them."""

from __future__ import annotations

import contextlib
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from langevin.media.load import WrongPicture
from langevin.media.mp4 import is_mp4, mp4_comment
from langevin.media.picture import Picture
from langevin.media.recording import recorded, reread_video
from langevin.media.settings import read_settings
from langevin.media.video import Video, listed_videos, load_video, to_videos

SETTINGS = {"langevin": "0.1.0", "prompt": 'a "red" cät,\nwalking', "seed": 7, "scheduler_config": {"a": [1.5, None]}}


def moving(count=5, width=32, height=24):
    """A light square that moves over a dark ground, with a little colour."""
    frames = []
    for k in range(count):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 2] = 40
        pixels[4:12, 2 * k : 2 * k + 8] = (250, 200, 60)
        frames.append(Picture.from_array(pixels))
    return frames


def apart(one, two):
    assert len(one) == len(two)
    return max(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(("kind", "within"), [("webp", 0), ("png", 0), ("gif", 0), ("mp4", 90)])
@pytest.mark.parametrize("fps", [8, 12.5])
def test_there_and_back_with_settings(kind, within, fps, tmp_path):
    if kind == "mp4":
        pytest.importorskip("av")
    file = tmp_path / f"cat.{kind}"
    video = Video(moving(), SETTINGS)
    video.save(file, fps=fps)
    back = load_video(file)
    assert type(back) is Video
    assert back.filename == str(file)
    assert back.settings == read_settings(file) == {**SETTINGS, "fps": fps}
    assert back.fps == pytest.approx(fps)
    assert {frame.size for frame in back} == {(32, 24)}
    assert apart(back, video) <= within
    if within:  # what is in the frames is there, though colours are not quite
        means = [np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() for a, b in zip(back, video, strict=True)]
        assert max(means) < 6
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
    assert video.settings == SETTINGS  # untouched


@pytest.mark.parametrize("kind", ["webp", "png", "gif"])
def test_frames_that_are_alike_are_not_lost(kind, tmp_path):
    """Writers make one longer frame of them."""
    one, two, *_ = moving()
    video = Video([one, one, two, two, two, one], SETTINGS, fps=10)
    video.save(tmp_path / f"a.{kind}")
    assert apart(load_video(tmp_path / f"a.{kind}"), video) == 0
    still = Video([one] * 4, {**SETTINGS, "num_frames": 4})
    still.save(tmp_path / f"b.{kind}")
    assert apart(load_video(tmp_path / f"b.{kind}"), still) == 0


def test_a_video_without_settings_and_one_of_others(tmp_path):
    Video(moving(3)).save(tmp_path / "a.gif")
    assert load_video(tmp_path / "a.gif").settings is None
    first, *rest = moving(3)
    Image.Image.save(first, tmp_path / "b.gif", save_all=True, append_images=rest, duration=40, comment=b"made by hand")
    back = load_video(tmp_path / "b.gif")
    assert (len(back), back.fps) == (3, 25)
    assert back.settings["prompt"] == "made by hand"  # as of any picture that carries such a text


def test_settings_of_an_mp4_are_read_without_a_library(tmp_path, monkeypatch):
    pytest.importorskip("av")
    long = {**SETTINGS, "prompt": "a cat " * 20_000}
    Video(moving(), long).save(tmp_path / "a.mp4")
    assert is_mp4(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    assert read_settings(tmp_path / "a.mp4")["prompt"] == long["prompt"]
    for use in (lambda: load_video(tmp_path / "a.mp4"), lambda: Video(moving()).save(tmp_path / "b.mp4")):
        with pytest.raises(ImportError, match=r"MP4 files need PyAV: pip install 'langevin\[video\]'; or use .gif"):
            use()
    assert not (tmp_path / "b.mp4").exists()
    Video(moving()).save(tmp_path / "c.webp")


def test_damaged_mp4_files_carry_nothing_and_are_refused_in_one_line(tmp_path):
    pytest.importorskip("av")
    Video(moving(), SETTINGS).save(tmp_path / "whole.mp4")
    whole = (tmp_path / "whole.mp4").read_bytes()
    file = tmp_path / "bad.mp4"
    generator = np.random.default_rng(0)
    for _ in range(60):
        cut = int(generator.integers(8, len(whole)))
        spoilt = bytearray(whole[:cut])
        for place in generator.integers(8, cut, 4) if cut > 8 else ():
            spoilt[place] = int(generator.integers(256))
        file.write_bytes(spoilt)
        settings = read_settings(file)
        assert settings is None or isinstance(settings, dict)
        with contextlib.suppress(WrongPicture):
            load_video(file)
    file.write_bytes(whole[:4] + b"ftyp" + b"isom" + bytes(40))  # boxes that go on to the end, and are empty
    assert mp4_comment(file) is None
    assert read_settings(file) is None


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_video(tmp_path / "none.gif")
    (tmp_path / "a.gif").write_text("GIF of nothing")
    with pytest.raises(UnidentifiedImageError):
        load_video(tmp_path / "a.gif")
    with pytest.raises(WrongPicture, match="no regular file"):
        load_video(os.devnull)


WRONG = {
    "an ending": (lambda folder: Video(moving()).save(folder / "a.avi"), "use .mp4, .gif, .webp or .png"),
    "no frames": (lambda folder: Video().save(folder / "a.gif"), "no sizes"),
    "sizes": (lambda folder: Video([*moving(1), *moving(1, 8, 8)]).save(folder / "a.gif"), "frames of one size"),
    "a rate": (lambda folder: Video(moving(), fps=0).save(folder / "a.gif"), "fps is 0"),
    "odd sides": (lambda folder: Video(moving(2, 33, 24)).save(folder / "a.mp4"), "33x24; an MP4 has even sides"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_leave_no_file(name, tmp_path):
    pytest.importorskip("av")
    do, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        do(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.webp"
    Video(moving(), SETTINGS).save(file)
    before = file.read_bytes()

    def fail(self, file, *args, **more):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        Video(moving(2)).save(file)
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.webp"]


def test_tensors_become_videos():
    pixels = torch.linspace(-1, 1, 2 * 3 * 4 * 8 * 8).reshape(2, 3, 4, 8, 8)
    videos = to_videos(pixels, [{"seed": 1}, {"seed": 2}])
    assert [(len(one), one.settings["seed"]) for one in videos] == [(4, 1), (4, 2)]
    wanted = ((pixels[1, :, 3].permute(1, 2, 0) / 2 + 0.5) * 255).round().numpy()
    np.testing.assert_array_equal(np.asarray(videos[1][3]), wanted)


def test_videos_in_all_their_forms():
    tensor, array = torch.rand(4, 3, 8, 8), np.zeros((4, 8, 8, 3), np.uint8)
    for one in (tensor, array, list(tensor), list(array), tuple(moving()), Video(moving())):
        assert len(listed_videos(one)) == 1
        assert len(listed_videos([one, one])) == 2
    assert len(listed_videos(tensor[None].repeat(2, 1, 1, 1, 1))) == 2
    latents = torch.rand(1, 4, 5, 8, 8)
    assert listed_videos(latents, 4) is latents
    assert len(listed_videos(torch.rand(1, 4, 3, 8, 8), 4)) == 1  # four frames in colour
    for wrong in (torch.rand(8, 8), [], "a.gif", None, 5, [latents.repeat(2, 1, 1, 1, 1)], moving()[0]):
        with pytest.raises(WrongPicture, match="give its frames in a list"):
            listed_videos(wrong)


def test_a_video_from_a_file_is_recorded_by_it_and_read_again(tmp_path):
    file = tmp_path / "a.webp"
    Video(moving(), SETTINGS).save(file)
    video = load_video(file)
    record = recorded(video)
    assert record == {"video": str(file), "sha256": record["sha256"]}
    assert apart(reread_video(record), video) == 0
    Video(moving(3)).save(file)
    with pytest.raises(ValueError, match="has changed since"):
        reread_video(record)
    assert recorded(video) is None  # the file does not show it any more
    assert [*recorded(Video(moving(2)))[0]] == ["png"]  # small frames are written whole


def test_settings_that_say_there_are_millions_of_frames_fill_no_memory(tmp_path):
    Video(moving(1), {**SETTINGS, "num_frames": 10**9}).save(tmp_path / "a.webp")
    with pytest.raises(WrongPicture, match="more than 100000 frames"):
        load_video(tmp_path / "a.webp")
