"""LoRAs in both libraries: the same file gives the same numbers, whoever wrote it."""

from __future__ import annotations

import pytest
import torch

import langevin
from langevin import add_lora, lora_metadata, lora_state_dict
from tests.lora.lora_makers import ATTENTION, EVERYTHING, TEXT, fresh, peft_lora, predicted, random_lora, read_text
from tests.pipelines.family_checks import images

CONFIGS = {
    "rank 4": {},
    "alpha 8": dict(lora_alpha=8),
    "rank 2, alpha 1, no metadata": dict(r=2, lora_alpha=2, metadata=False),
    "rank 16, alpha 3": dict(r=16, lora_alpha=3),
    "PEFT's names": dict(form="peft", lora_alpha=6),
    "rslora": dict(r=9, lora_alpha=2, use_rslora=True),
    "dora": dict(use_dora=True, form="peft", lora_alpha=8),
    "patterns": dict(rank_pattern={"attn1.to_q": 2, "q_proj": 5}, alpha_pattern={"attn2.to_k": 9, "q_proj": 1}),
    "every kind of layer": dict(unet=EVERYTHING, text=(*TEXT, "fc1", "fc2"), form="peft"),
    "every kind of layer, dora": dict(unet=EVERYTHING, text=(*TEXT, "fc1"), use_dora=True, form="peft", lora_alpha=3),
    "with biases": dict(lora_bias=True, form="peft"),
    "one block": dict(unet=("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",), text=()),
}


def close(ours, theirs, rtol=1e-5):
    assert (ours - theirs).abs().max() <= rtol * theirs.abs().max(), ((ours - theirs).abs().max(), theirs.abs().max())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("unet", ["sd1", "sd2"])
def test_a_file_of_the_reference_gives_its_numbers(twins, tmp_path, unet, config):
    ours, theirs = fresh(twins, unet)
    before = predicted(ours.unet)
    folder = peft_lora(theirs, tmp_path, kept=(peft := {}), **CONFIGS[config])
    for pipe in (ours, theirs):
        pipe.load_lora_weights(folder, adapter_name="x")
    assert ours.get_list_adapters() == theirs.get_list_adapters()
    close(predicted(ours.unet), predicted(theirs.unet))
    close(predicted(ours.unet), predicted(peft["unet"]))
    close(read_text(ours.text_encoder), read_text(peft.get("text_encoder", theirs.text_encoder)))
    if "dora" not in config:  # the reference loses the magnitudes of text encoders
        close(read_text(ours.text_encoder), read_text(theirs.text_encoder))
    assert (predicted(ours.unet) - before).abs().max() > 1e-3


def test_names_of_two_kinds_in_one_file_are_read(twins, tmp_path):
    """The reference's own conversion of a LoRA on layers of every kind writes them, and it then loses some of them."""
    ours, theirs = fresh(twins)
    folder = peft_lora(theirs, tmp_path, kept=(peft := {}), unet=EVERYTHING, text=(*TEXT, "fc1", "fc2"))
    ours.load_lora_weights(folder)
    close(predicted(ours.unet), predicted(peft["unet"]))
    close(read_text(ours.text_encoder), read_text(peft["text_encoder"]))


@pytest.mark.parametrize(
    "config", [{}, dict(alpha=9), dict(rank=7, alpha=2.5), dict(use_dora=True), dict(use_rslora=True)]
)
def test_a_file_of_ours_gives_the_same_numbers_there(twins, tmp_path, config):
    ours, theirs = fresh(twins)
    layers = {}
    for part, targets in (("unet", EVERYTHING), ("text_encoder", TEXT)):
        network = getattr(ours, part)
        add_lora(network, target_modules=targets, start=False, generator=None, **config)
        layers |= {
            f"{part}_lora_layers": lora_state_dict(network),
            f"{part}_lora_adapter_metadata": lora_metadata(network),
        }
    ours.save_lora_weights(tmp_path, **layers)
    theirs.load_lora_weights(tmp_path)
    close(predicted(ours.unet), predicted(theirs.unet))
    if "use_dora" not in config:
        close(read_text(ours.text_encoder), read_text(theirs.text_encoder))
    back, _ = fresh(twins)
    back.load_lora_weights(tmp_path)
    assert torch.equal(predicted(back.unet), predicted(ours.unet))


def test_a_network_with_a_lora_is_saved_with_its_metadata(twins, tmp_path):
    ours, theirs = fresh(twins)
    add_lora(ours.unet, 4, alpha=10, start=False, rank_pattern={"to_v": 2})
    ours.save_lora_weights(tmp_path, unet_lora_layers=ours.unet)
    theirs.load_lora_weights(tmp_path)
    close(predicted(ours.unet), predicted(theirs.unet))


