"""Pictures by strangers: what they name is not loaded unasked, and what they say harms neither terminal nor machine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import langevin
from langevin.checkpoints import folders
from langevin.cli.app import app
from langevin.cli.errors import harmless
from langevin.cli.trust import Trust, on_shelf
from langevin.media.picture import Picture
from langevin.media.recording import recorded
from langevin.media.settings import read_settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LANGEVIN_DEBUG", raising=False)


@pytest.fixture
def loads(monkeypatch):
    """Every ``from_pretrained`` that is called, with its options; none is carried out."""
    asked = []

    def load(cls, name, **options):
        asked.append((cls.__name__, name, {k: v for k, v in options.items() if k != "torch_dtype"}))
        raise OSError("not in this test")

    for cls in (langevin.DiffusionPipeline, langevin.ControlNetModel):
        monkeypatch.setattr(cls, "from_pretrained", classmethod(load))
    return asked


SETTINGS = {
    "langevin": langevin.__version__,
    "pipeline": "StableDiffusionPipeline",
    "model": "langevin/shapes",
    "prompt": "a red circle",
    "num_inference_steps": 2,
    "height": 64,
    "width": 64,
    "scheduler": "DDIMScheduler",
    "seed": 7,
    "dtype": "float32",
    "device": "cpu",
}


def picture(name="c.png", **settings):
    Picture(Image.new("RGB", (64, 64)), {**SETTINGS, **settings}).save(name)
    return name


def run(*arguments, code=1, **options):
    result = CliRunner().invoke(app, [str(a) for a in arguments], **options)
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def error(*arguments, code=1):
    said = run(*arguments, code=code).stderr
    assert said.count("\n") == 1
    assert "LANGEVIN_DEBUG" not in said, "a kind of error that is told in words"
    return said


def cached(name, tiny_sd_folder):
    """A model in the hub's cache."""
    place = Path(os.environ["HF_HUB_CACHE"], f"models--{name.replace('/', '--')}")
    shutil.copytree(tiny_sd_folder, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    return place / "snapshots" / "abc"


# ------------------------------------------------------------------------------------------------ what is loaded


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ("evil/model", "huggingface.co"),
        ("private-model", "huggingface.co"),
        ("{here}", "the folder {here}"),
        (".", "the folder {here}"),
        ("../{name}", "the folder {here}"),
    ],
)
def test_what_is_not_on_the_shelf_is_not_loaded_unasked(loads, tmp_path, model, place):
    given = model.format(here=tmp_path, name=tmp_path.name)
    said = error("again", picture(model=given))
    assert f"its model {given!r} cannot be loaded; name another with --model, or allow it with --yes" in said
    assert place.format(here=tmp_path) in said
    assert loads == []


def test_a_yes_or_a_model_of_ones_own_loads(loads):
    name = picture(model="evil/model")
    run("again", name, "--yes")
    run("again", name, "--model", "my/model")
    assert [(model, options) for _, model, options in loads] == [("evil/model", {}), ("my/model", {})]


def test_a_yes_on_the_terminal_loads(loads, monkeypatch):
    import sys

    name = picture(model="evil/model")

    class Terminal:
        def isatty(self):
            return True

    asked = []
    monkeypatch.setattr("typer.confirm", lambda text, err: asked.append(text) or False)
    monkeypatch.setattr("langevin.cli.trust.sys", type("", (), {"stdin": Terminal()}))
    run("again", name)
    assert loads == []
    assert "'evil/model'" in asked[0]
    assert sys.stdin is not None
    monkeypatch.setattr("typer.confirm", lambda text, err: True)
    run("again", name)
    assert len(loads) == 1


def test_networks_that_a_picture_names_need_a_yes_too(loads):
    control = {"class": "Control", "network": {"network": "ControlNetModel", "from": "evil/net"}, "image": None}
    for settings in ({"control": [control]}, {"parts": {"vae": {"network": "AutoencoderKL", "from": "evil/net"}}}):
        name = picture(**settings)
        for more in ((), ("--model", "langevin/shapes")):
            assert "its network 'evil/net' cannot be loaded; allow it with --yes" in error("again", name, *more)
    assert loads == []


