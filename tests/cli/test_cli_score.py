"""``langevin score`` on pictures of the world of the models in the box."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from langevin import zoo
from langevin.cli.app import app
from langevin.zoo.world import Scene, Thing, render


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = Scene((Thing("circle", "red", "medium", 32, 32, 10),), "white")
    Image.fromarray(render([scene])[0]).resize((128, 128)).save("circle.png")

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    return call


TEXTS = ("a blue circle", "a red circle", "a red star")


def test_the_best_text_comes_first_with_how_likely_it_is_true(run):
    first, *others = run("score", "circle.png", *TEXTS).stdout.splitlines()
    assert first.endswith("a red circle")
    assert [line.split("share")[0].split()[0] for line in (first, *others)] == ["fits"] * 3
    rows = json.loads(run("score", "circle.png", *TEXTS, "--json").stdout)
    assert rows[0]["text"] == "a red circle"
    assert rows[0]["chance"] > 0.5 > rows[1]["chance"]
    assert "share" not in run("score", "circle.png", "a red circle").stdout


def test_a_clip_without_a_calibration_gives_cosines(run, tmp_path):
    shutil.copytree(zoo.path("langevin/shapes-clip"), tmp_path / "clip")
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    del config["calibration"]
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    assert run("score", "circle.png", "a red circle", "--model", "clip").stdout.startswith("cosine +0.")


def test_mistakes_get_one_line(run):
    assert "there is no file" in run("score", "nothing.png", "a cat", code=1).stderr
    assert "a text is empty" in run("score", "circle.png", " ", code=2).stderr
    call = ("score", "circle.png", "a cat", "-m")
    assert "no 'langevin/nothing' in the box" in run(*call, "langevin/nothing", code=1).stderr
    assert "is no CLIP of both" in run(*call, "langevin/shapes", code=1).stderr