@pytest.mark.parametrize(
    "call", [{}, {"cross_attention_kwargs": {"scale": 0.5}}, {"cross_attention_kwargs": {"scale": 0.0}}]
)
def test_several_at_once_with_weights_give_the_references_pictures(twins, tmp_path, call):
    pipes = fresh(twins)
    a = peft_lora(pipes[1], tmp_path / "a", seed=1, lora_alpha=8)
    b = peft_lora(pipes[1], tmp_path / "b", seed=2, r=2, unet=("to_v", "conv1"), text=("q_proj",), form="peft")
    for pipe in pipes:
        pipe.load_lora_weights(a, adapter_name="a")
        pipe.load_lora_weights(b, adapter_name="b")
    weights = [
        [0.7, 1.3],
        [{"unet": 0.3, "text_encoder": 1.5}, 0.4],
        [{"unet": {"down": 0.3, "up": {"block_1": [0.2, 1.5]}}, "text_encoder": 0.6}, 1.0],
        [{"unet": {"mid": 0.1, "up": {"block_1": 0.0}}, "text_encoder": 0.6}, 0.2],
    ]
    for each in weights:
        for pipe in pipes:
            pipe.set_adapters(["a", "b"], each)
        ours, theirs = (images(pipe, "a cat", num_inference_steps=2, **call) for pipe in pipes)
        assert abs(ours - theirs).max() < 1e-5
    assert pipes[0].get_active_adapters() == pipes[1].get_active_adapters() == ["a", "b"]


def test_other_tasks_of_the_family_give_the_references_pictures(twins, tmp_path):
    from tests.pipelines.family_checks import mask_tensor, picture

    ours, theirs = fresh(twins, "inpaint")
    folder = peft_lora(theirs, tmp_path, lora_alpha=8)
    name = "StableDiffusionInpaintPipeline"
    both = []
    for library, pipe in ((langevin, ours), (__import__("diffusers"), theirs)):
        both.append(getattr(library, name)(**pipe.components, requires_safety_checker=False))
        both[-1].set_progress_bar_config(disable=True)
        both[-1].load_lora_weights(folder)
    told = dict(image=picture(), mask_image=mask_tensor(), num_inference_steps=2, height=16, width=16)
    got = [images(pipe, "a cat", cross_attention_kwargs={"scale": 0.7}, **told) for pipe in both]
    assert abs(got[0] - got[1]).max() < 1e-5


def test_fused_weights_are_the_references_and_are_undone_exactly(twins, tmp_path):
    pipes = ours, theirs = fresh(twins)
    before = {name: tensor.clone() for name, tensor in ours.unet.state_dict().items()}
    for number in (1, 2):
        folder = peft_lora(theirs, tmp_path / str(number), seed=number, use_dora=number == 2, form="peft", lora_alpha=3)
        for pipe in pipes:
            pipe.load_lora_weights(folder, adapter_name=f"{number}")
    for pipe in pipes:
        pipe.set_adapters(["1", "2"], [0.5, 0.8])
    free = images(ours, "a cat", num_inference_steps=2)
    ours.fuse_lora(lora_scale=1.0)
    assert ours.num_fused_loras == 2
    assert abs(images(ours, "a cat", num_inference_steps=2) - free).max() < 1e-5
    ours.unfuse_lora()
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.unet.state_dict().items())

    for pipe in pipes:
        pipe.set_adapters("1", 0.5)
        pipe.fuse_lora(lora_scale=0.6, safe_fusing=True)
    assert (
        abs(images(ours, "a cat", num_inference_steps=2) - images(theirs, "a cat", num_inference_steps=2)).max() < 1e-5
    )
    ours.unfuse_lora()
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.unet.state_dict().items())
    ours.set_adapters(["1", "2"], [0.5, 0.8])
    assert abs(images(ours, "a cat", num_inference_steps=2) - free).max() == 0  # it is not at 0.6 still


def test_a_fresh_lora_begins_with_pefts_numbers(twins):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    for start in ("gaussian", True, False):
        ours, theirs = fresh(twins)
        torch.manual_seed(5)
        theirs.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=start, target_modules=list(EVERYTHING)))
        torch.manual_seed(5)
        add_lora(ours.unet, 4, target_modules=EVERYTHING, start=start)
        wanted, made = get_peft_model_state_dict(theirs.unet), lora_state_dict(ours.unet, form="peft")
        assert set(wanted) == set(made)
        assert all(torch.equal(made[key], wanted[key]) for key in made)


