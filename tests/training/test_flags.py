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
    "textual_inversion": """--pretrained_model_name_or_path=$MODEL --train_data_dir=$DATA --learnable_property="object"
        --placeholder_token="<cat-toy>" --initializer_token="toy" --resolution=512 --train_batch_size=1
        --gradient_accumulation_steps=4 --max_train_steps=3000 --learning_rate=5.0e-04 --scale_lr
        --lr_scheduler="constant" --lr_warmup_steps=0 --output_dir="textual_inversion_cat" """,
    "dreambooth": """--pretrained_model_name_or_path=$MODEL --instance_data_dir=$DATA --output_dir=$OUT
        --instance_prompt="a photo of sks dog" --resolution=512 --train_batch_size=1 --learning_rate=5e-6
        --max_train_steps=400""",
    "lora": """--pretrained_model_name_or_path=$MODEL --dataset_name=$DATA --dataloader_num_workers=8 --resolution=512
        --center_crop --random_flip --train_batch_size=1 --gradient_accumulation_steps=4 --max_train_steps=15000
        --learning_rate=1e-04 --max_grad_norm=1 --lr_scheduler="cosine" --lr_warmup_steps=0 --output_dir=$OUT
        --push_to_hub --hub_model_id=$HUB --report_to=wandb --checkpointing_steps=500
        --validation_prompt="A naruto with blue eyes." --seed=1337""",
    "controlnet": """--pretrained_model_name_or_path=$MODEL --output_dir=$OUT --dataset_name=$DATA --resolution=512
        --learning_rate=1e-5 --validation_image "./one.png" "./two.png"
        --validation_prompt "red circle with blue background" "cyan circle with brown floral background"
        --train_batch_size=4""",
    "instruct_pix2pix": """--pretrained_model_name_or_path=$MODEL --dataset_name=$DATA
        --enable_xformers_memory_efficient_attention --resolution=256 --random_flip --train_batch_size=4
        --gradient_accumulation_steps=4 --gradient_checkpointing --max_train_steps=15000 --checkpointing_steps=5000
        --checkpoints_total_limit=1 --learning_rate=5e-05 --max_grad_norm=1 --lr_warmup_steps=0
        --conditioning_dropout_prob=0.05 --mixed_precision=fp16 --seed=42""",
    "custom_diffusion": """--pretrained_model_name_or_path=$MODEL --instance_data_dir=$DATA --output_dir=$OUT
        --class_data_dir=./real_reg/samples_cat/ --with_prior_preservation --real_prior --prior_loss_weight=1.0
        --class_prompt="cat" --num_class_images=200 --instance_prompt="photo of a <new1> cat" --resolution=512
        --train_batch_size=2 --learning_rate=1e-5 --lr_warmup_steps=0 --max_train_steps=250 --scale_lr --hflip
        --modifier_token "<new1>" --validation_prompt="<new1> cat sitting in a bucket" --report_to="wandb" """,
}
SCRIPTS = {"textual_inversion": "textual_inversion.py", "lora": "train_text_to_image_lora.py"}
RATES = {"unconditional": 1e-4, "textual_inversion": 5e-4, "dreambooth": 5e-6, "lora": 1e-4, "instruct_pix2pix": 5e-5}


def flags(name, line):
    return parse(recipe_class(name).flags_class, shlex.split(line), name)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_originals_commands_are_understood(name):
    found = flags(name, COMMANDS[name])
    assert found.learning_rate == pytest.approx(RATES.get(name, 1e-5))
    assert (EXAMPLES / SCRIPTS.get(name, f"train_{name}.py")).exists()


def test_every_recipe_has_a_command_of_the_original():
    assert COMMANDS.keys() == RECIPES.keys()
    assert (EXAMPLES / "train_dreambooth_flax.py").exists()


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
