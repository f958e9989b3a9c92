"""What is wrong with a checkpoint is told in one line, soon, and without filling the memory: whatever part it is."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import langevin
from langevin import DiffusionPipeline
from langevin.checkpoints import boundary, settings, transformers_parts, weights
from langevin.checkpoints.config import ConfigMixin
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.folders import BOX
from tests.checkpoints.nets import one_clear_line, refused_at_once, same
from tests.helpers import reference_parts

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint with all parts, written by the reference; not to be changed."""
    parts = reference_parts(tmp_path_factory.mktemp("parts"), safety=True)
    folder = tmp_path_factory.mktemp("written") / "sd"
    diffusers.StableDiffusionPipeline(**parts, scheduler=diffusers.DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it to spoil."""
    shutil.copytree(written, tmp_path / "sd")
    return tmp_path / "sd"


def change(file: Path, **entries):
    """Change entries of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


# -- what is no file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        UNET,
        "unet/config.json",
        "scheduler/scheduler_config.json",
        TEXT,
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "feature_extractor/preprocessor_config.json",
    ],
)
def test_a_named_pipe_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with refused_at_once(Path(name).name, "a named pipe"):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model_index.json", "unet", UNET, "scheduler", TEXT, "tokenizer/tokenizer.json"])
def test_links_in_a_circle(folder, name):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(path.name)
    with refused_at_once(Path(name).name):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["model_index.json", UNET, "unet/config.json", "scheduler/scheduler_config.json", TEXT]
)
def test_a_folder_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with refused_at_once(Path(name).name):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything may be read by root")
@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_that_may_not_be_read(folder, part):
    (folder / part).chmod(0)
    try:
        with refused_at_once(part):
            DiffusionPipeline.from_pretrained(folder)
    finally:
        (folder / part).chmod(0o755)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_that_the_system_does_not_open(folder, part, monkeypatch):
    real = Path.iterdir

    def refuse(self):
        if self.name == part:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    (folder / part / "config.json").unlink(missing_ok=True)
    (folder / part / "scheduler_config.json").unlink(missing_ok=True)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with refused_at_once(part):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody-of-that-name/x"])
def test_names_that_no_folder_can_have(name):
    with refused_at_once("no folder"):
        DiffusionPipeline.from_pretrained(name)
    with refused_at_once("no folder"):
        langevin.DDIMScheduler.from_pretrained(name)


# -- numbers out of all proportion


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("unet", "layers_per_block", 10**9),
        ("unet", "layers_per_block", 10**6),
        ("unet", "cross_attention_dim", 10**9),
        ("unet", "cross_attention_dim", 10**6),
        ("unet", "block_out_channels", [10**9, 10**9]),
        ("unet", "transformer_layers_per_block", 10**6),
        ("unet", "num_class_embeds", 10**7),
        ("unet", "attention_head_dim", 10**9),
        ("vae", "layers_per_block", 10**9),
        ("vae", "latent_channels", 10**6),
        ("text_encoder", "num_hidden_layers", 10**9),
        ("text_encoder", "num_hidden_layers", 10**5),
        ("text_encoder", "hidden_size", 10**9),
        ("text_encoder", "vocab_size", 10**9),
        ("text_encoder", "max_position_embeddings", 10**9),
        ("text_encoder", "intermediate_size", 10**8),
        ("safety_checker", "projection_dim", 10**9),
    ],
)
def test_networks_that_would_be_larger_than_their_weights(folder, part, setting, value):
    change(folder / part / "config.json", **{setting: value})
    with refused_at_once(part):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_networks_alone_are_bounded_too(folder, low_cpu_mem_usage):
    change(folder / "unet/config.json", layers_per_block=10**6, cross_attention_dim=10**6)
    with refused_at_once("unet"):
        langevin.UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=low_cpu_mem_usage)


def test_schedulers_with_a_milliard_timesteps(folder):
    change(folder / "scheduler/scheduler_config.json", num_train_timesteps=10**9)
    with refused_at_once("scheduler_config.json", "'num_train_timesteps'", "1,000,000 is the most"):
        DiffusionPipeline.from_pretrained(folder)
    with refused_at_once("num_train_timesteps"):
        langevin.EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")


def test_a_number_of_five_thousand_digits(folder):
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("{", '{"n": ' + "9" * 5000 + ",", 1))
        with refused_at_once(Path(name).name, "not valid JSON"):
            DiffusionPipeline.from_pretrained(folder)
        (folder / name).write_text(text)


# -- settings of a wrong type

