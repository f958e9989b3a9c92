"""The base of pipelines: parts in, parts out, across libraries and years; and what is said when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import langevin
from langevin import DDIMPipeline, DDPMPipeline, DiffusionPipeline, StableDiffusionPipeline
from langevin.checkpoints.config import register_to_config
from langevin.checkpoints.folders import BOX
from langevin.models.base import ModelMixin
from tests.checkpoints.nets import names, one_clear_line, same
from tests.helpers import reference_parts

NETWORKS = ("vae", "text_encoder", "unet", "safety_checker")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The reference's pipeline with all parts, safety checker included."""
    parts = reference_parts(tmp_path_factory.mktemp("parts"), safety=True)
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear")
    return diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler)


@pytest.fixture(scope="module")
def written(reference, tmp_path_factory):
    """The folder that the reference writes; not to be changed."""
    folder = tmp_path_factory.mktemp("written") / "sd"
    reference.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it to play with."""
    shutil.copytree(written, tmp_path / "sd")
    return tmp_path / "sd"


@pytest.fixture
def pipe(written):
    return DiffusionPipeline.from_pretrained(written)


def alike(ours, theirs, parts=NETWORKS):
    """Whether two pipelines have the same weights, tokenizer and settings."""
    for name in parts:
        assert same(getattr(ours, name), getattr(theirs, name)), name
    text = ["a Cat, on a mat!", "x"]
    assert ours.tokenizer(text).input_ids == theirs.tokenizer(text).input_ids
    assert ours.tokenizer.model_max_length == theirs.tokenizer.model_max_length
    return True


def index(folder, **changes):
    """Change entries of model_index.json; ``...`` takes one out."""
    entries = json.loads((folder / "model_index.json").read_text())
    entries = {k: v for k, v in {**entries, **changes}.items() if v is not ...}
    (folder / "model_index.json").write_text(json.dumps(entries))
    return folder


# -- from one library to the other


def test_folders_of_the_reference_load_here_and_folders_written_here_load_there(reference, written, pipe, tmp_path):
    assert type(pipe) is StableDiffusionPipeline
    assert alike(pipe, reference)
    assert not any(network.training for network in pipe._networks().values())
    pipe.save_pretrained(tmp_path / "ours")
    assert names(tmp_path / "ours") == names(written)
    ours, theirs = ((place / "model_index.json").read_text() for place in (tmp_path / "ours", written))
    assert json.loads(ours) == json.loads(theirs)
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(back) is diffusers.StableDiffusionPipeline
    assert alike(pipe, back)
    assert {k: v for k, v in back.scheduler.config.items() if k[0] != "_"} == {
        k: v for k, v in pipe.scheduler.config.items() if k[0] != "_"
    }
    assert alike(DiffusionPipeline.from_pretrained(tmp_path / "ours"), reference)


@pytest.mark.parametrize(
    "options", [{"variant": "fp16"}, {"safe_serialization": False}, {"max_shard_size": "40KB"}], ids=str
)
def test_variants_pickles_and_shards_cross_over_too(reference, tmp_path, options):
    variant = options.get("variant")
    reference.save_pretrained(tmp_path / "theirs", **options)
    ours = DiffusionPipeline.from_pretrained(tmp_path / "theirs", variant=variant)
    assert alike(ours, reference)
    ours.save_pretrained(tmp_path / "ours", **options)
    if "max_shard_size" not in options:
        assert names(tmp_path / "ours") == names(tmp_path / "theirs")
    assert alike(ours, diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours", variant=variant))


@pytest.mark.parametrize("name", ["DDPMPipeline", "DDIMPipeline"])
def test_unconditional_pipelines_cross_over(name, tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8,
        layers_per_block=1,
    )
    scheduler = getattr(diffusers, name.replace("Pipeline", "Scheduler"))(num_train_timesteps=50)
    getattr(diffusers, name)(unet.eval(), scheduler).save_pretrained(tmp_path / "theirs")
    ours = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(ours).__name__ == name
    assert same(ours.unet, unet)
    ours.save_pretrained(tmp_path / "ours")
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(back).__name__ == name
    assert same(back.unet, unet)
    assert back.scheduler.config.num_train_timesteps == 50


# -- checkpoints of earlier years


def test_a_checkpoint_of_2022(reference, folder):
    """Pickles only, old keys everywhere, an index with fewer entries, a feature extractor of the first format."""
    index(folder, _diffusers_version="0.6.0", feature_extractor=["transformers", "CLIPFeatureExtractor"])
    index(folder, image_encoder=..., requires_safety_checker=...)

    stem = "diffusion_pytorch_model"
    vae = load_file(folder / f"vae/{stem}.safetensors")
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in older.items():
        vae = {
            key.replace(f".{new}.", f".{old}.") if "mid_block.attentions" in key else key: t for key, t in vae.items()
        }
    assert any("proj_attn" in key for key in vae)
    torch.save(vae, folder / f"vae/{stem}.bin")
    torch.save(load_file(folder / f"unet/{stem}.safetensors"), folder / f"unet/{stem}.bin")
    for part in ("vae", "unet"):
        (folder / part / f"{stem}.safetensors").unlink()
        config = json.loads((folder / part / "config.json").read_text())
        config = {k: v for k, v in config.items() if v is not None} | {"_diffusers_version": "0.6.0"}
        config.pop("scaling_factor", None)
        (folder / part / "config.json").write_text(json.dumps(config))

    text = load_file(folder / "text_encoder/model.safetensors")
    text = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in text.items()}
    text["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    (folder / "text_encoder/model.safetensors").unlink()
    torch.save(text, folder / "text_encoder/pytorch_model.bin")
    safety = load_file(folder / "safety_checker/model.safetensors")
    inner = "vision_model.vision_model."
    safety = {key if key.startswith(inner) else key.replace("vision_model.", inner, 1): t for key, t in safety.items()}
    (folder / "safety_checker/model.safetensors").unlink()
    torch.save(safety, folder / "safety_checker/pytorch_model.bin")

    old_extractor = {"crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "size": 32}
    old_extractor |= {"feature_extractor_type": "CLIPFeatureExtractor", "resample": 3}
    (folder / "feature_extractor/preprocessor_config.json").write_text(json.dumps(old_extractor))
    scheduler = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_schedule": "scaled_linear"}
    scheduler |= {"skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))

    pipe = DiffusionPipeline.from_pretrained(folder)
    assert alike(pipe, reference)
    assert pipe.image_encoder is None
    assert pipe.config.requires_safety_checker
    assert (
        pipe.feature_extractor.crop_size == {"height": 32, "width": 32} or pipe.feature_extractor.crop_size.height == 32
    )
    assert pipe("a", 16, 16, num_inference_steps=1, output_type="pt").images.shape == (1, 3, 16, 16)
    assert pipe.size(None, None) == (128, 128), "their sample_size is not to be trusted: 64, as in the reference"
    pipe.save_pretrained(folder)
    assert alike(diffusers.DiffusionPipeline.from_pretrained(folder), reference)
    assert not [name for name in names(folder) if name.endswith(".bin")], "the old pickles are gone"


@pytest.mark.parametrize("library", ["diffusers", "langevin", "stable_diffusion", "alt_diffusion", "deprecated"])
def test_libraries_of_parts(folder, library):
    index(folder, safety_checker=[library, "StableDiffusionSafetyChecker"], unet=[library, "UNet2DConditionModel"])
    index(folder, scheduler=[library, "PNDMScheduler"])
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe.safety_checker).__module__ == "langevin.models.encoders.safety_checker"
    assert pipe.config["safety_checker"] == ("stable_diffusion", "StableDiffusionSafetyChecker")
    assert pipe.config["unet"] == ("diffusers", "UNet2DConditionModel")


@pytest.mark.parametrize("name", ["CLIPFeatureExtractor", "CLIPImageProcessor", "CLIPImageProcessorPil"])
def test_image_processors_by_all_their_names(folder, name, capfd):
    pipe = DiffusionPipeline.from_pretrained(index(folder, feature_extractor=["transformers", name]))
    assert pipe.feature_extractor(torch.zeros(3, 40, 40).numpy(), return_tensors="pt").pixel_values.shape[-1] == 32
    assert "torchvision" not in "".join(capfd.readouterr())


def test_tokenizers_as_one_file_or_as_two(reference, folder):
    tokenizer = folder / "tokenizer"
    whole = {"tokenizer.json", "tokenizer_config.json"}
    assert set(names(tokenizer)) == whole
    assert alike(DiffusionPipeline.from_pretrained(folder), reference)
    parts = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "vocab.json").write_text(json.dumps(parts["vocab"]))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert alike(pipe, reference)
    pipe.save_pretrained(folder)
    assert set(names(tokenizer)) == whole, "files of the old form would contradict the new"


def test_a_variant_is_taken_where_it_is_there(reference, folder):
    unet = folder / "unet/diffusion_pytorch_model.safetensors"
    unet.rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert alike(DiffusionPipeline.from_pretrained(folder, variant="fp16"), reference)
    with one_clear_line("unet", "it has diffusion_pytorch_model.fp16.safetensors"):
        DiffusionPipeline.from_pretrained(folder)
    with one_clear_line("'bf16'", "variants there: fp16"):
        DiffusionPipeline.from_pretrained(folder, variant="bf16")


def test_a_variant_that_no_part_has(written):
    with one_clear_line("'fp16'", "no variants"):
        DiffusionPipeline.from_pretrained(written, variant="fp16")


# -- what is asked for


def test_parts_and_settings_can_be_replaced(written, pipe):
    scheduler = langevin.DDIMScheduler()
    made = DiffusionPipeline.from_pretrained(
        written, unet=pipe.unet, scheduler=scheduler, safety_checker=None, requires_safety_checker=False
    )
    assert made.unet is pipe.unet
    assert made.scheduler.config.num_train_timesteps == 1000
    assert made.safety_checker is None
    assert made.config.requires_safety_checker is False
    assert made.config["safety_checker"] == (None, None)
    assert type(made.feature_extractor).__name__.startswith("CLIPImageProcessor")


def test_parts_given_are_not_looked_for(folder, pipe):
    for name in ("unet", "safety_checker", "tokenizer"):
        shutil.rmtree(folder / name)
    parts = {"unet": pipe.unet, "safety_checker": None, "tokenizer": pipe.tokenizer}
    assert DiffusionPipeline.from_pretrained(folder, **parts).unet is pipe.unet
    assert DiffusionPipeline.from_pretrained(folder, unet=None, safety_checker=None, tokenizer=None).unet is None


def test_dtypes_for_all_or_for_each(written):
    assert DiffusionPipeline.from_pretrained(written, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    made = DiffusionPipeline.from_pretrained(written, dtype={"unet": "float16", "default": torch.bfloat16})
    assert {name: network.dtype for name, network in made._networks().items()} == {
        "vae": torch.bfloat16,
        "text_encoder": torch.bfloat16,
        "unet": torch.float16,
        "safety_checker": torch.bfloat16,
    }
    made = DiffusionPipeline.from_pretrained(written, torch_dtype={"unet": torch.float16})
    assert (made.unet.dtype, made.vae.dtype, made.text_encoder.dtype) == (torch.float16, torch.float32, torch.float32)


def test_half_precision_files_load_in_single_precision_as_in_the_reference(pipe, tmp_path):
    pipe.to(torch.float16).save_pretrained(tmp_path)
    ours, theirs = (library.DiffusionPipeline.from_pretrained(tmp_path) for library in (langevin, diffusers))
    assert {n.dtype for n in ours._networks().values()} == {torch.float32}
    assert alike(ours, theirs)


def test_one_class_reads_anothers_folder(written, tmp_path):
    class Variation(StableDiffusionPipeline):
        pass

    assert type(Variation.from_pretrained(written)) is Variation


def test_slow_loading_gives_the_same(written, pipe):
    assert alike(DiffusionPipeline.from_pretrained(written, low_cpu_mem_usage=False), pipe)


def test_a_pipeline_in_a_subfolder_and_by_a_home_path(written, tmp_path, monkeypatch):
    shutil.copytree(written, tmp_path / "deep/er/sd")
    assert DiffusionPipeline.from_pretrained(tmp_path / "deep", subfolder="er/sd").unet is not None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DiffusionPipeline.from_pretrained("~/deep/er/sd").unet is not None


def test_nothing_is_logged_or_printed_when_all_is_well(written, caplog, capfd):
    DiffusionPipeline.from_pretrained(written)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_unknown_arguments_and_entries_are_told_once(folder, caplog):
    index(folder, colour="red", helper=["diffusers", "UNet2DModel"], nothing=[None, None])
    DiffusionPipeline.from_pretrained(folder, safty_checker=None)
    told = [r.message for r in caplog.records if r.name == "langevin.pipelines.loading"]
    assert len(told) == 2
    assert "safty_checker (nearest: safety_checker" in told[0]
    assert "colour, helper" in told[1]


# -- parts


def test_components_and_config_follow_assignment(pipe):
    assert list(pipe.components) == [
        *("vae", "text_encoder", "tokenizer", "unet", "scheduler"),
        *("safety_checker", "feature_extractor", "image_encoder"),
    ]
    scheduler = langevin.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler = scheduler
    assert pipe.components["scheduler"] is scheduler
    assert pipe.config.scheduler == ("diffusers", "EulerDiscreteScheduler")
    pipe.safety_checker = None
    assert pipe.config["safety_checker"] == (None, None)
    pipe.remark = "not a part"
    assert "remark" not in pipe.components
    assert "remark" not in pipe.config
    shared = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    assert shared.unet is pipe.unet


def test_the_config_has_what_the_references_has(reference, written, pipe):
    theirs = diffusers.DiffusionPipeline.from_pretrained(written)
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in pipe.config.items() if not k.startswith("_")} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in theirs.config.items() if not k.startswith("_")
    }
    assert pipe.name_or_path == str(written)
    assert pipe.unet.config._name_or_path == theirs.unet.config._name_or_path
    assert json.loads(repr(pipe).split(maxsplit=1)[1])["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_a_compiled_network_is_saved_as_what_it_is(pipe, tmp_path):
    unet = pipe.unet
    pipe.unet = torch.compile(unet)
    assert pipe.config["unet"] == ("diffusers", "UNet2DConditionModel")
    pipe.save_pretrained(tmp_path)
    assert same(DiffusionPipeline.from_pretrained(tmp_path).unet, unet)


def test_parts_of_ones_own(tmp_path, monkeypatch):
    class Dot(ModelMixin):
        @register_to_config
        def __init__(self, size=3):
            super().__init__()
            self.linear = torch.nn.Linear(size, size)

    class DotPipeline(DiffusionPipeline):
        _optional_components = ["extra"]

        def __init__(self, dot, extra=None, colour="red"):
            super().__init__()
            self.register_modules(dot=dot, extra=extra)
            self.register_to_config(colour=colour)

    Dot.__module__ = "langevin.dot"
    monkeypatch.setattr(langevin, "__all__", [*langevin.__all__, "Dot", "DotPipeline"])
    monkeypatch.setattr(langevin, "Dot", Dot, raising=False)
    monkeypatch.setattr(langevin, "DotPipeline", DotPipeline, raising=False)
    made = DotPipeline(Dot(size=5).eval(), colour="blue")
    made.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is DotPipeline
    assert same(again.dot, made.dot)
    assert again.config.colour == "blue"
    assert DiffusionPipeline.from_pretrained(tmp_path, colour="green").config.colour == "green"


def test_from_pipe_shares_parts(pipe):
    pipe.to(torch.float16)
    made = StableDiffusionPipeline.from_pipe(pipe, safety_checker=None, requires_safety_checker=False)
    assert made.unet is pipe.unet
    assert made.safety_checker is None
    assert made.dtype == torch.float16
    assert made.name_or_path == pipe.name_or_path
    assert StableDiffusionPipeline.from_pipe(pipe, torch_dtype=torch.float32).dtype == torch.float32
    with one_clear_line("StableDiffusionPipeline needs vae, text_encoder, tokenizer", "DDPMPipeline lacks"):
        StableDiffusionPipeline.from_pipe(DDPMPipeline(pipe.unet, pipe.scheduler))


# -- where they live


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.float64,), {}),
        (("cpu", torch.float64), {}),
        ((torch.device("cpu"), torch.float64), {}),
        ((torch.float64, "cpu"), {}),
        (("cpu",), {"dtype": torch.float64}),
        ((), {"device": "cpu", "dtype": torch.float64}),
        ((), {"torch_device": "cpu", "torch_dtype": torch.float64}),
        ((None, torch.float64), {}),
        ((torch.float64,), {"silence_dtype_warnings": True}),
    ],
)
def test_to_takes_the_references_arguments(pipe, args, kwargs):
    assert pipe.to(*args, **kwargs) is pipe
    assert {network.dtype for network in pipe._networks().values()} == {torch.float64}
    assert pipe.device == torch.device("cpu")
    assert pipe._execution_device == torch.device("cpu")


def test_to_nothing_and_to_too_much(pipe):
    assert pipe.to().dtype == torch.float32
    assert pipe.to("meta").device.type == "meta"
    with pytest.raises(ValueError, match="at most one of each"):
        pipe.to("cpu", device="meta")
    with pytest.raises(ValueError, match="at most one of each"):
        pipe.to(torch.float16, torch.float32)
    with pytest.raises(ValueError, match="takes device and dtype"):
        pipe.to(colour="red")


def test_half_precision_on_the_cpu_is_told_in_one_line(pipe, caplog):
    pipe.to(torch.float16)
    assert not caplog.records
    pipe.to("cpu", silence_dtype_warnings=True)
    assert not caplog.records
    pipe.to("cpu")
    assert len(caplog.records) == 1
    assert "slow on a CPU" in caplog.text


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_gives_the_same_pictures(written, way):
    pipe = DiffusionPipeline.from_pretrained(written)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "seed": 3, "output_type": "pt"}
    before = pipe("a cat", **options).images
    getattr(pipe, way)(device="cpu")  # the hooks run although there is nowhere else to go
    assert hasattr(pipe.unet, "_hf_hook")
    assert not hasattr(pipe.safety_checker, "_hf_hook")
    assert torch.equal(pipe("a cat", **options).images, before)
    with pytest.raises(ValueError, match="remove_all_hooks"):
        pipe.to("meta")
    pipe.to("cpu")
    assert not hasattr(pipe.unet, "_hf_hook")
    assert pipe._offload_device is None
    assert torch.equal(pipe("a cat", **options).images, before)


def test_offloading_without_accelerate_or_accelerator(pipe, monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="this machine has none"):
            pipe.enable_model_cpu_offload()
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for way in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        with pytest.raises(ImportError, match="pip install accelerate"):
            way(device="cpu")


def test_switches_that_people_type(pipe):
    pipe.enable_attention_slicing()
    pipe.disable_attention_slicing()
    pipe.enable_xformers_memory_efficient_attention()
    pipe.disable_xformers_memory_efficient_attention()
    pipe.enable_vae_slicing()
    assert pipe.vae.use_slicing
    pipe.disable_vae_slicing()
    assert not pipe.vae.use_slicing
    pipe.enable_vae_tiling()
    assert pipe.vae.use_tiling
    pipe.disable_vae_tiling()
    assert not pipe.vae.use_tiling
    pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
    pipe.disable_freeu()
    with pytest.raises(ValueError, match=r"no vae with enable_slicing\(\)"):
        DDPMPipeline(pipe.unet, pipe.scheduler).enable_vae_slicing()


def test_progress_bars(pipe, capfd):
    assert list(pipe.progress_bar([1, 2])) == [1, 2]
    assert "2/2" in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    with pipe.progress_bar(total=3) as bar:
        bar.update()
    assert capfd.readouterr().err == ""
    assert DiffusionPipeline._progress_bar_config == {}
    with pytest.raises(ValueError, match="iterable or a total"):
        pipe.progress_bar()


def test_numpy_to_pil():
    assert DiffusionPipeline.numpy_to_pil(torch.zeros(2, 4, 4, 3).numpy())[1].size == (4, 4)


# -- something is wrong: one clear line


def test_missing_folder_and_half_a_folder(folder, tmp_path):
    with one_clear_line(f"no folder {tmp_path}/none"):
        DiffusionPipeline.from_pretrained(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with one_clear_line("no model_index.json", "empty", "nothing"):
        DiffusionPipeline.from_pretrained(tmp_path / "empty")
    with one_clear_line("no model_index.json", "diffusion_pytorch_model.safetensors"):
        DiffusionPipeline.from_pretrained(folder / "unet")
    with one_clear_line("is a file"):
        DiffusionPipeline.from_pretrained(folder / "model_index.json")


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "text_encoder", "tokenizer", "feature_extractor"])
def test_a_part_without_its_folder_or_with_an_empty_one(folder, part):
    shutil.rmtree(folder / part)
    with one_clear_line(part, "no folder", "incomplete", f"pass {part}="):
        DiffusionPipeline.from_pretrained(folder)
    (folder / part).mkdir()
    with one_clear_line(part):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "safety_checker"])
@pytest.mark.parametrize("damage", ["weights gone", "config gone", "weights cut", "config cut", "wrong shapes"])
def test_a_damaged_network(folder, part, damage):
    weights = next((folder / part).glob("*.safetensors"))
    config = folder / part / "config.json"
    if damage == "weights gone":
        weights.unlink()
        words = ["model", ".safetensors"]
    elif damage == "config gone":
        config.unlink()
        words = ["no config.json"]
    elif damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-100])
        words = []
    elif damage == "config cut":
        config.write_text(config.read_text()[:-20])
        words = ["not valid JSON", "config.json"]
    else:
        tensors = load_file(weights)
        key = next(key for key in tensors if key.endswith("weight") and tensors[key].ndim == 2)
        tensors[key] = torch.ones(3, 5)
        save_file(tensors, weights, metadata={"format": "pt"})
        words = [key, "3, 5"]
    with one_clear_line(part, *words):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "StabelDiffusionPipeline"}, ["'StabelDiffusionPipeline'", "nearest: StableDiffusionPipeline"]),
        ({"_class_name": "Zzz"}, ["'Zzz'", "does not have", "it has:", "DDPMPipeline"]),
        ({"_class_name": "UNet2DModel"}, ["'UNet2DModel'"]),
        ({"_class_name": "OnnxStableDiffusionPipeline"}, ["only PyTorch weights are read"]),
        ({"_class_name": ["my_pipeline", "MyPipeline"]}, ["Python file", "never run"]),
        ({"_class_name": ...}, ["no _class_name"]),
        ({"unet": ["diffusers", "UNet2DConditonModel"]}, ["unet", "nearest: UNet2DConditionModel"]),
        ({"unet": ["os", "system"]}, ["'system'", "does not have"]),
        ({"unet": ["subprocess", "Popen"]}, ["'Popen'", "does not have"]),
        ({"unet": ["transformers", "pipeline"]}, ["no model, tokenizer or processor 'pipeline'"]),
        ({"unet": ["transformers", "Trainer"]}, ["no model, tokenizer or processor 'Trainer'"]),
        ({"unet": ["diffusers", "StableDiffusionPipeline"]}, ["unet"]),
        ({"unet": ["onnxruntime", "OnnxRuntimeModel"]}, ["only PyTorch weights are read"]),
        ({"unet": ["diffusers", "FlaxUNet2DConditionModel"]}, ["only PyTorch weights are read"]),
        ({"unet": "UNet2DConditionModel"}, ["unet"]),
        ({"unet": ["diffusers"]}, ["unet"]),
        ({"unet": [1, 2]}, ["unet", "[library, class]"]),
        ({"unet": ...}, ["lists no 'unet'", "StableDiffusionPipeline needs", "pass unet="]),
        ({"unet": ["diffusers", "AutoencoderKL"]}, ["unet"]),
        # out of the folder
        ({"unet": ["../evil", "UNet2DConditionModel"]}, ["'../evil'", "leads out of its folder"]),
        ({"unet": ["diffusers", "../../UNet"]}, ["leads out of its folder"]),
        ({"../unet": ["diffusers", "UNet2DConditionModel"]}, ["'../unet'", "leads out of its folder"]),
        ({"/etc": ["diffusers", "UNet2DConditionModel"]}, ["'/etc'", "leads out of its folder"]),
        ({"..": ["diffusers", "UNet2DConditionModel"]}, ["leads out of its folder"]),
        ({"_class_name": "../../evil"}, ["leads out of its folder"]),
    ],
    ids=str,
)
def test_a_bad_index(folder, changes, words):
    with one_clear_line(*words):
        DiffusionPipeline.from_pretrained(index(folder, **changes))


def test_an_index_that_is_no_json(folder):
    (folder / "model_index.json").write_text("{")
    with one_clear_line("model_index.json", "not valid JSON"):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "scheduler", "tokenizer"])
def test_parts_that_are_links_out_of_the_folder(folder, tmp_path, part):
    (folder / part).rename(tmp_path / "elsewhere")
    (folder / part).symlink_to(tmp_path / "elsewhere")
    with one_clear_line("leads out of its folder", "elsewhere"):
        DiffusionPipeline.from_pretrained(folder)
    (folder / part).unlink()
    (folder / part).mkdir()
    for name in names(tmp_path / "elsewhere"):
        (folder / part / name).symlink_to(tmp_path / "elsewhere" / name)
    with one_clear_line("leads out of its folder"):
        DiffusionPipeline.from_pretrained(folder)


def test_a_text_encoders_index_that_points_outside(reference, folder, tmp_path):
    reference.text_encoder.save_pretrained(folder / "text_encoder", max_shard_size="10KB")
    (folder / "text_encoder/model.safetensors").unlink()
    place = folder / "text_encoder/model.safetensors.index.json"
    entries = json.loads(place.read_text())
    assert alike(DiffusionPipeline.from_pretrained(folder), reference)
    shard = next(iter(entries["weight_map"].values()))
    (folder / "text_encoder" / shard).rename(tmp_path / shard)
    with one_clear_line(shard, "incomplete"):
        DiffusionPipeline.from_pretrained(folder)
    moved = {k: f"../../{v}" if v == shard else v for k, v in entries["weight_map"].items()}
    place.write_text(json.dumps({**entries, "weight_map": moved}))
    with one_clear_line("leads out of its folder"):
        DiffusionPipeline.from_pretrained(folder)


def test_replacements_of_the_wrong_kind(written, pipe, caplog):
    with one_clear_line("unet is a int", "UNet2DConditionModel"):
        DiffusionPipeline.from_pretrained(written, unet=3)
    with one_clear_line("scheduler is a str", "another scheduler"):
        DiffusionPipeline.from_pretrained(written, scheduler="euler")
    own = torch.nn.Linear(1, 1)
    own.config = pipe.unet.config
    made = DiffusionPipeline.from_pretrained(written, unet=own, safety_checker=None)
    assert made.unet is own
    assert not caplog.records
    DDPMPipeline.from_pretrained(written, unet=pipe.vae)
    assert "unet is a AutoencoderKL" in caplog.text


# -- nothing in a checkpoint runs


def test_code_in_a_checkpoint_is_never_run(folder, tmp_path):
    code = f"open({str(tmp_path / 'exploded')!r}, 'w')\nclass MyPipeline: pass\nclass MyUNet: pass\n"
    for place in ("pipeline.py", "my_pipeline.py", "unet/my_unet.py", "__init__.py", "text_encoder/modeling.py"):
        (folder / place).write_text(code)
    for part in ("text_encoder", "unet"):
        config = json.loads((folder / part / "config.json").read_text())
        config["auto_map"] = {"AutoModel": "modeling.MyUNet", "AutoConfig": "modeling.MyUNet"}
        (folder / part / "config.json").write_text(json.dumps(config))
    place = folder / "tokenizer/tokenizer_config.json"
    tokenizer = json.loads(place.read_text()) | {"auto_map": {"AutoTokenizer": ["modeling.MyUNet", None]}}
    place.write_text(json.dumps(tokenizer))
    assert DiffusionPipeline.from_pretrained(folder).unet is not None
    for options in ({"custom_pipeline": "my_pipeline"}, {"trust_remote_code": True}):
        with one_clear_line("never done here"):
            DiffusionPipeline.from_pretrained(folder, **options)
    with one_clear_line("Python file", "never run"):
        DiffusionPipeline.from_pretrained(index(folder, unet=["my_unet", "MyUNet"]))
    assert not (tmp_path / "exploded").exists()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "safety_checker"])
def test_pickles_with_code_in_them_are_refused(folder, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    next((folder / part).glob("*.safetensors")).unlink()
    name = "diffusion_pytorch_model.bin" if part == "unet" else "pytorch_model.bin"
    torch.save({"weight": torch.ones(1), "x": Bomb()}, folder / part / name)
    with one_clear_line(part):
        DiffusionPipeline.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_configs_that_name_kernels_of_strangers_are_refused(folder, key):
    place = folder / "text_encoder/config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"text_config": {key: "stranger/kernel"}}))
    with one_clear_line("text_encoder", "stranger/kernel", "run code"):
        DiffusionPipeline.from_pretrained(folder)


def test_adapters_on_other_models_are_refused(folder):
    (folder / "text_encoder/adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    with one_clear_line("adapter"):
        DiffusionPipeline.from_pretrained(folder)


# -- saving


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_pipeline_killed_while_saving_is_the_old_or_the_new(pipe, tmp_path):
    place = tmp_path / "sd"
    pipe.save_pretrained(place)
    (place / "vae/mine.txt").write_text("the user's")
    new = DDIMPipeline(pipe.unet, pipe.scheduler)
    before, killed, step = names(place), 0, 5
    while True:
        child = os.fork()
        if child == 0:
            left = step

            def watch(event, args):
                nonlocal left
                if event.startswith(("open", "os.", "shutil.")):
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            try:
                sys.addaudithook(watch)
                new.save_pretrained(place)
            finally:
                os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            break
        killed += 1
        step += 11
        assert names(place) == before
        made = DiffusionPipeline.from_pretrained(place)
        assert type(made) in (StableDiffusionPipeline, DDIMPipeline)
        assert same(made.unet, pipe.unet)
        if type(made) is DDIMPipeline:
            assert type(made.scheduler).__name__ == "DDIMScheduler"
        else:
            assert type(made.scheduler).__name__ == "PNDMScheduler"
            assert alike(made, pipe)
    assert killed > 5
    assert type(DiffusionPipeline.from_pretrained(place)) is DDIMPipeline
    assert names(place) == before, "other files stay"
    assert [path.name for path in tmp_path.iterdir()] == ["sd"]


def test_a_part_that_cannot_be_saved_is_told_before_anything_is_written(pipe, tmp_path):
    pipe.scheduler = object()
    with one_clear_line("'scheduler'", "no save_pretrained"):
        pipe.save_pretrained(tmp_path / "sd")
    assert not (tmp_path / "sd").exists()


def test_saving_over_the_folder_it_was_loaded_from(folder, reference):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.save_pretrained(folder)
    assert alike(DiffusionPipeline.from_pretrained(folder), reference)
    assert transformers.utils.logging.is_progress_bar_enabled()


# -- parts from a model in the box


@pytest.fixture
def sister(tmp_path):
    """A pipeline that has a scheduler of its own and nothing else."""
    shapes = BOX / "shapes"
    index = json.loads((shapes / "model_index.json").read_text())
    shutil.copytree(shapes / "scheduler", tmp_path / "sister" / "scheduler")
    (tmp_path / "sister" / "model_index.json").write_text(json.dumps({**index, "_parts_from": "langevin/shapes"}))
    return tmp_path / "sister"


def test_parts_without_a_folder_come_from_the_model_in_the_box_that_is_named(sister, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(sister)
    original = DiffusionPipeline.from_pretrained("langevin/shapes")
    assert all(same(getattr(pipe, name), getattr(original, name)) for name in ("unet", "vae", "text_encoder"))
    pipe.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "unet").is_dir()
    assert "_parts_from" not in (tmp_path / "whole" / "model_index.json").read_text()


def test_each_part_may_come_from_another_model_in_the_box(tmp_path):
    """The image encoder is one tower of a CLIP whose folder has no folders of parts."""
    shapes, clip = BOX / "shapes", "langevin/shapes-clip"
    index = json.loads((shapes / "model_index.json").read_text())
    index = {name: index[name] for name in ("_diffusers_version", "safety_checker", "scheduler", "unet", "vae")}
    index |= {
        "_class_name": "StableDiffusionImageVariationPipeline",
        "_parts_from": {"image_encoder": clip, "feature_extractor": clip, "*": "langevin/shapes"},
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    (tmp_path / "sister").mkdir()
    (tmp_path / "sister" / "model_index.json").write_text(json.dumps(index))
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "sister")
    whole = transformers.CLIPModel.from_pretrained(BOX / "shapes-clip", dtype=torch.float16)
    assert torch.equal(pipe.image_encoder.visual_projection.weight.half(), whole.visual_projection.weight)
    assert list(pipe.feature_extractor.image_mean) == [0.5, 0.5, 0.5]
    assert same(pipe.unet, DiffusionPipeline.from_pretrained("langevin/shapes").unet)
    pipe.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "image_encoder" / "model.safetensors").is_file()
    for wrong in ({"*": "someone/shapes"}, {"image_encoder": "../shapes-clip", "*": "langevin/shapes"}):
        (tmp_path / "sister" / "model_index.json").write_text(json.dumps({**index, "_parts_from": wrong}))
        with one_clear_line("no model in the box"):
            DiffusionPipeline.from_pretrained(tmp_path / "sister")


@pytest.mark.parametrize(
    "name", ["langevin/nothing", "../shapes", "langevin/../shapes", "/etc", "someone/shapes", 3, ""]
)
def test_parts_come_from_nowhere_but_the_box(sister, name):
    index = json.loads((sister / "model_index.json").read_text())
    (sister / "model_index.json").write_text(json.dumps({**index, "_parts_from": name}))
    with one_clear_line("no model in the box"):
        DiffusionPipeline.from_pretrained(sister)
