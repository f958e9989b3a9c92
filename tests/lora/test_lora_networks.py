"""LoRAs in networks and pipelines: what they leave as it is, single calls, threads, fusing, training hooks."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import langevin
from langevin import add_lora, load_lora_state_dict, lora_metadata, lora_parameters, lora_state_dict, remove_lora
from langevin.lora import adapters
from tests.helpers import in_threads
from tests.lora.lora_makers import ATTENTION, EVERYTHING, fresh, predicted, random_lora
from tests.pipelines.family_checks import images


def state(pipe, seed=0, targets=ATTENTION, text=("q_proj", "v_proj")):
    made = {}
    for part, chosen in (("unet", targets), ("text_encoder", text)):
        for layer, pair in random_lora(getattr(pipe, part), chosen, seed=seed).items():
            made |= {f"{part}.{layer}.lora.{side}.weight": t for side, t in zip(("down", "up"), pair, strict=True)}
    return made


@pytest.fixture
def pipe(twins):
    return fresh(twins)[0]


@pytest.fixture
def two(pipe):
    """A pipeline with two LoRAs, a and b, none in use."""
    pipe.load_lora_weights(state(pipe, 1), adapter_name="a")
    pipe.load_lora_weights(state(pipe, 2, EVERYTHING, ()), adapter_name="b")
    pipe.set_adapters([])
    return pipe


def paint(pipe, prompt="a cat", **call):
    return images(pipe, prompt, num_inference_steps=2, seed=call.pop("seed", 3), **call)


def same(a, b):
    return np.array_equal(a, b)


# -- what they leave as it is


def test_state_dicts_and_saved_folders_do_not_have_them(pipe, twins, tmp_path):
    before = {part: list(getattr(pipe, part).state_dict()) for part in ("unet", "text_encoder")}
    plain = paint(pipe)
    pipe.load_lora_weights(state(pipe, targets=EVERYTHING))
    assert {part: list(getattr(pipe, part).state_dict()) for part in before} == before
    pipe.unet.load_state_dict(pipe.unet.state_dict(), strict=True)
    pipe.save_pretrained(tmp_path)
    read = langevin.DiffusionPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    assert same(paint(read), plain)
    assert not same(paint(pipe), plain)


def test_unloading_leaves_nothing_behind(pipe):
    plain, modules = paint(pipe), [name for name, _ in pipe.unet.named_modules()]
    pipe.load_lora_weights(state(pipe, targets=EVERYTHING), adapter_name="v1.5 %2e")
    assert not same(paint(pipe), plain)
    pipe.unload_lora_weights()
    assert same(paint(pipe), plain)
    assert [name for name, _ in pipe.unet.named_modules()] == modules
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_at_weight_zero_pictures_are_bit_equal_to_none(two):
    plain = paint(two)
    assert same(paint(two, lora={"a": 0.0, "b": 0}), plain)
    assert same(paint(two, lora={}), plain)
    two.set_adapters(["a", "b"])
    assert not same(paint(two), plain)
    assert same(paint(two, cross_attention_kwargs={"scale": 0.0}), plain)
    assert same(paint(two, lora={}), plain)
    two.disable_lora()
    assert same(paint(two), plain)
    two.enable_lora()
    assert not same(paint(two), plain)


def test_copies_and_pickles_keep_their_own(two):
    two.set_adapters("a", 0.5)
    there = predicted(two.unet)
    twin, back = copy.deepcopy(two.unet), pickle.loads(pickle.dumps(two.unet))
    two.unload_lora_weights()
    assert torch.equal(predicted(twin), there)
    assert torch.equal(predicted(back), there)
    assert not torch.equal(predicted(two.unet), there)


def test_they_move_and_convert_with_their_network(two):
    two.set_adapters(["a", "b"])
    there = predicted(two.unet)
    two.unet.to(torch.float64)
    twice = {p.dtype for p in two.unet.parameters()}
    two.unet.to(torch.float32)
    assert twice == {torch.float64}
    assert torch.equal(predicted(two.unet), there)


# -- single calls


def test_a_calls_weights_are_those_of_set_adapters_said_for_this_call(two):
    by_call = paint(two, lora={"a": 0.5, "b": 1.5}), paint(two, lora={"a": {"unet": 0.5, "text_encoder": 0}})
    two.set_adapters(["a", "b"], [0.5, 1.5])
    assert same(paint(two), by_call[0])
    two.set_adapters("a", {"unet": 0.5, "text_encoder": 0})
    assert same(paint(two), by_call[1])
    assert same(paint(two, lora={"a": 0.5, "b": 1.5}), by_call[0])
    assert same(paint(two, lora={"a": 1.0, "b": 3.0}, cross_attention_kwargs={"scale": 0.5}), by_call[0])


def test_a_call_leaves_the_pipeline_as_it_is(two):
    two.set_adapters("b", 0.3)
    before, seen = predicted(two.unet), []
    two("a cat", num_inference_steps=1, lora={"a": 1.0}, callback_on_step_end=lambda call, *_: seen.append(call) or {})
    assert torch.equal(predicted(two.unet), before)
    assert two.num_timesteps == 1
    assert seen[0].pipeline.unet is not two.unet
    weights = {t.data_ptr() for t in two.unet.parameters()}
    assert weights == {t.data_ptr() for t in seen[0].pipeline.unet.parameters()}  # nothing is copied


def test_what_a_call_asks_in_vain_is_one_clear_line(two):
    for lora, said in (
        ({"c": 1.0}, "'c', which is not loaded; there are: a, b"),
        ({"a": "much"}, "weight of the LoRA 'a' is 'much'"),
        ({"a": float("nan")}, "is nan"),
        ({"a": True}, "is True"),
        ({"a": {"vae": 1}}, "is for 'vae'"),
        ({"a": {"unet": {"left": 1}}}, "'left'"),
    ):
        with pytest.raises(ValueError, match=said):
            paint(two, lora=lora)
    with pytest.raises(ValueError, match="lora is 0"):
        paint(two, lora=0.8)
    with pytest.raises(ValueError, match=r"scale.* is 'x'"):
        paint(two, cross_attention_kwargs={"scale": "x"})
    with pytest.raises(ValueError, match="2 weights for 1 LoRAs"):
        two.set_adapters(["a"], [1, 2])
    with pytest.raises(ValueError, match="no LoRA 'z'; there are: a, b"):
        two.set_adapters(["z"])
    two.set_adapters("a")
    two.fuse_lora()
    with pytest.raises(ValueError, match="fused already"):
        two.fuse_lora()
    with pytest.raises(ValueError, match="'a', which is fused"):
        paint(two, lora={"a": 0.5})


def test_threads_with_different_loras_on_one_pipeline_do_not_disturb_each_other(two):
    """Each of four threads has its own weights, while a fifth loads, weighs and unloads others."""
    calls = [{"lora": {"a": 0.9}}, {"lora": {"b": 0.4}}, {"lora": {"a": -0.5, "b": 1.1}}, {"lora": {}}]
    alone = [paint(two, seed=k, **call) for k, call in enumerate(calls)]
    assert len({picture.tobytes() for picture in alone}) == 4
    more = state(
        two, 7, (*EVERYTHING, "conv2", "conv_in", "linear_1"), ("fc1", "fc2")
    )  # layers that a and b leave alone

    def one(k):
        if k < 4:
            return [paint(two, seed=k, **calls[k]) for _ in range(3)]
        for n in range(12):
            two.load_lora_weights(more, adapter_name=f"c{n}")
            two.set_adapters(["b", f"c{n}"], [n, 2.0])
            two.delete_adapters(f"c{n}")
        return []

    together = in_threads(one, 5)
    for k in range(4):
        assert all(same(picture, alone[k]) for picture in together[k])


def test_a_running_call_does_not_see_what_happens_to_its_loras(two):
    two.set_adapters(["a", "b"], [0.7, 0.2])
    alone = paint(two)

    def meddle(call, i, t, tensors):
        two.load_lora_weights(state(two, 7, ("conv2", "conv_out"), ("fc1",)), adapter_name="c")
        two.set_adapters("b", 5.0)
        two.fuse_lora()
        two.unload_lora_weights()
        return {}

    assert same(paint(two, callback_on_step_end=lambda c, i, t, x: meddle(c, i, t, x) if i == 0 else {}), alone)


def test_pipelines_that_share_networks_share_loras(two):
    other = langevin.StableDiffusionImg2ImgPipeline.from_pipe(two)
    assert other.get_list_adapters() == two.get_list_adapters()
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    call = dict(image=picture, strength=0.8, num_inference_steps=3, seed=1, output_type="np")
    other.set_progress_bar_config(disable=True)
    plain, changed = other("a cat", **call).images, other("a cat", lora={"a": 1.0}, **call).images
    assert not same(plain, changed)


def test_every_task_of_the_family_takes_them(two):
    """Pipelines reach their networks in ways of their own; all of them see the call's weights."""
    panorama = langevin.StableDiffusionPanoramaPipeline(**two.components, requires_safety_checker=False)
    sag = langevin.StableDiffusionSAGPipeline(**two.components, requires_safety_checker=False)
    attend = langevin.StableDiffusionAttendAndExcitePipeline(**two.components, requires_safety_checker=False)
    for pipe, told in (
        (panorama, {"height": 16, "width": 24}),
        (sag, {}),
        (attend, {"token_indices": [1], "max_iter_to_alter": 1, "attn_res": (8, 8)}),
    ):
        pipe.set_progress_bar_config(disable=True)
        plain = paint(pipe, **told)
        assert not same(paint(pipe, lora={"a": 1.0}, **told), plain)
        assert same(paint(pipe, lora={"a": 0.0}, **told), plain)