NEEDED = {"VQDiffusionScheduler": {"num_vec_classes": 8}}
SCHEDULERS = [name for name in langevin.__all__ if name.endswith("Scheduler")]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_refuse_settings_of_a_wrong_type_whatever_they_are(name, tmp_path):
    cls = getattr(langevin, name)
    cls(**NEEDED.get(name, {})).save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    config = json.loads(file.read_text())
    assert type(cls.from_pretrained(tmp_path)) is cls
    for key in cls._settings_names():
        for wrong in ({"a": 1}, [[["x"]]]):
            file.write_text(json.dumps({**config, key: wrong}))
            with one_clear_line("scheduler_config.json"):
                cls.from_pretrained(tmp_path)
        for odd in (None, "x", -1, 0, 2.5, []):
            file.write_text(json.dumps({**config, key: odd}))
            with contextlib.suppress(CheckpointError):  # some of these are fine for some settings
                cls.from_pretrained(tmp_path)


def test_settings_that_a_network_cannot_have(folder):
    for key, value in {"layers_per_block": "two", "down_block_types": 3, "act_fn": [], "in_channels": None}.items():
        before = (folder / "unet/config.json").read_text()
        change(folder / "unet/config.json", **{key: value})
        with refused_at_once("unet/config.json", repr(key)):
            DiffusionPipeline.from_pretrained(folder)
        (folder / "unet/config.json").write_text(before)


def test_what_json_makes_of_settings_is_taken():
    for value, hint in [
        (1, float), (2.0, int), (1, bool), ([1, 2], tuple[int, ...]), ([1, 2], tuple[int, int]), ([], list[int]),
        (None, int | None), ([[1], 2], tuple[object, ...]), ("x", str | int), (float("-inf"), float),
    ]:  # fmt: skip
        assert settings.fits(value, hint), (value, hint)
    for value, hint in [
        ("1", int), (True, int), (True, float), (2.5, int), (2, bool), ([1], tuple[int, int]), ("ab", tuple[str, ...]),
        (None, int), ([1, "x"], list[int]), ({}, str), (3, str | None),
    ]:  # fmt: skip
        assert not settings.fits(value, hint), (value, hint)


def test_every_config_that_the_library_writes_passes_the_check(tmp_path):
    for name in SCHEDULERS:
        made = getattr(langevin, name)(**NEEDED.get(name, {}))
        assert isinstance(made, ConfigMixin)
        settings.check(type(made), json.loads(made.to_json_string()), "x")


# -- weights


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", [UNET, TEXT, "safety_checker/model.safetensors"])
def test_weights_of_another_kind(folder, name, dtype):
    tensors = load_file(folder / name)
    key = next(key for key in tensors if key.endswith("weight"))
    save_file({**tensors, key: tensors[key].to(dtype)}, folder / name, metadata={"format": "pt"})
    with refused_at_once(key.split(".")[-2], str(dtype).removeprefix("torch."), "floating-point"):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("shard", ["\0", "a\0.safetensors", "x" * 300, "é" * 200, "../x", ""])
@pytest.mark.parametrize("name", [UNET, TEXT])
def test_names_of_shards_that_are_none(folder, name, shard):
    (folder / name).rename(folder / name.replace(".safetensors", "-00001-of-00001.safetensors"))
    (folder / (name + ".index.json")).write_text(json.dumps({"weight_map": {"a": shard}}))
    with refused_at_once(Path(name).name + ".index.json"):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("entries", [{}, {"weight_map": {}}, {"weight_map": None}, {"weight_map": {"a": 3}}])
@pytest.mark.parametrize("name", [UNET, TEXT])
def test_an_index_without_entries(folder, name, entries):
    (folder / name).rename(folder / name.replace(".safetensors", "-00001-of-00001.safetensors"))
    (folder / (name + ".index.json")).write_text(json.dumps(entries))
    with refused_at_once("no weight_map"):
        DiffusionPipeline.from_pretrained(folder)


def test_a_pickle_that_claims_more_than_it_holds(folder):
    (folder / UNET).unlink()
    torch.save({"conv_in.weight": torch.zeros(1).expand(10**10)}, folder / "unet/diffusion_pytorch_model.bin")
    with refused_at_once("larger than the file"):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["text_encoder", "safety_checker", "unet"])
def test_a_file_with_none_of_a_parts_weights_never_loads(folder, part):
    file = next((folder / part).glob("*.safetensors"))
    save_file({"else.weight": torch.ones(3)}, file, metadata={"format": "pt"})
    with refused_at_once(part, "else.weight"):
        DiffusionPipeline.from_pretrained(folder)
    save_file({}, file, metadata={"format": "pt"})
    with refused_at_once(part):
        DiffusionPipeline.from_pretrained(folder)


# -- transformers, old and new