def test_the_cache_is_used_without_the_network_and_without_a_token(loads, tiny_sd_folder):
    folder = cached("good/model", tiny_sd_folder)
    run("again", picture(model="good/model"))
    assert loads.pop() == ("StableDiffusionPipeline", "good/model", {"local_files_only": True, "token": False})
    assert on_shelf("good/model") == "cache"
    assert on_shelf(str(folder)) == "box"
    assert on_shelf("langevin/shapes") == on_shelf(str(folders.BOX / "shapes")) == "box"
    assert on_shelf("other/model") is None
    Path("good/model").mkdir(parents=True)
    assert on_shelf("good/model") is None, "a folder of that name comes first, and anybody may have put it there"
    Path("link").symlink_to(folder)
    assert on_shelf("link") == "box"


@pytest.mark.parametrize("name", ["~nobody-at-all/x", "a" * 5000, "\ud800", "//x//", "..", "con:", "a\nb"])
def test_strange_names_are_not_on_the_shelf(name):
    assert on_shelf(name) is None


def test_trust_asks_once_for_all():
    settings = {**SETTINGS, "model": "a/b", "control": [{"network": {"network": "ControlNetModel", "from": "c/d"}}]}
    with pytest.raises(RuntimeError, match=r"'a/b' .*; its network 'c/d'"):
        Trust(settings, None, False)
    assert Trust(settings, None, True).options("a/b") == {}


def test_files_that_are_no_regular_ones_are_not_opened(loads):
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe")
        assert "no regular file" in error("info", "pipe")
        assert "no regular file" in error("again", "pipe")
    assert "no regular file" in error("info", "/dev/zero")


def test_start_pictures_that_are_no_regular_files_are_not_opened(tiny_sd_folder, monkeypatch):
    cached("good/model", tiny_sd_folder)
    name = picture(
        model="good/model",
        pipeline="StableDiffusionImg2ImgPipeline",
        image={"file": "/dev/zero", "sha256": "0"},
        height=16,
        width=16,
    )
    assert "/dev/zero is no regular file" in error("again", name)