def test_an_unconditional_network_takes_one_too():
    unet = langevin.UNet2DModel(
        sample_size=8, block_out_channels=(16, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = langevin.DDIMPipeline(unet, langevin.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    plain = pipe(num_inference_steps=2, seed=1, output_type="np").images
    add_lora(unet, 2, start=False, name="x")
    assert not same(pipe(num_inference_steps=2, seed=1, output_type="np").images, plain)
    assert same(pipe(num_inference_steps=2, seed=1, output_type="np", lora={}).images, plain)


def test_a_compiled_network_keeps_its_weights_and_takes_a_calls_own(two):
    compiled = torch.compile(two.unet, backend="eager")
    torch.compiler.set_stance("force_eager")  # compiling all of it takes half a minute
    two.set_adapters("a", 0.5)
    wanted = paint(two), paint(two, lora={"b": 1.0})
    two.unet = compiled
    try:
        assert two.get_list_adapters()["unet"] == ["a", "b"]
        assert same(paint(two, lora={"b": 1.0}), wanted[1])
        assert same(paint(two), wanted[0])
    finally:
        torch.compiler.set_stance("default")


def test_what_is_compiled_sees_new_weights():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    add_lora(network, 2, target_modules=["0"], start=False)
    compiled, x = torch.compile(network, backend="eager"), torch.ones(1, 4)
    for weight in (1.0, 0.5, 0.0, 2.0):
        adapters.set_weights(network, {"default": weight})
        assert torch.equal(compiled(x), network(x))


def test_offloaded_networks_take_them(two):
    wanted = paint(two, lora={"a": 0.7})
    two.enable_sequential_cpu_offload(device="cpu")
    assert same(paint(two, lora={"a": 0.7}), wanted)
    two.load_lora_weights(state(two, 1), adapter_name="c")
    assert same(paint(two, lora={"c": 0.7}), wanted)
    two.remove_all_hooks()
    assert same(paint(two, lora={"a": 0.7}), wanted)


# -- fused


def test_fused_and_unloaded_weights_stay(two):
    plain = paint(two)
    two.set_adapters(["a", "b"], [0.4, 0.6])
    with_them = paint(two)
    two.fuse_lora()
    two.unload_lora_weights()
    assert abs(paint(two) - with_them).max() < 1e-5
    assert abs(paint(two) - plain).max() > 1e-3
    assert two.fused_loras == set()


def test_parts_are_fused_alone_and_unsafe_sums_are_refused(two):
    plain = predicted(two.unet)
    two.set_adapters("a")
    two.fuse_lora(components=["text_encoder"])
    assert two.fused_loras == {"a"}
    two.unfuse_lora()
    with pytest.raises(ValueError, match="components has 'vae'"):
        two.fuse_lora(components=["vae"])
    with torch.no_grad():
        two.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.lora.get("a").up.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite; nothing was changed"):
        two.fuse_lora(components=["unet"], safe_fusing=True)
    two.set_adapters([])
    assert torch.equal(predicted(two.unet), plain)


# -- training


def test_a_fresh_lora_changes_nothing_learns_and_comes_out(pipe):
    unet = pipe.unet
    before = predicted(unet)
    unet.requires_grad_(False)
    parameters = add_lora(unet, rank=3, alpha=6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(predicted(unet), before)
    layers = {name: layer for name, layer in unet.named_modules() if name.endswith(ATTENTION) and "lora" not in name}
    assert len(parameters) == 2 * len(layers)
    down = torch.cat([p.flatten() for p in parameters[::2]])
    assert down.std().item() == pytest.approx(1 / 3, rel=0.05)
    assert all(p.requires_grad for p in parameters)
    assert [p.data_ptr() for p in unet.parameters() if p.requires_grad] == [p.data_ptr() for p in parameters]

    unet.train().enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    x, text = torch.ones(1, 4, 8, 8), torch.ones(1, 5, 24)
    losses = []
    for _ in range(8):
        loss = unet(x, 3, text).sample.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    unet.disable_gradient_checkpointing()
    assert losses[-1] < 0.9 * losses[0]

    kept = {key: tensor.clone() for key, tensor in lora_state_dict(unet.eval()).items()}
    trained = predicted(unet)
    remove_lora(unet)
    assert torch.equal(predicted(unet), before)
    add_lora(unet, rank=3, alpha=6)
    load_lora_state_dict(unet, kept)
    assert torch.equal(predicted(unet), trained)
    load_lora_state_dict(unet, {k: v * 1 for k, v in lora_state_dict(unet, form="peft").items()})
    assert torch.equal(predicted(unet), trained)
    assert lora_metadata(unet)["lora_alpha"] == 6
    with pytest.raises(ValueError, match="differ in"):
        load_lora_state_dict(unet, dict(list(kept.items())[1:]))


def test_a_lora_learns_in_single_precision_in_a_half_network(pipe):
    unet = pipe.unet.to(torch.bfloat16).requires_grad_(False)
    parameters = add_lora(unet, start=False)
    assert {p.dtype for p in parameters} == {torch.float32}
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=generator).bfloat16() for shape in ((1, 4, 8, 8), (1, 5, 24)))
    out = unet(x, 3, text).sample
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in parameters)


def test_dropout_is_for_training(pipe):
    unet = pipe.unet
    add_lora(unet, start=False, dropout=0.5)
    assert torch.equal(predicted(unet), predicted(unet))
    unet.train()
    assert not torch.equal(predicted(unet), predicted(unet))
    unet.eval()
    assert torch.equal(predicted(unet), predicted(unet))


def test_targets_ranks_and_names(pipe):
    unet = pipe.unet
    with pytest.raises(ValueError, match="no layer here is"):
        add_lora(unet, target_modules=["to_x"])
    with pytest.raises(ValueError, match="rank is 0"):
        add_lora(unet, 0)
    with pytest.raises(ValueError, match="start is 'zeros'"):
        add_lora(unet, start="zeros")
    assert adapters.loaded(unet).origins == {}
    add_lora(unet, 4, target_modules=r".*attn2\.to_[kv]", rank_pattern={"to_k": 2}, name="x")
    shapes = {key.rsplit(".", 4)[1]: len(t) for key, t in lora_state_dict(unet, "x").items() if "down" in key[-12:]}
    assert shapes == {"to_k": 2, "to_v": 4}
    assert lora_metadata(unet, "x")["rank_pattern"]
    with pytest.raises(ValueError, match="'x' already"):
        add_lora(unet, name="x")
    with pytest.raises(ValueError, match="no LoRA 'y' in this network; there are: x"):
        lora_parameters(unet, "y")


def test_pefts_config_is_taken_and_what_it_wants_in_vain_refused(pipe):
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=["to_q"], init_lora_weights="gaussian"), "x")
    assert not any(p.requires_grad for name, p in pipe.unet.named_parameters() if ".lora." not in name)
    assert pipe.unet.active_adapters() == ["x"]
    with pytest.raises(ValueError, match="modules_to_save"):
        pipe.unet.add_adapter(LoraConfig(target_modules=["to_q"], modules_to_save=["conv_in"]), "y")