def named(keys, how):
    """A CLIP text encoder's or safety checker's keys as transformers 4 or 5 writes them."""
    bare = [key.replace("text_model.", "").replace("vision_model.vision_model.", "vision_model.") for key in keys]
    if how == "5":
        return bare
    return [
        key.replace("vision_model.", "vision_model.vision_model.", 1) if key.startswith("vision_model.") else
        key if key.startswith(("concept", "special", "visual")) else f"text_model.{key}"
        for key in bare
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["4", "5"])
@pytest.mark.parametrize("part", ["text_encoder", "safety_checker"])
def test_weights_under_the_names_of_either_version_are_the_same_network(written, folder, part, how, caplog):
    expected = getattr(DiffusionPipeline.from_pretrained(written), part)
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    renamed = dict(zip(named(tensors, how), tensors.values(), strict=True))
    save_file(renamed, file, metadata={"format": "pt"})
    assert same(getattr(DiffusionPipeline.from_pretrained(folder), part), expected)
    assert not caplog.records


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "10KB"}, {"variant": "fp16"}], ids=str)
def test_what_is_written_has_the_names_that_every_version_reads(written, tmp_path, options):
    pipe = DiffusionPipeline.from_pretrained(written)
    pipe.save_pretrained(tmp_path, **options)
    for part in ("text_encoder", "safety_checker"):
        keys = [key for file in (tmp_path / part).glob("*.safetensors") for key in load_file(file)]
        assert keys
        assert sorted(keys) == sorted(named(keys, "4"))
        for index in (tmp_path / part).glob("*.index*.json"):
            assert sorted(json.loads(index.read_text())["weight_map"]) == sorted(keys)
    variant = options.get("variant")
    ours = DiffusionPipeline.from_pretrained(tmp_path, variant=variant)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, variant=variant)
    for part in ("text_encoder", "safety_checker"):
        assert same(getattr(ours, part), getattr(pipe, part))
        assert same(getattr(theirs, part), getattr(pipe, part))


def test_the_models_in_the_box_are_written_like_that():
    for file in BOX.glob("*/text_encoder/model.safetensors"):
        assert all(key.startswith("text_model.") for key in load_file(file))


def test_a_file_with_both_of_clips_models_gives_the_one_that_is_asked_for(tmp_path):
    small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    text = dict(vocab_size=20, max_position_embeddings=16, **small)
    config = transformers.CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8})
    whole = transformers.CLIPModel(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    for cls, inner in (
        (transformers.CLIPTextModel, whole.text_model),
        (transformers.CLIPVisionModel, whole.vision_model),
    ):
        made = transformers_parts.load(cls, tmp_path, "whole")
        assert [tuple(tensor.shape) for tensor in made.parameters()] == [tuple(t.shape) for t in inner.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), inner.parameters(), strict=True))


@pytest.mark.parametrize("value", [None, 3, "x", "../x", [], "bert"])
def test_a_text_encoder_of_no_known_type(folder, value):
    change(folder / "text_encoder/config.json", model_type=value, hidden_size=value)
    with refused_at_once("text_encoder"):
        DiffusionPipeline.from_pretrained(folder)


# -- tokenizers


@pytest.mark.parametrize("value", ["x", None, [], 0, -1, True])
def test_a_tokenizer_with_a_length_that_is_none(folder, value):
    change(folder / "tokenizer/tokenizer_config.json", model_max_length=value)
    if value is None:  # what transformers takes for no limit
        with contextlib.suppress(CheckpointError):
            DiffusionPipeline.from_pretrained(folder)
        return
    with refused_at_once("tokenizer"):
        DiffusionPipeline.from_pretrained(folder)


def test_a_panic_of_a_tokenizer_is_one_line_as_well(folder, monkeypatch):
    class PanicException(BaseException):
        """As that of pyo3, which is no Exception."""

    def panic(*args, **kwargs):
        raise PanicException("called `Option::unwrap()` on a `None` value\nnote: run with RUST_BACKTRACE=1")

    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "from_pretrained", panic)
    with refused_at_once("tokenizer", "unwrap"):
        DiffusionPipeline.from_pretrained(folder)
    with pytest.raises(KeyboardInterrupt), boundary.reading("x"):
        raise KeyboardInterrupt


def test_tokenizers_damaged_in_every_place(folder):
    """Some of these make the tokenizers library panic."""
    file = folder / "tokenizer/tokenizer.json"
    document = json.loads(file.read_text())
    rng = random.Random(0)
    odd = [None, 3, -1, "x", [], {}, {"type": "x"}, True, 10**9]
    for key in document:
        inner = document[key] if isinstance(document[key], dict) else {}
        for place in [None, *rng.sample(sorted(inner), min(3, len(inner)))]:
            value = rng.choice(odd)
            spoiled = {**document, key: value if place is None else {**inner, place: value}}
            file.write_text(json.dumps(spoiled))
            with contextlib.suppress(CheckpointError):
                DiffusionPipeline.from_pretrained(folder, unet=None, vae=None, text_encoder=None, safety_checker=None)


# -- parts that do not belong together