def test_parts_and_freeu_come_again(tiny_sd_folder):
    cached("good/model", tiny_sd_folder)
    pipe = langevin.StableDiffusionPipeline.from_pretrained("good/model", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    vae = langevin.AutoencoderKL.from_pretrained(tiny_sd_folder, subfolder="vae")
    numbers = dict(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    pipe.enable_freeu(**numbers)
    made = pipe("a", num_inference_steps=2, seed=1).images[0]
    made.settings |= {"freeu": numbers, "parts": {"vae": recorded(vae)}}
    made.save("c.png")
    assert "identical" in run("again", "c.png", "--yes", code=0).stdout
    pipe.disable_freeu()
    without = pipe("a", num_inference_steps=2, seed=1).images[0]
    assert np.asarray(without).tobytes() != np.asarray(made).tobytes()


# ------------------------------------------------------------------------------------------- what cannot be followed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_inference_steps": 10**9}, "num_inference_steps is 1000000000; a whole number from 1 to 10000 is needed"),
        ({"num_inference_steps": "20"}, "num_inference_steps is '20'"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"seed": 2**64}, "seed is"),
        ({"seed": 10**4000}, "a whole number of 13288 bits"),
        ({"height": 10**6}, "height is 1000000"),
        ({"height": 16000, "width": 16000}, "at most 67108864 pixels"),
        ({"guidance_scale": "7"}, "guidance_scale is '7'; a number"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"prompt": 3}, "prompt is 3; a text"),
        ({"model": ["a"]}, "model is a list of 1; a name"),
        ({"model": "a\0b"}, "a name of at most"),
        ({"pipeline": {}}, "pipeline is a dict of 0"),
        ({"scheduler_config": [1]}, "scheduler_config is a list of 1; a dict"),
        ({"scheduler_config": {"num_train_timesteps": 10**12}}, "as num_train_timesteps"),
        ({"scheduler_config": {"num_train_timesteps": "x"}}, "as num_train_timesteps"),
        ({"scheduler_config": {"solver_order": 10**9}}, "as solver_order"),
        ({"timesteps": [1] * 20000}, "timesteps is a list of 20000"),
        ({"sigmas": "abc"}, "sigmas is 'abc'"),
        ({"guiders": {"class": "x"}}, "guiders is a dict of 1; a list"),
        ({"control": [3]}, "control is a list of 1"),
        ({"freeu": {"s1": 1}}, "the four numbers"),
        ({"parts": {"vae": 3}}, "networks by the names of parts"),
        ({"not_recorded": "image"}, "not_recorded is 'image'"),
        ({"image": {"file": 3, "sha256": 4}}, "image holds file and sha256 that are not texts"),
        ({"image": {"items": 3}}, "image holds items that are not pairs"),
        ({"image": {"png": None}}, "png that are not texts"),
        ({"image": [[[[[[[[[[1]]]]]]]]]]}, "plain values, at most 8 deep"),
        ({"keep_outside": "yes"}, "true or false"),
    ],
)
def test_settings_that_cannot_be_followed_end_in_one_line(loads, settings, words):
    said = error("again", picture(**settings))
    assert words in said
    assert "c.png" in said
    assert loads == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guiders": [{"class": "GuidanceRescale", "nonsense": 3}]}, "do not fit"),
        ({"scheduler_config": {"beta_start": {}}}, ""),
        ({"image": {"png": "AAAA"}, "pipeline": "StableDiffusionImg2ImgPipeline"}, "cannot be used"),
    ],
)
def test_settings_of_the_right_kind_that_do_not_fit_end_in_one_line(tiny_sd_folder, settings, words):
    cached("good/model", tiny_sd_folder)
    assert words in error("again", picture(model="good/model", **{"height": 16, "width": 16, **settings}))


# ------------------------------------------------------------------------------------------------- the terminal

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eexe\u2028\r\ud800"


def tame(text):
    return all(c in "\n\t" or c.isprintable() or c == "\u200d" for c in text)


def test_controls_are_spelt_out():
    assert harmless("a\x1b[31mb\ré\n\t👩‍🎨") == "a\\u001b[31mb\\u000dé\n\t👩‍🎨"
    assert tame(harmless(EVIL))


def test_no_text_from_a_file_commands_the_terminal(loads):
    name = picture(prompt=EVIL, model=EVIL, **{EVIL: EVIL, "scheduler_config": {EVIL: EVIL}})
    assert tame(run("info", name, code=0).stdout)
    as_json = run("info", name, "--json", code=0).stdout
    assert tame(as_json)
    assert json.loads(as_json) == read_settings(name)
    for settings in (
        {"model": EVIL},
        {"scheduler": EVIL},
        {"dtype": EVIL},
        {"device": EVIL},
        {"not_recorded": [EVIL]},
        {"guiders": [{"class": EVIL}]},
        {"num_inference_steps": EVIL},
        {"image": {"file": EVIL, "sha256": ""}},
        {"langevin": None, "model": EVIL},
    ):
        assert tame(run("again", picture(**settings)).stderr)


def test_bombs_are_refused_in_one_line(monkeypatch):
    picture("plain.png")
    Image.new("RGB", (64, 64)).save("silent.png")
    for limit in (3000, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for name in ("plain.png", "silent.png"):
            for command in ("info", "again"):
                assert "too" in error(command, name)


def test_damaged_and_foreign_files_end_in_one_line():
    data = Path(picture()).read_bytes()
    Path("cut.png").write_bytes(data[:50])
    Path("program.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%parameters: Steps: 3\n%%EndComments\n"
    )
    for name in ("cut.png", "program.eps"):
        error("info", name)
        error("again", name)