def test_networks_have_the_references_methods(pipe, tmp_path):
    unet, plain = pipe.unet, predicted(pipe.unet)
    unet.load_attn_procs({k: v for k, v in state(pipe).items() if k.startswith("unet")}, adapter_name="a")
    loaded = predicted(unet)
    unet.save_attn_procs(tmp_path)
    unet.disable_lora()
    assert torch.equal(predicted(unet), plain)
    unet.enable_lora()
    unet.set_adapters(["a"], [0.5])
    unet.fuse_lora(lora_scale=2.0)
    assert torch.allclose(predicted(unet), loaded, atol=1e-4)
    unet.unfuse_lora()
    unet.delete_adapters("a")
    assert torch.equal(predicted(unet), plain)
    unet.load_attn_procs(tmp_path)
    assert torch.equal(predicted(unet), loaded)
    with pytest.raises(ValueError, match="'left'"):
        unet.set_adapters("default_0", {"left": 1.0})


def test_the_code_in_the_documentation_does_what_it_says(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "lora.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        fewer = block.replace("seed=7", "seed=7, num_inference_steps=1")
        exec(compile(fewer, "docs/lora.md", "exec", dont_inherit=True), names)
    assert (tmp_path / "ink" / "pytorch_lora_weights.safetensors").is_file()
    assert names["pipe"].get_list_adapters() == {}
