"""Flags: the original's commands as they are written, files, and what is said of bad ones."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from langevin.training.command import run
from langevin.training.flags import BadFlags, parse, parser_of
from langevin.training.recipes import RECIPES, recipe_class

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = {
    "unconditional": """--dataset_name="huggan/flowers-102-categories" --resolution=64
        --output_dir="ddpm-ema-flowers-64" --train_batch_size=16 --num_epochs=100 --gradient_accumulation_steps=1
        --learning_rate=1e-4 --lr_warmup_steps=500 --mixed_precision=no --push_to_hub""",
    "text_to_image": """--pretrained_model_name_or_path=$MODEL --dataset_name=$DATA --use_ema --resolution=512
        --center_crop --random_flip --train_batch_size=1 --gradient_accumulation_steps=4 --gradient_checkpointing
        --max_train_steps=15000 --learning_rate=1e-05 --max_grad_norm=1 --lr_scheduler="constant" --lr_warmup_steps=0
        --output_dir="sd-naruto-model" """,
}


def flags(name, line):
    return parse(recipe_class(name).flags_class, shlex.split(line), name)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_originals_commands_are_understood(name):
    found = flags(name, COMMANDS[name])
    assert found.learning_rate == pytest.approx(1e-4 if name == "unconditional" else 1e-5)
    assert (EXAMPLES / f"train_{name}.py").exists()


def test_values_are_what_was_written():
    found = flags("text_to_image", COMMANDS["text_to_image"])
    assert (found.use_ema, found.center_crop, found.random_flip, found.gradient_checkpointing) == (True,) * 4
    assert (found.resolution, found.gradient_accumulation_steps, found.max_train_steps) == (512, 4, 15000)
    assert (found.lr_scheduler, found.lr_warmup_steps, found.max_grad_norm) == ("constant", 0, 1.0)


def test_flags_may_be_cut_short_and_spelt_with_hyphens():
    found = flags("text_to_image", "--train-batch-size 3 --resol=64 --validation_prompt 'a b' c")
    assert (found.train_batch_size, found.resolution, found.validation_prompts) == (3, 64, ["a b", "c"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--max_train_stepss=3", "nearest: --max_train_steps"),
        ("--learning_rate=fast", "--learning_rate"),
        ("--learning_rate=nan", "--learning_rate is nan"),
        ("--learning_rate=-1", "at least 0"),
        ("--train_batch_size=0", "1 to"),
        ("--train_batch_size=1.5", "--train_batch_size"),
        ("--lr_scheduler=cosinus", "cosine_with_restarts"),
        ("--lr_scheduler=piecewise_constant", "--lr_step_rules"),
        ("--mixed_precision=half", "bf16"),
        ("--resume", "--resume_from_checkpoint"),
        ("--train_data_dir=/nowhere", "/nowhere is no folder"),
        ("", "--dataset_name or --train_data_dir"),
        ("--hub_token=x --report_to=wandb --dataset_name=x", "hf auth login"),
        ("--use_8bit_adam --optimizer=prodigy --dataset_name=x", "one of them"),
        ("--snr_gamma=5 --loss_weighting=p2 --dataset_name=x", "loss_weighting=p2"),
        ("--non_ema_revision=x --dataset_name=x", "--variant=non_ema"),
        ("--output_dir=pyproject.toml --dataset_name=x", "is a file"),
        ("--config=/nowhere.toml", "/nowhere.toml"),
        ("--held_out=-1", "at least 0"),
        ("extra", "extra"),
    ],
)
def test_bad_flags_are_told_in_one_line_before_anything_is_loaded(line, said, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    kind = recipe_class("text_to_image")
    with pytest.raises(BadFlags) as caught:
        kind(parse(kind.flags_class, ["--pretrained_model_name_or_path=x", *shlex.split(line)], "x")).check()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_model_is_asked_for():
    kind = recipe_class("text_to_image")
    with pytest.raises(BadFlags, match="--pretrained_model_name_or_path is missing"):
        kind(parse(kind.flags_class, ["--dataset_name=x"], "x")).check()


def test_a_file_gives_flags_and_the_command_line_goes_before_it(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('learning_rate = 1\ntrain_batch_size = 3\nvalidation-prompts = ["a", "b"]\nuse_ema = true\n')
    found = flags("text_to_image", f"--config {file} --train_batch_size=5")
    assert (found.learning_rate, found.train_batch_size, found.use_ema) == (1, 5, True)
    assert found.validation_prompts == ["a", "b"]
    for content, said in (("x = 1", "x"), ("train_batch_size = 'a'", "train_batch_size"), ("x =", "TOML")):
        file.write_text(content)
        with pytest.raises(BadFlags, match=said):
            flags("text_to_image", f"--config {file}")


@pytest.mark.parametrize("name", RECIPES)
def test_help_says_what_every_flag_is(name):
    text = parser_of(recipe_class(name).flags_class, name).format_help()
    kind = recipe_class(name).flags_class
    parser = parser_of(kind, name)
    untold = [action.dest for action in parser._actions if not (action.help or "").split("[")[0].strip()]
    assert not untold
    assert "--train_batch_size" in text


def test_a_recipe_that_is_not_there():
    with pytest.raises(BadFlags, match="text_to_image"):
        run("text2image", [])


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [("--help", 0, "--snr_gamma"), ("--nothing", 2, "there is no flag '--nothing'"), ("", 2, "is missing")],
)
def test_scripts_end_in_one_line(line, code, said):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "train_text_to_image.py", *shlex.split(line)], capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert code == 0 or done.stderr.count("\n") == 1


def test_recipes_are_short():
    """What is special about a kind of training, and nothing else; flags and blank lines aside."""
    for name in RECIPES:
        file = Path(sys.modules[recipe_class(name).__module__].__file__)
        code = file.read_text().split("\nclass ")[-1].splitlines()
        assert len([line for line in code if line.strip()]) <= 80, name
