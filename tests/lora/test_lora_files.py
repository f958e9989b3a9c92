"""Files of LoRAs: every name that a tensor was ever given, and what ends in one line."""

from __future__ import annotations

import json
import logging
import pickle

import pytest
import torch
from safetensors.torch import save_file

from langevin.checkpoints.errors import CheckpointError
from tests.lora.lora_makers import ATTENTION, TEXT, fresh, predicted, random_lora, read_text

OLD = {"to_out.0": "to_out"}
OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def split(name):
    """("….attn1", "to_out.0") of a layer's name."""
    leaf = next(t for t in (*ATTENTION, *TEXT) if name.endswith("." + t))
    return name.removesuffix("." + leaf), leaf


def old(name):
    owner, leaf = split(name)
    return f"{owner}.processor.{OLD.get(leaf, leaf)}_lora"


def old_text(name):
    owner, leaf = split(name)
    return f"{owner}.{OLD_TEXT[leaf]}_lora"


def flat(prefix):
    return lambda name: prefix + name.replace(".", "_")


SIDES = (".down.weight", ".up.weight")
FORMS = {
    "the training script": (
        lambda n: f"unet.{n}.lora",
        lambda n: f"text_encoder.text_model.{n}.lora_linear_layer",
        SIDES,
    ),
    "0.17": (lambda n: "unet." + old(n), lambda n: "text_encoder.text_model." + old_text(n), SIDES),
    "0.12, without unet.": (old, None, SIDES),
    "PEFT": (lambda n: f"unet.{n}", lambda n: f"text_encoder.{n}", (".lora_A.weight", ".lora_B.weight")),
    "PEFT with a name": (lambda n: f"unet.{n}", None, (".lora_A.default.weight", ".lora_B.default.weight")),
    "PEFT's own folder": (lambda n: f"base_model.model.{n}", None, (".lora_A.weight", ".lora_B.weight")),
    "kohya": (flat("lora_unet_"), flat("lora_te_text_model_"), (".lora_down.weight", ".lora_up.weight")),
    "kohya, te1": (flat("lora_unet_"), flat("lora_te1_text_model_"), (".lora_down.weight", ".lora_up.weight")),
}


def state_of(pipe, form="the training script", scale=1.0):
    unet_name, text_name, sides = FORMS[form]
    state = {}
    for network, name, targets in ((pipe.unet, unet_name, ATTENTION), (pipe.text_encoder, text_name, TEXT)):
        for layer, pair in random_lora(network, targets).items() if name else ():
            said = name(layer.removeprefix("text_model."))
            state |= {said + side: tensor * scale for side, tensor in zip(sides, pair, strict=True)}
    return state


@pytest.fixture
def pipe(twins):
    return fresh(twins)[0]


@pytest.fixture(scope="module")
def wanted(twins):
    """A UNet's prediction and a text encoder's reading, with the LoRA added to the weights by hand."""
    pipe, _ = fresh(twins)
    with torch.no_grad():
        for network, targets in ((pipe.unet, ATTENTION), (pipe.text_encoder, TEXT)):
            modules = dict(network.named_modules())
            for layer, (down, up) in random_lora(network, targets).items():
                modules[layer].weight += up @ down
    return predicted(pipe.unet), read_text(pipe.text_encoder)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_means_the_same(twins, tmp_path, wanted, form, ending):
    pipe, theirs = fresh(twins)
    stem = "adapter_model" if "folder" in form else "pytorch_lora_weights"
    state, file = state_of(pipe, form), tmp_path / f"{stem}.{ending}"
    save_file(state, file) if ending == "safetensors" else torch.save(state, file)
    pipe.load_lora_weights(tmp_path)
    assert torch.allclose(predicted(pipe.unet), wanted[0], atol=1e-5 * wanted[0].abs().max().item())
    text = wanted[1] if FORMS[form][1] else read_text(theirs.text_encoder)
    assert torch.allclose(read_text(pipe.text_encoder), text, atol=1e-5)


def test_pefts_folder_says_alpha_beside_the_weights(pipe, tmp_path, wanted):
    state = {key: value * 0.5 if "_B" in key else value for key, value in state_of(pipe, "PEFT's own folder").items()}
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 6}))
    pipe.load_lora_weights(tmp_path)
    assert torch.allclose(predicted(pipe.unet), wanted[0], atol=1e-5 * wanted[0].abs().max().item())


