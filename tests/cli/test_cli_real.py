"""The command line on real pipelines: a tiny random checkpoint always, the model in the box where it is there."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import langevin
from langevin.cli.app import app
from langevin.media.settings import read_settings

WEIGHTS = Path(langevin.__file__).parent / "zoo" / "weights"
in_the_box = pytest.mark.skipif(not (WEIGHTS / "shapes" / "model_index.json").exists(), reason="no weights here")
unconditional = pytest.mark.skipif(
    not (WEIGHTS / "shapes-unconditional" / "model_index.json").exists(), reason="no weights here"
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LANGEVIN_DEBUG", raising=False)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "pndm", "ddpm"])
def test_generate_and_again_on_a_tiny_checkpoint(tiny_sd_folder, scheduler):
    words = "--steps 4 --seed 7 --count 2 --guidance 3 --negative ugly --size 32x16 --device cpu --out c.png"
    run("generate", "a red circle", *words.split(), "--model", tiny_sd_folder, "--scheduler", scheduler)
    assert Image.open("c-1.png").size == (32, 16)
    assert not np.array_equal(pixels("c-1.png"), pixels("c-2.png"))
    assert "identical" in run("again", "c-2.png", "--yes").stdout
    assert read_settings("c-2-again.png") == read_settings("c-2.png")
    assert "a red circle" in run("info", "c-1.png").stdout


def test_formats_and_number_formats_come_again(tiny_sd_folder):
    base = ["generate", "x", "--model", tiny_sd_folder, "--steps", 2, "--seed", 1, "--device", "cpu"]
    run(*base, "--dtype", "bf16", "--out", "half.png")
    assert read_settings("half.png")["dtype"] == "bfloat16"
    assert "identical" in run("again", "half.png", "--yes").stdout


def test_a_relative_model_folder_is_found_from_anywhere(tiny_sd_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny_sd_folder.parent)
    run("generate", "x", "--model", tiny_sd_folder.name, "--steps", 2, "--out", tmp_path / "c.png", "--device", "cpu")
    monkeypatch.chdir(tmp_path)
    assert "identical" in run("again", "c.png", "--yes").stdout


def test_errors_of_the_library_are_one_line(tiny_sd_folder):
    base = ["generate", "x", "--model"]
    for arguments in ([*base, "/no/such/folder"], [*base, "no/such-model"], [*base, tiny_sd_folder, "--size", "17"]):
        said = run(*arguments, code=1).stderr
        assert said.startswith("langevin: ")
        assert said.count("\n") == 1


def test_half_a_checkpoint_is_one_line(tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    said = run("generate", "x", "--model", folder, code=1).stderr
    assert said.startswith("langevin: ")
    assert said.count("\n") == 1


@in_the_box
def test_the_readme_with_the_model_in_the_box():
    from langevin.zoo.reader import matches, read
    from langevin.zoo.world import parse

    run("generate", "a red circle", "--steps", 20, "--seed", 7, "--out", "circle.png")
    image = Image.open("circle.png")
    assert image.size == (64, 64)
    assert matches(read(image), parse("a red circle"))
    assert "identical" in run("again", "circle.png").stdout
    assert "langevin/shapes" in run("models").stdout


@in_the_box
def test_picture_k_of_a_call_comes_again_alone_from_the_box():
    run("generate", "a blue square", "--steps", 10, "--seed", 3, "--count", 3, "--out", "s.png")
    for k in (1, 2, 3):
        assert "identical" in run("again", f"s-{k}.png").stdout


@unconditional
def test_pictures_without_a_prompt_from_the_box():
    run("generate", "--model", "langevin/shapes-unconditional", "--steps", 5, "--seed", 1, "--count", 2)
    said = run("again", "picture-2.png").stdout  # made in a batch then, alone now
    assert "identical: all" in said or "the same but for rounding" in said


def test_schedulers_are_listed_with_a_line_each():
    rows = json.loads(run("schedulers", "--json").output)
    assert {row["class"] for row in rows} == {name for name in langevin.__all__ if name.endswith("Scheduler")}
    assert all(row["what"].endswith(".") and "`" not in row["what"] for row in rows), rows
    assert all(len(row["what"]) < 130 for row in rows), rows
    text = run("schedulers").output
    assert all(row["name"] in text for row in rows)
    assert "sgm_uniform" in text


def test_schedulers_are_compared_on_a_tiny_checkpoint(tiny_sd_folder):
    words = "--steps 2,4 --schedulers ddim,pndm,euler --count 2 --device cpu --out sheet.png --spacing karras"
    output = run("compare-schedulers", "a cat", "--model", tiny_sd_folder, *words.split()).output
    assert "DDIM  2 steps" in output
    assert "as asked" not in output  # nobody can read this model's pictures
    sheet = Image.open("sheet.png")
    assert sheet.width > 2 * 128
    assert len(np.unique(pixels("sheet.png").reshape(-1, 3), axis=0)) > 100
    for wrong in ("--steps 0,5", "--steps five", "--schedulers hope", "--spacing dense"):
        message = run("compare-schedulers", "a cat", "--model", tiny_sd_folder, *wrong.split(), code=2).stderr
        assert wrong.split()[1].split(",")[0] in message


@in_the_box
def test_the_reader_judges_compared_schedulers():
    output = run(
        "compare-schedulers", "a red circle", *["--steps", "8", "--schedulers", "unipc", "--count", "3", "-o", "s.png"]
    ).output
    assert " of 3 as asked" in output


def test_a_spacing_is_used_and_made_again(tiny_sd_folder):
    words = ["generate", "a cat", "--model", tiny_sd_folder, *["--steps", "3", "--seed", "1", "--device", "cpu"]]
    run(*words, "--out", "plain.png")
    run(*words, "--spacing", "karras", "--out", "karras.png")
    assert not np.array_equal(pixels("plain.png"), pixels("karras.png"))
    assert read_settings(Path("karras.png"))["scheduler_config"]["_spacing"] == {"name": "karras"}
    run("again", "karras.png", "--yes")
    assert np.array_equal(pixels("karras.png"), pixels("karras-again.png"))
    run(*words, "--spacing", "dense", code=2)


def test_a_grammar_is_used_named_and_refused(tiny_sd_folder):
    words = ["generate", "a (cat:1.9)", "--model", tiny_sd_folder, *["--steps", "2", "--seed", "1", "--device", "cpu"]]
    for grammar in ("a1111", "none"):
        run(*words, "--grammar", grammar, "--out", f"{grammar}.png")
    assert not np.array_equal(pixels("a1111.png"), pixels("none.png"))
    assert read_settings(Path("a1111.png"))["prompt_weighting"] == "a1111"
    run("again", "a1111.png", "--yes")
    assert np.array_equal(pixels("a1111.png"), pixels("a1111-again.png"))
    assert "'latin'" in run(*words, "--grammar", "latin", code=1).stderr