def test_words_beyond_the_text_encoders_vocabulary(folder):
    file = folder / "tokenizer/tokenizer.json"
    document = json.loads(file.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["zebra</w>"] = len(vocabulary) + 5
    file.write_text(json.dumps(document))
    with refused_at_once("tokenizer has words up to number", "vocabulary ends at"):
        DiffusionPipeline.from_pretrained(folder)


def test_a_unet_that_reads_other_texts_or_paints_other_latents(written):
    pipe = DiffusionPipeline.from_pretrained(written)
    settings = {k: v for k, v in pipe.unet.config.items() if k in pipe.unet._settings_names()}
    wide = langevin.UNet2DConditionModel(**{**settings, "cross_attention_dim": 16})
    with one_clear_line("width 16", "gives 24"):
        DiffusionPipeline.from_pretrained(written, unet=wide)
    deep = langevin.UNet2DConditionModel(**{**settings, "in_channels": 7, "out_channels": 7})
    with one_clear_line("paints 7 channels", "reads 4"):
        DiffusionPipeline.from_pretrained(written, unet=deep)
    both = langevin.UNet2DConditionModel(**{**settings, "in_channels": 9, "out_channels": 8})
    assert DiffusionPipeline.from_pretrained(written, unet=both).unet is both


# -- in memory or mapped


def test_weights_are_copied_where_that_is_asked_for(written, tmp_path):
    shutil.copytree(written, tmp_path / "sd")
    for disable_mmap in (True, False):
        pipe = DiffusionPipeline.from_pretrained(tmp_path / "sd", disable_mmap=disable_mmap)
        net = langevin.AutoencoderKL.from_pretrained(tmp_path / "sd/vae", disable_mmap=disable_mmap)
        assert same(net, pipe.vae)
    mine = langevin.AutoencoderKL.from_pretrained(tmp_path / "sd/vae", disable_mmap=True)
    file = tmp_path / "sd/vae/diffusion_pytorch_model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as opened:  # overwritten in place, as rsync --inplace does
        opened.seek(size // 2)
        opened.write(b"\xff" * (size - size // 2))
    assert same(mine, DiffusionPipeline.from_pretrained(written).vae)


def test_opening_a_file_reads_no_weights(written):
    held = weights.opened([written / UNET])
    assert held.keys() == load_file(written / UNET).keys()
    assert weights.converted(held)["conv_in.bias"].data_ptr() == held["conv_in.bias"].data_ptr()
    assert weights.converted(held, copy=True)["conv_in.bias"].data_ptr() != held["conv_in.bias"].data_ptr()


# -- what is found only when a part is used


@pytest.mark.parametrize(
    ("part", "entries", "word"),
    [
        ("text_encoder", {"layer_norm_eps": None}, "layer_norm_eps"),
        ("text_encoder", {"eos_token_id": [3]}, "eos_token_id"),
        ("unet", {"attention_head_dim": -1}, "attention_head_dim"),
        ("unet", {"norm_num_groups": -8}, "norm_num_groups"),
        ("unet", {"downsample_padding": 7}, "downsample_padding"),
    ],
)
def test_settings_that_only_a_call_would_trip_over(folder, part, entries, word):
    change(folder / part / "config.json", **entries)
    with refused_at_once(part, word):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "entries",
    [{"do_rescale": True, "rescale_factor": "x"}, {"crop_size": {"height": {}, "width": 3}}, {"size": {"x": 1}}],
)
def test_image_processors_are_tried_out(folder, entries):
    change(folder / "feature_extractor/preprocessor_config.json", **entries)
    with refused_at_once("feature_extractor"):
        DiffusionPipeline.from_pretrained(folder)


def test_a_text_encoder_is_of_its_class_whatever_its_config_says(folder):
    for odd in (None, {}, "x"):
        change(folder / "text_encoder/config.json", model_type=odd)
        pipe = DiffusionPipeline.from_pretrained(folder)
        assert pipe.text_encoder.config.model_type == "clip_text_model"


def test_a_unet_without_a_size_paints_where_one_is_given(folder):
    change(folder / "unet/config.json", sample_size=None)
    pipe = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a", num_inference_steps=1, height=16, width=16).images[0].size == (16, 16)
    with pytest.raises(ValueError, match="give height and width"):
        pipe("a", num_inference_steps=1)


def test_parts_in_place_of_a_network_have_a_config(folder):
    with one_clear_line("vae is a Linear", "a config"):
        DiffusionPipeline.from_pretrained(folder, vae=torch.nn.Linear(1, 1))


def test_parts_that_make_no_pipeline(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["feature_extractor"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    with one_clear_line("do not make a StableDiffusionPipeline", "needs a feature_extractor"):
        DiffusionPipeline.from_pretrained(folder)


def test_a_version_that_is_none(folder):
    change(folder / "unet/config.json", _diffusers_version=False)
    pipe = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a", num_inference_steps=1).images[0].size == (16, 16)
