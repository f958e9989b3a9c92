"""``langevin prompt``: what it says of a prompt, for people and as JSON."""

import json

import pytest
from typer.testing import CliRunner

from langevin.cli.app import app
from langevin.cli.prompt import colour


@pytest.fixture
def prompt(tiny_sd_folder, monkeypatch, tmp_path):
    """``prompt(words…)`` runs the command on a checkpoint whose tokens are single letters, 14 to a chunk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LANGEVIN_DEBUG", raising=False)

    def run(*arguments, code=0, model=tiny_sd_folder):
        result = CliRunner().invoke(app, ["prompt", *map(str, arguments), "--model", str(model)])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    return run


def words(part):
    return [[(word["text"], word["weight"]) for word in chunk] for chunk in part["chunks"]]


def test_tokens_and_weights_are_printed(prompt):
    lines = prompt("a (red cat)1.3 dog--").stdout.splitlines()
    assert lines == ["10 tokens of 14", "  a r·e·d c·a·t ×1.3 d·o·g ×0.81"]
    assert prompt("").stdout.splitlines() == ["0 tokens of 14", "  (empty)"]


def test_json_has_every_token(prompt):
    said = json.loads(prompt("a b+", "--json").stdout)
    assert {k: said[k] for k in ("prompt", "grammar", "room", "steps")} == {
        "prompt": "a b+", "grammar": "compel", "room": 14, "steps": 50,
    }  # fmt: skip
    ((state,),) = [said["schedule"]]
    assert (state["from"], state["prompt"]) == (0, "a b+")
    (part,) = state["parts"]
    assert (part["kind"], part["weight"]) == ("text", 1)
    assert words(part) == [[("a", 1), ("b", 1.1)]]
    assert part["chunks"][0][0]["tokens"] == ["a</w>"]
    assert all(isinstance(n, int) for word in part["chunks"][0] for n in word["ids"])


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        ("compel", [("a:1.5", 1), ("[b]", 1)]),  # whose brackets need a weight behind them
        ("a1111", [("a", 1.5), ("b", round(1 / 1.1, 6))]),
        ("comfyui", [("a", 1.5), ("[b]", 1)]),
        ("none", [("(a:1.5)", 1), ("[b]", 1)]),
    ],
)
def test_each_grammar_reads_it_in_its_own_way(prompt, grammar, expected):
    said = json.loads(prompt("(a:1.5) [b]", "--grammar", grammar, "--json").stdout)
    (chunk,) = words(said["schedule"][0]["parts"][0])
    together = {}
    for text, weight in chunk:
        together[weight] = together.get(weight, "") + text.replace(" ", "")
    wanted = {}
    for text, weight in expected:
        wanted[weight] = wanted.get(weight, "") + text
    assert together == wanted


def test_long_prompts_are_shown_in_chunks(prompt):
    lines = prompt("abcdefgh ijklmnop qr").stdout.splitlines()
    assert lines[0].startswith("chunk 1 of 2: ")
    assert lines[0].endswith(" tokens of 14")
    assert lines[2].startswith("chunk 2 of 2: ")
    assert "".join(lines[1::2]).replace("·", "").split() == ["abcdefgh", "ijklmnop", "qr"]
    assert prompt("a BREAK b", "--grammar", "a1111").stdout.count("chunk") == 2


def test_blends_and_conjunctions_are_shown_with_their_weights(prompt):
    lines = prompt('("a", "b").blend(0.7, 0.3)').stdout.splitlines()
    assert lines == [
        "blend of 2, weights made to sum to 1",
        "  1 token of 14, times 0.7", "    a", "  1 token of 14, times 0.3", "    b",
    ]  # fmt: skip
    assert "times 0.5" in prompt('("a", "b").and(1, 0.5)').stdout
    said = json.loads(prompt('("a", "b").blend(1, 2, no_normalize)', "--json").stdout)
    (blend,) = said["schedule"][0]["parts"]
    assert (blend["kind"], blend["normalise"]) == ("blend", False)
    assert [part["weight"] for part in blend["parts"]] == [1, 2]


def test_edited_prompts_are_shown_step_by_step(prompt):
    lines = prompt("a [b:c:0.5]", "--steps", 10).stdout.splitlines()
    assert [lines[0], lines[2], lines[3], lines[5]] == ["from step 1 of 10", "  a b", "from step 6 of 10", "  a c"]
    text = prompt("[b|c]", "--steps", 30).stdout
    assert "and 18 more" in text
    said = json.loads(prompt("[b|c]", "--steps", 30, "--json").stdout)
    assert [state["from"] for state in said["schedule"]] == list(range(30))
    assert "step" not in prompt("[b|c]", "--grammar", "none").stdout


def test_letters_outside_ascii_are_shown_as_letters(prompt):
    assert "é" in prompt("é").stdout


@pytest.mark.parametrize(
    ("words", "under"), [(('("a", "b").and(1, 2, 3)',), "and"), (("x AND y", "--grammar", "a1111"), "AND")]
)
def test_a_mistake_is_shown_with_a_caret_and_exit_code_2(prompt, words, under):
    said = prompt(*words, code=2).stderr
    first, line, caret = said.rstrip("\n").split("\n")
    assert first.startswith("langevin: ")
    assert line.strip() == words[0]
    assert line[caret.index("^") :].startswith(under)


def test_wrong_options_are_one_line_and_exit_code_2(prompt, tmp_path):
    assert "compel, a1111, comfyui, none" in prompt("a", "--grammar", "klingon", code=2).stderr
    assert prompt("a", model=tmp_path / "nowhere", code=1).stderr.count("\n") == 1
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", "unet": ["x", "y"]}))
    assert "takes no prompt" in prompt("a", model=tmp_path, code=2).stderr


def test_colours_tell_more_from_less():
    assert colour(1) == ""
    assert len({colour(w) for w in (0, 0.5, 0.9, 1, 1.1, 1.4, 2)}) == 7
    assert colour(-1) == colour(0)


def test_a_prompt_comes_from_standard_input(tiny_sd_folder):
    result = CliRunner().invoke(app, ["prompt", "-", "--model", str(tiny_sd_folder)], input="a b+\n")
    assert "×1.1" in result.stdout


def test_loras_are_named_and_are_no_text(prompt):
    lines = prompt("a cat <lora:ink:0.8>").stdout.splitlines()
    assert lines == ["LoRA: ink 0.8", "4 tokens of 14", "  a c·a·t"]
    assert json.loads(prompt("a withLora(x)", "--json").stdout)["loras"] == {"x": 1.0}
    assert "loras" not in json.loads(prompt("a <lora:x>", "--json", "--grammar", "none").stdout)
    assert "write <lora:name:0.8>" in prompt("<lora:x:much>", code=2).output