def test_the_headers_metadata_says_alphas(pipe, tmp_path, wanted):
    state = {key: value * 0.5 if "_B" in key else value for key, value in state_of(pipe, "PEFT").items()}
    said = {f"{part}.lora_alpha": 6 for part in ("unet", "text_encoder")} | {"unet.r": 3, "text_encoder.r": 3}
    save_file(state, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(said)})
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors")
    assert torch.allclose(predicted(pipe.unet), wanted[0], atol=1e-5 * wanted[0].abs().max().item())
    assert torch.allclose(read_text(pipe.text_encoder), wanted[1], atol=1e-5)


def test_what_fits_nowhere_is_named_once_and_the_rest_works(pipe, caplog, wanted):
    odd = {
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
        "unet.nowhere.lora.up.weight": torch.ones(2, 2),
    }
    odd |= {f"unet.other{n}.hada_w1_a": torch.ones(2, 2) for n in range(9)}
    with caplog.at_level(logging.WARNING):
        pipe.load_lora_weights({**state_of(pipe), **odd})
    warnings = [record.message for record in caplog.records if "fits nowhere" in record.message]
    assert len(warnings) == 1
    assert "lora_te2_text_model" in warnings[0]
    assert "unet.nowhere" in warnings[0]
    assert "(11 in all)" in warnings[0]
    assert torch.allclose(predicted(pipe.unet), wanted[0], atol=1e-5 * wanted[0].abs().max().item())


LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora"
DOWN, UP = f"{LAYER}.down.weight", f"{LAYER}.up.weight"
GOOD = {DOWN: torch.ones(2, 16), UP: torch.ones(16, 2)}
FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
HOSTILE = {
    "nothing at all": ({}, "no LoRA for this pipeline"),
    "another model's": ({"transformer.x.lora.down.weight": torch.ones(2, 2)}, "no LoRA for this pipeline"),
    "wrong width": ({**GOOD, DOWN: torch.ones(2, 17)}, r"\(2, 17\), where this model's layer wants \(2, 16\)"),
    "wrong height": ({**GOOD, UP: torch.ones(17, 2)}, "made for another model"),
    "two ranks": ({**GOOD, UP: torch.ones(16, 3)}, "of no one rank"),
    "half of it": ({DOWN: torch.ones(2, 16)}, "no up for this layer"),
    "only alpha": ({f"{FLAT}.alpha": torch.tensor(1.0)}, "no down and no up"),
    "NaN": ({**GOOD, UP: torch.full((16, 2), float("nan"))}, "NaN or infinity"),
    "infinity": ({**GOOD, DOWN: torch.full((2, 16), float("inf"))}, "NaN or infinity"),
    "integers": ({**GOOD, DOWN: torch.ones(2, 16, dtype=torch.int64)}, "int64 numbers"),
    "booleans": ({**GOOD, DOWN: torch.ones(2, 16, dtype=torch.bool)}, "bool numbers"),
    "no rank": ({DOWN: torch.ones(0, 16), UP: torch.ones(16, 0)}, "rank 0"),
    "a huge rank": ({DOWN: torch.zeros(5000, 16), UP: torch.zeros(16, 5000)}, "rank 5000; 1 to 1024"),
    "scalars": ({DOWN: torch.tensor(1.0), UP: torch.tensor(1.0)}, "of no one rank"),
    "five axes": ({**GOOD, DOWN: torch.ones(2, 16, 1, 1, 1)}, "made for another model"),
    "twice": ({**GOOD, DOWN.replace(".lora.down", ".lora_A"): torch.ones(2, 16)}, "two tensors for one place"),
    "alpha NaN": ({**GOOD, f"{FLAT}.alpha": torch.tensor(float("nan"))}, "one finite number"),
    "alpha of two": ({**GOOD, f"{FLAT}.alpha": torch.ones(2)}, "one finite number"),
    "magnitudes": ({**GOOD, f"{FLAT}.dora_scale": torch.ones(5, 1)}, "one number for each of 16 rows"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_clear_line_and_changes_nothing(pipe, tmp_path, case):
    state, said = HOSTILE[case]
    save_file(state, tmp_path / "x.safetensors")
    before = predicted(pipe.unet)
    with pytest.raises(CheckpointError, match=said) as caught:
        pipe.load_lora_weights(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert "x.safetensors" in str(caught.value)
    assert pipe.get_list_adapters() == {}
    assert torch.equal(predicted(pipe.unet), before)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("spoil", ["cut", "code", "json", "header", "missing", "list"])
def test_a_damaged_file_is_one_clear_line(pipe, tmp_path, capsys, spoil):
    file = tmp_path / ("x.bin" if spoil in ("code", "list") else "x.safetensors")
    if spoil == "code":
        file.write_bytes(pickle.dumps({"a": Evil()}))
    elif spoil == "list":
        torch.save([torch.ones(2)], file)
    elif spoil != "missing":
        said = {"json": "{", "header": json.dumps({"unet.lora_alpha": "x"})}.get(spoil)
        save_file(GOOD, file, metadata={"lora_adapter_metadata": said} if said else None)
        if spoil == "cut":
            file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError) as caught:
        pipe.load_lora_weights(file)
    assert "\n" not in str(caught.value)
    assert "run" not in capsys.readouterr().out


def test_a_file_that_overflows_half_precision_is_refused_there(twins):
    pipe, _ = fresh(twins)
    pipe.unet.to(torch.float16)
    with pytest.raises(CheckpointError, match="infinity in float16"):
        pipe.load_lora_weights({**GOOD, UP: torch.full((16, 2), 1e6)})


def test_names_are_checked(pipe, tmp_path):
    pipe.load_lora_weights(GOOD, adapter_name="v1.5-ink")
    with pytest.raises(ValueError, match="ink' already"):
        pipe.load_lora_weights(GOOD, adapter_name="v1.5-ink")
    for name in ("", "a\nb", "x" * 300, 7):
        with pytest.raises(ValueError, match="adapter_name is"):
            pipe.load_lora_weights(GOOD, adapter_name=name)
    with pytest.raises(TypeError, match="wieght_name"):
        pipe.load_lora_weights(GOOD, wieght_name="x")
    with pytest.raises(CheckpointError, match="no file"):
        pipe.load_lora_weights(tmp_path / "none.safetensors")
    pipe.load_lora_weights({DOWN: torch.zeros(2, 16), UP: torch.ones(16, 2)}, adapter_name="v1.5-ink", hotswap=True)
    assert pipe.get_list_adapters() == {"unet": ["v1.5-ink"]}
    pipe.load_lora_weights(GOOD)
    pipe.load_lora_weights(GOOD)
    assert pipe.get_list_adapters() == {"unet": ["v1.5-ink", "default_1", "default_2"]}


def test_saving_is_whole_or_not_at_all(pipe, tmp_path, monkeypatch):
    pipe.save_lora_weights(tmp_path, unet_lora_layers={k.removeprefix("unet."): v for k, v in GOOD.items()})
    before = (tmp_path / "pytorch_lora_weights.safetensors").read_bytes()
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match="No space left"):
        pipe.save_lora_weights(tmp_path, unet_lora_layers={DOWN: torch.zeros(9, 16)})
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert (tmp_path / "pytorch_lora_weights.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match="nothing to save"):
        pipe.save_lora_weights(tmp_path)
    with pytest.raises(CheckpointError, match="name of a file"):
        pipe.save_lora_weights(tmp_path, unet_lora_layers=GOOD, weight_name="../x.safetensors")


def test_a_hub_id_is_found_in_the_cache(pipe, tmp_path, monkeypatch, wanted):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--owner--ink"
    folder = place / "snapshots" / "abc" / "sub"
    folder.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    save_file(state_of(pipe), folder / "ink.safetensors")
    with pytest.raises(CheckpointError, match="weight_name"):
        pipe.load_lora_weights("owner/ink", subfolder="sub")
    pipe.load_lora_weights("owner/ink", weight_name="ink.safetensors", subfolder="sub", local_files_only=True)
    assert torch.allclose(predicted(pipe.unet), wanted[0], atol=1e-5 * wanted[0].abs().max().item())
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        pipe.load_lora_weights("owner/ink", weight_name="../../x.safetensors", subfolder="sub")
