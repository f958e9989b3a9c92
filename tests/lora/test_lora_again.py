"""LoRAs on the command line and in pictures: recorded, made again, and refused where they are not what they were."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import langevin
from langevin.cli.app import app
from langevin.cli.choices import parse_loras
from langevin.cli.errors import BadUsage
from langevin.media.schema import WrongSettings, check_settings
from langevin.media.settings import read_settings
from tests.lora.lora_makers import fresh, random_lora


@pytest.fixture(scope="module")
def model(twins, tmp_path_factory):
    """A folder with a model and two LoRAs for it."""
    folder = tmp_path_factory.mktemp("model")
    pipe, _ = fresh(twins)
    pipe.save_pretrained(folder / "model")
    for name, seed in (("ink", 1), ("oil", 2)):
        layers = {
            f"{n}.lora.{side}.weight": tensor
            for n, pair in random_lora(pipe.unet, seed=seed, size=0.15).items()
            for side, tensor in zip(("down", "up"), pair, strict=True)
        }
        pipe.save_lora_weights(folder, unet_lora_layers=layers, weight_name=f"{name}.safetensors")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def load(model):
    pipe = langevin.DiffusionPipeline.from_pretrained(model / "model")
    pipe.set_progress_bar_config(disable=True)
    return pipe


WAYS = {
    "set_adapters": (lambda p: p.set_adapters(["ink", "oil"], [0.5, 1.2]), "a cat", {}),
    "a call's own": (lambda p: None, "a cat", {"lora": {"ink": 0.5}}),
    "in the prompt": (lambda p: p.set_adapters("oil", 0.4), "a <lora:ink:0.7>cat", {}),
    "by part and block": (
        lambda p: p.set_adapters("ink", {"unet": {"down": 0.3, "up": {"block_1": [0.2, 1.0]}}}),
        "a",
        {},
    ),
    "with a scale": (lambda p: p.set_adapters("ink", 2.0), "a cat", {"cross_attention_kwargs": {"scale": 0.5}}),
    "fused": (lambda p: p.set_adapters("ink", 0.8) or p.fuse_lora(lora_scale=0.5), "a cat", {}),
    "fused and another": (lambda p: p.set_adapters("ink") or p.fuse_lora() or p.set_adapters("oil", 0.5), "a cat", {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_pictures_record_their_loras_and_are_made_again(model, tmp_path, way):
    prepare, prompt, call = WAYS[way]
    pipe = load(model)
    plain = pipe("a cat", num_inference_steps=2, seed=3).images[0]
    for name in ("ink", "oil"):
        pipe.load_lora_weights(model / f"{name}.safetensors", adapter_name=name)
    prepare(pipe)
    picture = pipe(prompt, num_inference_steps=2, seed=3, **call).images[0]
    assert np.abs(np.asarray(plain).astype(int) - np.asarray(picture)).max() > 8
    picture.save(tmp_path / "made.png")
    settings = read_settings(tmp_path / "made.png")
    assert settings["prompt"] == prompt
    assert "not_recorded" not in settings
    used = {entry["name"] for entry in settings["loras"]}
    assert used == ({"ink", "oil"} if way in ("set_adapters", "in the prompt", "fused and another") else {"ink"})
    result = run("again", tmp_path / "made.png", "--yes")
    assert result.exit_code == 0, result.output
    assert "identical: all" in result.output


def test_pictures_without_loras_say_nothing_of_those_that_are_loaded(model):
    pipe = load(model)
    pipe.load_lora_weights(model / "ink.safetensors")
    assert "loras" in pipe("a", num_inference_steps=1, seed=1).images[0].settings
    assert "loras" not in pipe("a", num_inference_steps=1, seed=1, lora={}).images[0].settings
    pipe.load_lora_weights(dict(pipe_state(model)), adapter_name="x")
    assert pipe("a", num_inference_steps=1, seed=1).images[0].settings["not_recorded"] == [
        "the LoRA x, which came from no file"
    ]
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert pipe("a", num_inference_steps=1, seed=1).images[0].settings["not_recorded"] == ["an edited unet"]


def pipe_state(model):
    from safetensors.torch import load_file

    return load_file(model / "ink.safetensors")


def test_a_stranger_s_lora_is_not_loaded_unasked_nor_if_it_changed(model, tmp_path):
    pipe, file = load(model), tmp_path / "ink.safetensors"
    file.write_bytes((model / "ink.safetensors").read_bytes())
    pipe.load_lora_weights(file, adapter_name="ink")
    pipe("a cat", num_inference_steps=1, seed=3).images[0].save(tmp_path / "made.png")
    refused = run("again", tmp_path / "made.png", "--model", model / "model")
    assert refused.exit_code != 0
    assert f"its LoRA '{file}' cannot be loaded" in refused.output
    file.write_bytes((model / "oil.safetensors").read_bytes())
    changed = run("again", tmp_path / "made.png", "--yes")
    assert changed.exit_code != 0
    assert "another file than when the picture was made" in changed.output
    file.unlink()
    gone = run("again", tmp_path / "made.png", "--yes")
    assert gone.exit_code != 0
    assert "There is no file" in gone.output
    for result in (refused, changed, gone):
        assert len(result.output.strip().splitlines()) == 1


GOOD = {"name": "a", "file": "/a", "sha256": "0", "weights": {"unet": 1.0}}


@pytest.mark.parametrize(
    "loras",
    [7, [7], [{}], [{**GOOD, "name": 7}], [{**GOOD, "weights": 1}], [{**GOOD, "fused": {"unet": 1}}], [GOOD] * 99],
)
def test_settings_of_another_kind_are_refused(loras):
    check_settings({"loras": [GOOD]})
    with pytest.raises(WrongSettings, match="loras is"):
        check_settings({"loras": loras})


def test_pictures_of_other_programs_are_made_without_theirs(model, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a cat <lora:soft:0.6>\nSteps: 1, Sampler: DDIM, CFG scale: 7, Seed: 3, Size: 16x16")
    Image.new("RGB", (16, 16)).save(tmp_path / "theirs.png", pnginfo=info)
    result = run("again", tmp_path / "theirs.png", "--model", model / "model")
    assert result.exit_code == 0, result.output
    assert "with the LoRA soft, which is left out" in result.output


def test_the_command_line_takes_several(model, tmp_path):
    common = ("generate", "a cat", "--model", model / "model", "--seed", 3, "--steps", 2, "--out")
    for name, loras in (
        ("none", ()),
        ("ink", (f"{model}/ink.safetensors:0.8",)),
        ("zero", (f"{model}/ink.safetensors:0",)),
    ):
        result = run(*common, tmp_path / f"{name}.png", *(x for lora in loras for x in ("--lora", lora)))
        assert result.exit_code == 0, result.output
    both = ("--lora", f"{model}/ink.safetensors:0.5", "--lora", f"{model}/oil.safetensors")
    assert run(*common, tmp_path / "both.png", *both).exit_code == 0
    pixels = {name: np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("none", "ink", "zero", "both")}
    assert np.array_equal(pixels["none"], pixels["zero"])
    assert len({p.tobytes() for p in pixels.values()}) == 3
    weights = [entry["weights"]["unet"] for entry in read_settings(tmp_path / "both.png")["loras"]]
    assert weights == [0.5, 1.0]
    result = run("again", tmp_path / "both.png", "--yes")
    assert "identical: all" in result.output, result.output
    missing = run(*common, tmp_path / "x.png", "--lora", tmp_path / "none.safetensors")
    assert missing.exit_code != 0
    assert "There is no file" in missing.output


def test_what_a_lora_on_the_command_line_means(tmp_path):
    assert parse_loras([]) == []
    assert parse_loras(["a/ink.safetensors:0.8", "b/ink.bin", "owner/oil:-1"]) == [
        ("ink", "a/ink.safetensors", 0.8),
        ("ink-2", "b/ink.bin", 1.0),
        ("oil", "owner/oil", -1.0),
    ]
    for wrong in ("a:b", "ink.safetensors:much", "a:"):
        with pytest.raises(BadUsage, match="FILE:WEIGHT"):
            parse_loras([wrong])