def test_gradients_are_pefts(twins):
    from peft import LoraConfig

    for dora in (False, True):
        ours, theirs = fresh(twins)
        config = LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=list(ATTENTION), use_dora=dora)
        grads = []
        for pipe in (theirs, ours):
            torch.manual_seed(5)
            pipe.unet.add_adapter(config)
            text = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(1))
            pipe.unet(torch.ones(1, 4, 8, 8), 300, text).sample.square().mean().backward()
            named = [(n, p.grad) for n, p in pipe.unet.named_parameters() if p.requires_grad]
            grads.append(sorted(g.abs().sum().item() for _, g in named))
        assert grads[0] == pytest.approx(grads[1], rel=1e-4)
        assert len(grads[0]) == (96 if dora else 64)


def test_a_lora_on_a_network_alone_reads_the_scale_of_a_call(twins):
    ours, theirs = fresh(twins)
    add_lora(ours.unet, 4, start=False, name="x")
    theirs.load_lora_weights({f"unet.{k}": v for k, v in lora_state_dict(ours.unet, "x").items()})
    x, text = torch.ones(1, 4, 8, 8), torch.ones(1, 5, 24)
    for scale in (0.0, 0.4, 2.0):
        with torch.no_grad():
            got = [p.unet(x, 3, text, cross_attention_kwargs={"scale": scale}).sample for p in (ours, theirs)]
        close(*got)


def test_lora_of_kohya_with_alphas_per_module_is_w_plus_alpha_over_rank_times_ba(twins):
    """The reference gives each layer of the UNet's attention the commonest alpha."""
    ours, _ = fresh(twins)
    unet, text = ours.unet, ours.text_encoder
    state, alphas = {}, {}
    for part, network, targets in (("unet", unet, EVERYTHING), ("te_text_model", text, (*TEXT, "fc1"))):
        for number, (name, (down, up)) in enumerate(random_lora(network, targets, rank=3).items()):
            flat = f"lora_{part}_{name.removeprefix('text_model.').replace('.', '_')}"
            alphas[part, name] = (0.5, 1.0, 3.0, 8.0)[number % 4]
            state |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
            state[f"{flat}.alpha"] = torch.tensor(alphas[part, name])
    wanted, _ = fresh(twins)
    with torch.no_grad():
        for part, network, targets in (
            ("unet", wanted.unet, EVERYTHING),
            ("te_text_model", wanted.text_encoder, (*TEXT, "fc1")),
        ):
            modules = dict(network.named_modules())
            for name, (down, up) in random_lora(network, targets, rank=3).items():
                product = (up.flatten(1) @ down.flatten(1)).reshape(modules[name].weight.shape)
                modules[name].weight += alphas[part, name] / 3 * product
    plain = predicted(ours.unet)
    ours.load_lora_weights(state)
    close(predicted(ours.unet), predicted(wanted.unet), 2e-5)
    close(read_text(ours.text_encoder), read_text(wanted.text_encoder))
    assert (predicted(ours.unet) - plain).abs().max() > 0.1


def test_dora_of_kohya_brings_rows_to_their_lengths(twins):
    ours, _ = fresh(twins)
    wanted, _ = fresh(twins)
    targets = ("to_q", "conv1")
    modules, state = dict(wanted.unet.named_modules()), {}
    with torch.no_grad():
        for name, (down, up) in random_lora(wanted.unet, targets, rank=2).items():
            flat, weight = "lora_unet_" + name.replace(".", "_"), modules[name].weight
            lengths = (
                torch.rand(len(weight), *[1] * (weight.ndim - 1), generator=torch.Generator().manual_seed(3)) + 0.5
            )
            whole = weight + 1.5 / 2 * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            weight.copy_(lengths * whole / whole.flatten(1).norm(dim=1).reshape(lengths.shape))
            state |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.dora_scale": lengths}
            state[f"{flat}.alpha"] = torch.tensor(1.5)
    ours.load_lora_weights(state)
    close(predicted(ours.unet), predicted(wanted.unet), 2e-5)


def test_a_convolution_taken_apart_in_three_is_one_with_their_product(twins):
    ours, _ = fresh(twins)
    wanted, _ = fresh(twins)
    layer = wanted.unet.down_blocks[0].resnets[0].conv1
    generator = torch.Generator().manual_seed(0)
    down, mid, up = (
        torch.randn(size, generator=generator) * 0.3 for size in ((3, 16, 1, 1), (3, 3, 3, 3), (16, 3, 1, 1))
    )
    with torch.no_grad():
        layer.weight += torch.einsum("or,rskl,si->oikl", up[..., 0, 0], mid, down[..., 0, 0])
    flat = "lora_unet_down_blocks_0_resnets_0_conv1"
    names = {"lora_down": down, "lora_mid": mid, "lora_up": up}
    ours.load_lora_weights({f"{flat}.{name}.weight": tensor for name, tensor in names.items()})
    close(predicted(ours.unet), predicted(wanted.unet))
    ours.fuse_lora()
    close(predicted(ours.unet), predicted(wanted.unet))
