"""Weight files: which are read, that nothing in them runs, and what is said of damaged and foreign ones."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from langevin.checkpoints import weights
from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
from tests.checkpoints.nets import Net, names, one_clear_line, same

SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net(width=16).eval()


@pytest.fixture
def folder(net, tmp_path):
    net.save_pretrained(tmp_path / "net")
    return tmp_path / "net"


# -- there and back


@pytest.mark.parametrize("shards", [None, "1KB"])
@pytest.mark.parametrize("variant", [None, "fp16", "non_ema"])
@pytest.mark.parametrize("safe", [True, False])
def test_every_layout_comes_back(net, tmp_path, safe, variant, shards):
    options = {"max_shard_size": shards} if shards else {}
    net.save_pretrained(tmp_path, safe_serialization=safe, variant=variant, **options)
    assert (len(names(tmp_path)) > 3) == bool(shards)
    loaded = Net.from_pretrained(tmp_path, variant=variant)
    assert same(net, loaded)
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    assert same(net, Net.from_pretrained(tmp_path, variant=variant, low_cpu_mem_usage=False))


@pytest.mark.parametrize(
    "kwargs", [{}, {"variant": "fp16"}, {"max_shard_size": "300KB"}, {"safe_serialization": False}]
)
def test_networks_cross_over_to_the_reference_and_back(kwargs, tmp_path):
    import langevin

    options = {"sample_size": 8, "block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8}
    options |= {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    theirs = diffusers.UNet2DModel(**options).eval()
    theirs.save_pretrained(tmp_path / "theirs", **kwargs)
    ours = langevin.UNet2DModel.from_pretrained(tmp_path / "theirs", variant=kwargs.get("variant"))
    assert same(ours, theirs)
    ours.save_pretrained(tmp_path / "ours", **kwargs)
    if "max_shard_size" in kwargs:
        assert INDEX in names(tmp_path / "ours")
    else:
        assert names(tmp_path / "ours") == names(tmp_path / "theirs")
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours", variant=kwargs.get("variant"))
    assert same(back, theirs)


def test_the_older_spelling_of_sharded_variants(net, tmp_path):
    net.save_pretrained(tmp_path, variant="fp16", max_shard_size="1KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json"
    entries = json.loads(index.read_text())
    renamed = {}
    for key, name in entries["weight_map"].items():
        older = name.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors")
        renamed[key] = older
        if (tmp_path / name).exists():
            (tmp_path / name).rename(tmp_path / older)
    index.write_text(json.dumps({**entries, "weight_map": renamed}))
    assert same(net, Net.from_pretrained(tmp_path, variant="fp16"))


def test_dtypes(net, folder):
    assert Net.from_pretrained(folder, torch_dtype=torch.float16).linear.weight.dtype == torch.float16
    half = Net.from_pretrained(folder, dtype="bfloat16")
    assert half.dtype == half.made.dtype == half.kept.dtype == torch.bfloat16
    assert half.count.dtype == torch.int64
    half.save_pretrained(folder)
    assert Net.from_pretrained(folder).dtype == torch.float32
    assert Net.from_pretrained(folder, torch_dtype="auto").dtype == torch.bfloat16
    with one_clear_line("'float33'", "torch.float32"):
        Net.from_pretrained(folder, torch_dtype="float33")


def test_safetensors_come_before_pickles_unless_told_otherwise(net, folder):
    torch.save({**net.state_dict(), "scalar": torch.tensor(9.0)}, folder / "diffusion_pytorch_model.bin")
    assert Net.from_pretrained(folder).scalar == 2
    assert Net.from_pretrained(folder, use_safetensors=True).scalar == 2
    assert Net.from_pretrained(folder, use_safetensors=False).scalar == 9
    (folder / SINGLE).unlink()
    assert Net.from_pretrained(folder).scalar == 9
    with one_clear_line("use_safetensors=True", "it has diffusion_pytorch_model.bin"):
        Net.from_pretrained(folder, use_safetensors=True)


def test_pickles_of_the_format_before_zip(net, tmp_path):
    net.save_pretrained(tmp_path, safe_serialization=False)
    torch.save(net.state_dict(), tmp_path / "diffusion_pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same(net, Net.from_pretrained(tmp_path))


def test_an_index_whose_shards_are_gone_gives_way_to_a_single_file(net, folder):
    # such folders are what the reference leaves after saving twice
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {"scalar": "diffusion_pytorch_model-00001-of-00002.safetensors"}})
    )
    assert same(net, Net.from_pretrained(folder))


DTYPES = ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64", "float8_e4m3fn"]
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(wanted=TENSORS)
def test_the_reader_agrees_with_the_safetensors_library(wanted, tmp_path_factory):
    path = tmp_path_factory.mktemp("st") / "file.safetensors"
    tensors = {}
    for name, (dtype, shape) in wanted.items():
        count = torch.Size(shape).numel() * torch.empty((), dtype=getattr(torch, dtype)).element_size()
        source = torch.randint(0, 2, (count,), dtype=torch.uint8)
        tensors[name] = (
            source.view(getattr(torch, dtype)).view(shape) if count else torch.empty(shape, dtype=getattr(torch, dtype))
        )
    save_file(tensors, path)
    read, expected = weights.read([path]), load_file(path)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


def test_networks_whose_weights_share_memory_are_saved(tmp_path):
    class Tied(ModelMixin):
        @register_to_config
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight
            self.slice = nn.Parameter(torch.randn(8)[2:5])

    tied = Tied()
    tied.save_pretrained(tmp_path)
    assert torch.equal(Tied.from_pretrained(tmp_path).second.weight, tied.first.weight)
    assert torch.equal(Tied.from_pretrained(tmp_path).slice, tied.slice)


# -- building without filling


def test_nothing_is_initialised_that_the_file_replaces(folder):
    before = torch.get_rng_state()
    with weights.Measured():
        lazy = Net(width=16)
    assert lazy.linear.weight.is_meta
    assert not lazy.made.is_meta
    drawn = torch.randn(3)  # the one bare torch.randn of the constructor has moved the state by this much
    torch.set_rng_state(before)
    torch.randn(3)
    assert torch.equal(drawn, torch.randn(3))


def test_fast_building_is_of_one_thread_only():
    inside, seen = threading.Event(), []

    def other():
        inside.wait(5)
        seen.append(nn.Linear(2, 2).weight.is_meta)

    thread = threading.Thread(target=other)
    thread.start()
    with weights.Measured():
        inside.set()
        thread.join()
        assert nn.Linear(2, 2).weight.is_meta
    assert seen == [False]


# -- something does not fit


def edited(folder, change):
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def test_missing_weights_start_afresh_with_one_warning(net, folder, caplog):
    edited(folder, lambda t: (t.pop("linear.weight"), t.pop("kept")))
    loaded, info = Net.from_pretrained(folder, output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["kept", "linear.weight"]
    assert len(caplog.records) == 1
    assert "linear.weight" in caplog.text
    assert "2 weights" in caplog.text
    assert not weights.without_storage(loaded)
    assert 0 < loaded.linear.weight.abs().max() < 1  # as nn.Linear starts
    assert torch.equal(loaded.kept, net.kept)
    assert torch.equal(loaded.conv.weight, net.conv.weight)


def test_unexpected_weights_are_told_and_ignored(net, folder, caplog):
    edited(folder, lambda t: t.update(foreign=torch.ones(2)))
    loaded, info = Net.from_pretrained(folder, output_loading_info=True)
    assert same(net, loaded)
    assert info["unexpected_keys"] == ["foreign"]
    assert "foreign" in caplog.text
    assert len(caplog.records) == 1


def test_wrong_shapes_are_told_with_key_and_both_shapes(folder):
    with one_clear_line("kept", "(16,)", "(8,)", "this Net", "9 other weights", SINGLE):
        Net.from_pretrained(folder, width=8)
    with one_clear_line("conv.weight", "(4, 16, 3, 3)", "(6, 16, 3, 3)", "1 other weight"):
        Net.from_pretrained(folder, channels=(6,))


def test_wrong_shapes_can_start_afresh(net, folder, caplog):
    loaded, info = Net.from_pretrained(folder, channels=(6,), ignore_mismatched_sizes=True, output_loading_info=True)
    assert loaded.conv.weight.shape[0] == 6
    assert info["mismatched_keys"][0] == ("conv.weight", (4, 16, 3, 3), (6, 16, 3, 3))
    assert not weights.without_storage(loaded)
    assert torch.equal(loaded.linear.weight, net.linear.weight)
    assert "conv.weight" in caplog.text


def test_weights_of_another_model(folder):
    save_file({"foo": torch.ones(1)}, folder / SINGLE)
    with one_clear_line("no weight of a Net", "'foo'", "belongs to another model"):
        Net.from_pretrained(folder)


# -- something is broken


def test_truncated_files(folder):
    whole = (folder / SINGLE).read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / SINGLE).write_bytes(whole[:length])
        with one_clear_line(SINGLE, "damaged or incomplete", f"({length:,} bytes)"):
            Net.from_pretrained(folder)
    (folder / SINGLE).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with one_clear_line("damaged or incomplete"):
        Net.from_pretrained(folder)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_to_the_header_gets_past(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.float16)}, folder / "x.safetensors")
    content = bytearray((folder / "x.safetensors").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x.safetensors").write_bytes(content)
    try:
        read = weights.read([folder / "x.safetensors"])
    except weights.CheckpointError:
        pass
    else:
        assert all(tensor.numel() <= 16 for tensor in read.values())


def test_truncated_pickles(net, tmp_path):
    net.save_pretrained(tmp_path, safe_serialization=False)
    path = tmp_path / "diffusion_pytorch_model.bin"
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with one_clear_line("diffusion_pytorch_model.bin", "damaged"):
            Net.from_pretrained(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_with_code_are_refused_and_the_code_does_not_run(net, tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    net.save_pretrained(tmp_path / "net", safe_serialization=False)
    path = tmp_path / "net/diffusion_pytorch_model.bin"
    torch.save({"linear.weight": torch.ones(1), "x": Bomb()}, path, _use_new_zipfile_serialization=zipped)
    with one_clear_line("holds Python code", "system", ".safetensors"):
        Net.from_pretrained(tmp_path / "net")
    path.write_bytes(pickle.dumps(Bomb()))
    with one_clear_line("diffusion_pytorch_model.bin"):
        Net.from_pretrained(tmp_path / "net")
    torch.save([1, 2], path)
    with one_clear_line("not a dict of tensors"):
        Net.from_pretrained(tmp_path / "net")
    assert not (tmp_path / "exploded").exists()


def test_half_a_folder(folder, net):
    shutil.copytree(folder, folder.parent / "no-config")
    (folder.parent / "no-config/config.json").unlink()
    with one_clear_line("no config.json", "no-config", SINGLE):
        Net.from_pretrained(folder.parent / "no-config")
    (folder / SINGLE).unlink()
    with one_clear_line("There is no diffusion_pytorch_model", "no weights at all"):
        Net.from_pretrained(folder)
    net.save_pretrained(folder, variant="fp16")
    with one_clear_line("it has diffusion_pytorch_model.fp16.safetensors", "variant='fp16' reads that"):
        Net.from_pretrained(folder)
    with one_clear_line("diffusion_pytorch_model.bf16"):
        Net.from_pretrained(folder, variant="bf16")
    with one_clear_line("no folder 'sub'", "config.json"):
        Net.from_pretrained(folder, subfolder="sub")


def test_a_lost_shard(net, tmp_path):
    net.save_pretrained(tmp_path, max_shard_size="1KB")
    next(tmp_path.glob("*00002-of*")).unlink()
    with one_clear_line("00002-of", "incomplete"):
        Net.from_pretrained(tmp_path)


# -- nothing outside the folder is opened


@pytest.mark.parametrize("bad", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..\\outside.safetensors"])
def test_an_index_that_points_outside(net, tmp_path, bad):
    net.save_pretrained(tmp_path / "net", max_shard_size="1KB")
    save_file(net.state_dict(), tmp_path / "outside.safetensors")
    index = json.loads((tmp_path / "net" / INDEX).read_text())
    index["weight_map"]["scalar"] = bad
    (tmp_path / "net" / INDEX).write_text(json.dumps(index))
    with one_clear_line(repr(bad), "leads out of its folder", "not opened"):
        Net.from_pretrained(tmp_path / "net")


def test_links_that_point_outside(net, folder, tmp_path):
    (folder / SINGLE).rename(tmp_path / "elsewhere.safetensors")
    (folder / SINGLE).symlink_to(tmp_path / "elsewhere.safetensors")
    with one_clear_line("leads out of its folder", "elsewhere.safetensors"):
        Net.from_pretrained(folder)
    shutil.copytree(folder, tmp_path / "pipe/unet", symlinks=True)
    with one_clear_line("leads out of its folder"):
        Net.from_pretrained(tmp_path / "pipe", subfolder="unet")
    with one_clear_line("leads out of its folder"):
        Net.from_pretrained(tmp_path / "pipe", subfolder="../net")


def test_a_broken_index(net, tmp_path):
    net.save_pretrained(tmp_path, max_shard_size="1KB")
    for content in ({"weight_map": [1]}, {}, {"weight_map": {"a": 3}}):
        (tmp_path / INDEX).write_text(json.dumps(content))
        with one_clear_line("no shard index"):
            Net.from_pretrained(tmp_path)


# -- the rest of a network's manners


def test_facts_about_a_network(net):
    assert net.num_parameters() == sum(p.numel() for p in net.parameters())
    net.table.requires_grad_(False)
    assert net.num_parameters() - net.num_parameters(only_trainable=True) == net.table.weight.numel()
    assert net.num_parameters() - net.num_parameters(exclude_embeddings=True) == net.table.weight.numel()
    assert net.get_memory_footprint() > 4 * net.num_parameters()
    assert (net.dtype, net.device) == (torch.float32, torch.device("cpu"))
    assert net.half().dtype == torch.float16


def test_gradient_checkpointing_reaches_the_layers_that_can(net):
    assert not net.is_gradient_checkpointing
    net.enable_gradient_checkpointing()
    assert net.block.gradient_checkpointing
    assert net.is_gradient_checkpointing
    net.disable_gradient_checkpointing()
    assert not net.is_gradient_checkpointing

    class Plain(ModelMixin):
        pass

    with pytest.raises(ValueError, match="Plain has no layer"):
        Plain().enable_gradient_checkpointing()


def test_old_keys_are_converted_by_the_class(net, folder):
    class Renamed(Net):
        @classmethod
        def convert_state_dict(cls, state_dict):
            return {key.replace("old_name", "linear"): value for key, value in state_dict.items()}

    edited(folder, lambda t: t.update({"old_name.bias": t.pop("linear.bias")}))
    assert same(net, Renamed.from_pretrained(folder))


def test_settings_and_devices_can_be_given(folder, caplog):
    loaded = Net.from_pretrained(folder, name="other", device_map="cpu", bogus=1)
    assert loaded.config.name == "other"
    assert "'bogus'" in caplog.text
    assert Net.from_pretrained(folder, device_map={"": "meta"}).device.type == "meta"
    assert Net.from_pretrained(folder, device_map="auto").device.type in ("cpu", "cuda")
    for bad in ({"linear": "cpu", "conv": "cpu"}, "nonsense"):
        with one_clear_line("device_map is", "'cuda'"):
            Net.from_pretrained(folder, device_map=bad)


@pytest.mark.parametrize(
    ("text", "size"), [("10GB", 10**10), ("5 MiB", 5 * 2**20), ("500KB", 500_000), (7, 7), ("8B", 8)]
)
def test_sizes(text, size):
    assert weights._size(text) == size


def test_a_size_that_is_none(net, tmp_path):
    with one_clear_line("max_shard_size", "'ten'", "'10GB'"):
        net.save_pretrained(tmp_path / "net", max_shard_size="ten")
    assert not (tmp_path / "net").exists()
