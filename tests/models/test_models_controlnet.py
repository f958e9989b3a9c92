"""ControlNetModel and MultiControlNetModel give the reference's numbers, weights and folders."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from models_oracle import assert_close, diffusers, randn, random_weights, twins
from safetensors.torch import load_file, save_file

from langevin import ControlNetModel, MultiControlNetModel, UNet2DConditionModel
from langevin.checkpoints.errors import CheckpointError
from langevin.models.controlnet import ControlNetOutput
from langevin.models.layers.attention import Attention

BASE = {
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "conditioning_embedding_out_channels": (8, 12, 16, 24),
}
UNET = {
    **{name: value for name, value in BASE.items() if name != "conditioning_embedding_out_channels"},
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
SDXL = {
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [2, 4, 8],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 48,
    "use_linear_projection": True,
}
SDXL_TOLD = {"added_cond_kwargs": {"text_embeds": randn(2, 16), "time_ids": torch.arange(12).reshape(2, 6) * 70}}
SAMPLE, TEXT, HINT = randn(2, 4, 8, 8), randn(2, 7, 24), randn(2, 3, 64, 64, seed=5)

# name: (config, forward arguments)
CASES = {
    "sd1": ({"layers_per_block": 2, "attention_head_dim": 4}, {}),
    "sd2": ({"attention_head_dim": (2, 4, 8), "use_linear_projection": True, "upcast_attention": True}, {}),
    "heads by their own name": ({"num_attention_heads": (2, 4, 8), "attention_head_dim": 16}, {}),
    "sdxl": (SDXL, SDXL_TOLD),
    "two stages without attention first": (
        {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"),
            "transformer_layers_per_block": (1, 1, 2),
        },
        {},
    ),
    "small middle": (
        {"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D", "mid_block_scale_factor": 1.3},
        {},
    ),
    "resampling residual blocks": (
        {
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "resnet_time_scale_shift": "scale_shift",
            "only_cross_attention": (False, True, True),
        },
        {},
    ),
    "other numbers": (
        {
            "in_channels": 9,
            "act_fn": "gelu",
            "norm_eps": 1e-3,
            "norm_num_groups": 8,
            "downsample_padding": 0,
            "mid_block_scale_factor": 1.4,
            "freq_shift": 1,
            "flip_sin_to_cos": False,
            "only_cross_attention": True,
        },
        {"sample": randn(2, 9, 8, 8), "timestep": torch.tensor([3, 900])},
    ),
    "class table": ({"num_class_embeds": 20}, {"class_labels": torch.tensor([3, 19])}),
    "class as a time": (
        {"class_embed_type": "timestep", "act_fn": "gelu"},
        {"class_labels": torch.tensor([3, 900])},
    ),
    "class as a vector": ({"class_embed_type": "identity"}, {"class_labels": randn(2, 128)}),
    "class projected": (
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 12},
        {"class_labels": randn(2, 12)},
    ),
    "text added to the time": ({"addition_embed_type": "text", "addition_embed_type_num_heads": 4}, {}),
    "text and image, which nothing reads": ({"addition_embed_type": "text_image"}, {}),
    "text of the layers' width beside a projection": (
        {"encoder_hid_dim": 40, "encoder_hid_dim_type": "text_proj"},
        {},
    ),
    "text and image projection beside it": ({"encoder_hid_dim": 24, "encoder_hid_dim_type": "text_image_proj"}, {}),
    # a mask of self-attention has one length, so only one stage may have any
    "masked": (
        {
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "mid_block_type": "UNetMidBlock2D",
        },
        {"attention_mask": (torch.arange(64) < 40).expand(2, 64)},
    ),
    "weaker": ({}, {"conditioning_scale": 0.3}),
    "guessing": ({}, {"guess_mode": True}),
    "guessing, weaker": ({"layers_per_block": 2}, {"guess_mode": True, "conditioning_scale": 0.3}),
    "pooled": ({"global_pool_conditions": True}, {"conditioning_scale": 0.3}),
    "pooled, guessing": ({"global_pool_conditions": True}, {"guess_mode": True}),
    "bgr": ({"controlnet_conditioning_channel_order": "bgr"}, {}),
    "a hint of five channels": ({"conditioning_channels": 5}, {"controlnet_cond": randn(2, 5, 64, 64)}),
    "a hint at a quarter": (
        {"conditioning_embedding_out_channels": (8, 16, 16)},
        {"controlnet_cond": randn(2, 3, 32, 32)},
    ),
    "a sample that is not square": (
        {},
        {"sample": randn(2, 4, 16, 8), "controlnet_cond": randn(2, 3, 128, 64)},
    ),
    "a sample that halves unevenly": (
        {},
        {"sample": randn(2, 4, 7, 5), "controlnet_cond": randn(2, 3, 56, 40)},
    ),
}


def given(**more):
    return {
        "sample": SAMPLE,
        "timestep": 701,
        "encoder_hidden_states": TEXT,
        "controlnet_cond": HINT,
        "return_dict": False,
        **more,
    }


def small(seed=0, **config):
    """A ControlNet all of whose weights speak."""
    network = ControlNetModel(**{**BASE, **config}).eval()
    network.load_state_dict(random_weights(network, seed))
    return network


def unet(**config):
    network = UNet2DConditionModel(**{**UNET, **config}).eval()
    network.load_state_dict(random_weights(network))
    return network


def assert_same(ours, reference, tolerance=1e-5):
    (down, mid), (their_down, their_mid) = ours, reference
    for a, b in zip([*down, mid], [*their_down, their_mid], strict=True):
        assert_close(a, b, tolerance)


# -- numbers


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_maps_are_the_references(name):
    config, arguments = CASES[name]
    reference, ours = twins(ControlNetModel, **{**BASE, **config})
    got, expected = ours(**given(**arguments)), reference(**given(**arguments))
    assert_same(got, expected)
    assert max(m.abs().max() for m in got[0]) > 0.1  # they do speak


@torch.no_grad()
def test_a_unet_that_is_told_paints_what_the_references_paints():
    config = {**UNET, "layers_per_block": 2, **SDXL}
    their_unet, our_unet = twins(UNet2DConditionModel, **config)
    theirs, ours = twins(ControlNetModel, **{**BASE, "layers_per_block": 2, **SDXL})

    def paint(network, control):
        down, mid = control(**given(conditioning_scale=0.5, **SDXL_TOLD))
        control = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return network(SAMPLE, 701, TEXT, **control, **SDXL_TOLD).sample

    painted = paint(our_unet, ours)
    assert_close(painted, paint(their_unet, theirs))
    assert not torch.allclose(painted, our_unet(SAMPLE, 701, TEXT, **SDXL_TOLD).sample, atol=1e-2)


@torch.no_grad()
def test_guessing_scales_from_a_tenth_to_one():
    network = small()
    plain, guessed = network(**given()), network(**given(guess_mode=True))
    factors = [
        (b.norm() / a.norm()).item() for a, b in zip([*plain[0], plain[1]], [*guessed[0], guessed[1]], strict=True)
    ]
    assert factors[0] == pytest.approx(0.1, rel=1e-4)
    assert factors[-1] == pytest.approx(1.0, rel=1e-4)
    ratios = [b / a for a, b in pairwise(factors)]
    assert max(ratios) == pytest.approx(min(ratios), rel=1e-4)


@torch.no_grad()
def test_pooled_maps_are_the_means_of_the_maps():
    plain = small()
    pooled = small(global_pool_conditions=True)
    for a, b in zip(plain(**given())[0], pooled(**given())[0], strict=True):
        assert b.shape[2:] == (1, 1)
        assert_close(b, a.mean((2, 3), keepdim=True))


@torch.no_grad()
def test_bgr_turns_the_hint_round():
    rgb, bgr = small(), small(controlnet_conditioning_channel_order="bgr")
    expected = rgb(**given(controlnet_cond=HINT[:, [2, 1, 0]]))
    assert_same(bgr(**given()), expected, 1e-7)
    assert not torch.equal(rgb(**given())[1], expected[1])


@torch.no_grad()
def test_each_picture_may_have_its_own_scale():
    network = small()
    got = network(**given(conditioning_scale=torch.tensor([0.2, 1.5]).view(2, 1, 1, 1)))
    for i, scale in enumerate((0.2, 1.5)):
        down, mid = network(**given(conditioning_scale=scale))
        assert_same(([m[i] for m in got[0]], got[1][i]), ([m[i] for m in down], mid[i]))


@torch.no_grad()
def test_a_projected_text_is_projected_where_its_width_asks_for_it():
    # the reference cannot run this at all
    network = small(encoder_hid_dim=40, encoder_hid_dim_type="text_proj")
    text = randn(2, 7, 40)
    expected = network(**given(encoder_hidden_states=network.encoder_hid_proj(text)))
    assert_same(network(**given(encoder_hidden_states=text)), expected, 1e-7)


# -- the hint


@torch.no_grad()
def test_a_hint_embedded_once_serves_every_step():
    network = small(controlnet_conditioning_channel_order="bgr")
    embedded = network.embed_condition(HINT)
    assert embedded.shape == (2, 32, 8, 8)
    for t in (1, 701):
        got = network(**given(timestep=t, controlnet_cond=None, embedded_cond=embedded))
        assert_same(got, network(**given(timestep=t)), 1e-7)


@torch.no_grad()
def test_one_hint_may_serve_the_whole_batch():
    network = small()
    expected = network(**given(controlnet_cond=HINT[:1].expand(2, -1, -1, -1)))
    assert_same(network(**given(controlnet_cond=HINT[:1])), expected)
    embedded = network.embed_condition(HINT[:1])
    assert_same(network(**given(controlnet_cond=None, embedded_cond=embedded)), expected)


@torch.no_grad()
def test_what_comes_back_is_a_record_or_a_tuple():
    network = small()
    out = network(SAMPLE, 701, TEXT, HINT)
    assert isinstance(out, ControlNetOutput)
    assert_same(network(**given()), (out.down_block_res_samples, out.mid_block_res_sample), 1e-7)
    assert out["mid_block_res_sample"] is out[1]
    assert len(out.down_block_res_samples) == 6


# -- from a UNet, and training


@torch.no_grad()
def test_at_the_start_it_changes_nothing():
    network = unet()
    control = ControlNetModel.from_unet(network)
    assert control.training
    down, mid = control(**given())
    assert all(not m.any() for m in (*down, mid))
    told = network(SAMPLE, 701, TEXT, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    assert torch.equal(told, network(SAMPLE, 701, TEXT).sample)


def _written(network, folder):
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return {k: v for k, v in config.items() if k[0] != "_"}, load_file(folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 12, "in_channels": 9},
        {"transformer_layers_per_block": (1, 2, 1), "attention_head_dim": (2, 4, 8), "use_linear_projection": True},
        SDXL,
        {"num_class_embeds": 5, "mid_block_type": "UNetMidBlock2D", "resnet_time_scale_shift": "scale_shift"},
    ],
    ids=["sd1", "unclip", "deeper", "sdxl", "small middle"],
)
def test_it_takes_from_a_unet_what_the_reference_takes(config, tmp_path):
    network = unet(**config)
    network.save_pretrained(tmp_path / "unet")
    their_unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    options = {
        "controlnet_conditioning_channel_order": "bgr",
        "conditioning_embedding_out_channels": (8, 16, 16, 32),
        "conditioning_channels": 5,
    }
    ours, weights = _written(ControlNetModel.from_unet(network, **options), tmp_path / "ours")
    theirs, expected = _written(diffusers.ControlNetModel.from_unet(their_unet, **options), tmp_path / "theirs")
    assert ours == theirs
    assert weights.keys() == expected.keys()
    random = {name for name in weights if "cond_embedding" in name and "conv_out" not in name}
    assert random
    for name in weights.keys() - random:
        assert torch.equal(weights[name], expected[name]), name


def test_it_may_start_from_random_weights():
    network = unet()
    control = ControlNetModel.from_unet(network, load_weights_from_unet=False)
    assert not torch.equal(control.conv_in.weight, network.conv_in.weight)
    copied = ControlNetModel.from_unet(network)
    assert torch.equal(copied.conv_in.weight, network.conv_in.weight)
    assert copied.conv_in.weight.data_ptr() != network.conv_in.weight.data_ptr()


def test_a_projection_of_the_text_is_copied_too():
    network = unet(encoder_hid_dim=40, encoder_hid_dim_type="text_proj")
    control = ControlNetModel.from_unet(network)
    assert torch.equal(control.encoder_hid_proj.weight, network.encoder_hid_proj.weight)


def test_a_half_precision_unet_gives_one_that_can_be_trained():
    control = ControlNetModel.from_unet(unet().half())
    assert {p.dtype for p in control.parameters()} == {torch.float32}


def test_a_unet_that_it_cannot_copy_is_named():
    network = UNet2DConditionModel(**UNET, time_cond_proj_dim=8, cross_attention_norm="layer_norm")
    with pytest.raises(
        ValueError, match="cross_attention_norm='layer_norm', time_cond_proj_dim=8, for which a Control"
    ):
        ControlNetModel.from_unet(network)
    assert ControlNetModel.from_unet(network, load_weights_from_unet=False).conv_in.out_channels == 32


def test_the_first_step_moves_only_what_is_silent_and_then_everything_learns():
    control = ControlNetModel.from_unet(unet())

    def gradients():
        control.zero_grad()
        down, mid = control(**given())
        sum(((m - 1) ** 2).mean() for m in (*down, mid)).backward()
        return {name: p.grad for name, p in control.named_parameters()}

    first = gradients()
    assert all(g is not None for g in first.values())
    moved = {name for name, g in first.items() if g.any()}
    assert moved == {name for name in first if name.startswith(("controlnet_down_blocks", "controlnet_mid_block"))}
    torch.optim.SGD(control.parameters(), lr=0.1).step()
    second = gradients()
    # the hint's own last layer is silent as well, and lets what is before it learn one step later
    before = {name for name in second if name.startswith("controlnet_cond_embedding") and "conv_out" not in name}
    assert {name for name, g in second.items() if not g.any()} == before
    torch.optim.SGD(control.parameters(), lr=0.1).step()
    assert all(g.any() for g in gradients().values())


def test_checkpointing_gives_the_same_gradients_and_keeps_less():
    network = small(layers_per_block=2).train()

    def gradients():
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        network.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            down, mid = network(**given())
        sum(m.square().mean() for m in (*down, mid)).backward()
        return {name: p.grad.clone() for name, p in network.named_parameters()}, kept

    plain, much = gradients()
    network.enable_gradient_checkpointing()
    saved, little = gradients()
    assert little < 0.6 * much
    for name, gradient in plain.items():
        assert_close(saved[name], gradient, 1e-6)


# -- what every network here promises


@torch.no_grad()
def test_an_attention_function_sees_every_layer():
    network, seen = small(), []

    def attend(q, k, v, mask, layer):
        seen.append(layer)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    assert_same(network(**given(attention=attend)), network(**given()), 1e-7)
    assert {id(layer) for layer in seen} == {id(m) for m in network.modules() if isinstance(m, Attention)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_keeps_its_dtype_and_comes_near(dtype):
    network = small()
    full = network(**given(guess_mode=True))
    network.to(dtype)
    low = {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in given().items()}
    half = network(**{**low, "guess_mode": True})
    for a, b in zip([*half[0], half[1]], [*full[0], full[1]], strict=True):
        assert a.dtype == dtype
        assert (a.float() - b).abs().max() < 0.1 * b.abs().max()


# -- on disk


@pytest.mark.parametrize("config", [{}, SDXL, {"global_pool_conditions": True, "conditioning_channels": 4}])
@torch.no_grad()
def test_there_and_back(config, tmp_path):
    reference, ours = twins(ControlNetModel, **{**BASE, **config})
    told = {
        **(SDXL_TOLD if config is SDXL else {}),
        "controlnet_cond": randn(2, ours.config.conditioning_channels, 64, 64),
    }
    expected = reference(**given(**told))
    reference.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    assert_same(ControlNetModel.from_pretrained(tmp_path / "theirs")(**given(**told)), expected)
    assert_same(diffusers.ControlNetModel.from_pretrained(tmp_path / "ours").eval()(**given(**told)), expected)
    known, kept = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("theirs", "ours"))
    assert {k: v for k, v in kept.items() if k[0] != "_"} == {k: v for k, v in known.items() if k[0] != "_"}
    assert kept["_class_name"] == "ControlNetModel"


@torch.no_grad()
def test_old_names_of_attention_weights_are_read(tmp_path):
    config = {"down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")}
    network = small(**config)
    network.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in load_file(file).items():
        if name.startswith("down_blocks.0.attentions"):
            for new, was in old.items():
                name = name.replace(new, was)
        weights[name] = value
    assert any("proj_attn" in name for name in weights)
    save_file(weights, file, metadata={"format": "pt"})
    assert_same(ControlNetModel.from_pretrained(tmp_path)(**given()), network(**given()), 1e-7)


# name: (config, number of parameters where it is known, what forward is told: shapes of the vectors)
PUBLISHED = {
    "sd-controlnet": (
        {"cross_attention_dim": 768, "attention_head_dim": 8},
        361_279_120,
        {},
    ),
    "controlnet for Stable Diffusion 2.1": (
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        None,
        {},
    ),
    "controlnet-sdxl": (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "projection_class_embeddings_input_dim": 2816,
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
        },
        None,
        {"text_embeds": (1, 1280), "time_ids": (1, 6)},
    ),
    "controlnet-sdxl-small": (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D"] * 3,
            "mid_block_type": "UNetMidBlock2D",
            "projection_class_embeddings_input_dim": 2816,
            "use_linear_projection": True,
        },
        None,
        {"text_embeds": (1, 1280), "time_ids": (1, 6)},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_keys_shapes_and_a_pass_of_published_ones(name):
    config, count, told = PUBLISHED[name]
    with torch.device("meta"):
        reference, network = diffusers.ControlNetModel(**config), ControlNetModel(**config)
        vectors = {key: torch.empty(shape) for key, shape in told.items()}
        inputs = torch.empty(1, 4, 64, 64), 7, torch.empty(1, 77, config["cross_attention_dim"])
        hint = torch.empty(1, 3, 512, 512)
    theirs = {key: (value.shape, value.dtype) for key, value in reference.state_dict().items()}
    assert {key: (value.shape, value.dtype) for key, value in network.state_dict().items()} == theirs
    if count is not None:
        assert network.num_parameters() == count
    down, mid = network(*inputs, hint, added_cond_kwargs=vectors, return_dict=False)
    assert mid.shape == (1, 1280, *down[-1].shape[2:])
    assert len(down) == 12 if len(network.down_blocks) == 4 else 9


# -- several at once


def several():
    return MultiControlNetModel([small(seed=1), small(seed=2, controlnet_conditioning_channel_order="bgr")]).eval()


@torch.no_grad()
def test_several_are_summed_as_in_the_reference():
    ours = several()
    theirs = [diffusers.ControlNetModel.from_config(dict(net.config)) for net in ours.nets]
    reference = diffusers.MultiControlNetModel(theirs).eval()
    reference.load_state_dict(ours.state_dict())
    told = given(controlnet_cond=[HINT, randn(2, 3, 64, 64, seed=9)], conditioning_scale=[0.4, 1.2], guess_mode=True)
    got = ours(**told)
    assert_same(got, reference(**told))
    first = ours.nets[0](**{**told, "controlnet_cond": HINT, "conditioning_scale": 0.4})
    assert not torch.allclose(got[1], first[1])
    embedded = ours.embed_condition(told["controlnet_cond"])
    assert_same(ours(**{**told, "controlnet_cond": None, "embedded_cond": embedded}), got, 1e-7)
    record = ours(**{**told, "return_dict": True})
    assert isinstance(record, ControlNetOutput)
    assert_same((record[0], record[1]), got, 1e-7)


@torch.no_grad()
def test_one_scale_may_hold_for_all():
    network, told = several(), given(controlnet_cond=[HINT, HINT])
    one, each = network(**told, conditioning_scale=0.4), network(**told, conditioning_scale=(0.4, 0.4))
    assert_same(one, each, 1e-7)


@torch.no_grad()
def test_several_there_and_back(tmp_path):
    ours = several()
    told = given(controlnet_cond=[HINT, HINT], conditioning_scale=[0.4, 1.2])
    expected = ours(**told)
    ours.save_pretrained(tmp_path / "pipe" / "controlnet")
    assert sorted(path.name for path in (tmp_path / "pipe").iterdir()) == ["controlnet", "controlnet_1"]
    theirs = diffusers.MultiControlNetModel.from_pretrained(str(tmp_path / "pipe" / "controlnet")).eval()
    assert_same(expected, theirs(**told))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    for read in (
        MultiControlNetModel.from_pretrained(tmp_path / "theirs"),
        MultiControlNetModel.from_pretrained(tmp_path / "pipe", subfolder="controlnet"),
    ):
        assert len(read.nets) == 2
        assert not read.nets[1].training
        assert_same(read(**told), expected)
    half = MultiControlNetModel.from_pretrained(tmp_path / "theirs", torch_dtype=torch.float16)
    assert half.dtype == torch.float16


def test_folders_of_nets_that_are_no_longer_there_are_not_read_by_accident(tmp_path):
    MultiControlNetModel([small(), small(), small()]).save_pretrained(tmp_path / "nets")
    with pytest.raises(CheckpointError, match=r"nets_2 is there already and would be read as one more"):
        several().save_pretrained(tmp_path / "nets")
    with pytest.raises(CheckpointError, match="no folder"):
        MultiControlNetModel.from_pretrained(tmp_path / "none" / "nets")


# -- one clear line


WRONG = {
    "channels of the hint": (
        lambda: small()(SAMPLE, 7, TEXT, HINT[:, :1]),
        r"controlnet_cond has shape \(2, 1, 64, 64\); this network takes \(batch, 3, height, width\)",
    ),
    "a hint of the latents' size": (
        lambda: small()(SAMPLE, 7, TEXT, HINT[..., :8]),
        "controlnet_cond is 64 high and 8 wide; for this sample it has to be 64 high and 64 wide",
    ),
    "a larger sample": (
        lambda: small()(randn(2, 4, 16, 12), 7, TEXT, HINT),
        "is 64 high and 64 wide; for this sample it has to be 128 high and 96 wide",
    ),
    "an embedded hint of another size": (
        lambda: small()(SAMPLE, 7, TEXT, embedded_cond=randn(2, 32, 4, 8)),
        "embedded_cond is 4 high and 8 wide; for this sample it has to be 8 high and 8 wide",
    ),
    "an embedded hint that is none": (
        lambda: small()(SAMPLE, 7, TEXT, embedded_cond=SAMPLE),
        r"embedded_cond has shape \(2, 4, 8, 8\); give \(2 or 1, 32, 8, 8\)",
    ),
    "hints for another batch": (
        lambda: small()(SAMPLE[:1], 7, TEXT[:1], HINT),
        r"controlnet_cond has shape \(2, 3, 64, 64\); give \(1 or 1, 3, 64, 64\)",
    ),
    "no hint": (lambda: small()(SAMPLE, 7, TEXT), "needs one of controlnet_cond .* and embedded_cond"),
    "two hints": (
        lambda: small()(SAMPLE, 7, TEXT, HINT, embedded_cond=SAMPLE),
        "needs one of controlnet_cond .* and embedded_cond",
    ),
    "channels": (lambda: small()(HINT, 7, TEXT, HINT), r"takes \(batch, 4, height, width\)"),
    "no text": (lambda: small()(SAMPLE, 7, None, HINT), r"is None; the network takes \(2, tokens, 24\)"),
    "text for another batch": (lambda: small()(SAMPLE, 7, TEXT[:1], HINT), r"\(1, 7, 24\).*\(2, tokens, 24\)"),
    "guidance scale": (
        lambda: small()(SAMPLE, 7, TEXT, HINT, timestep_cond=randn(2, 8)),
        "timestep_cond was given to a network without time_cond_proj_dim",
    ),
    "attention arguments": (
        lambda: small()(SAMPLE, 7, TEXT, HINT, cross_attention_kwargs={"scales": 1}),
        "cross_attention_kwargs has scales",
    ),
    "channel order": (
        lambda: small(controlnet_conditioning_channel_order="gbr"),
        "controlnet_conditioning_channel_order='gbr' is unknown; use 'rgb' or 'bgr'",
    ),
    "stages": (lambda: small(down_block_types=("DownBlock2D",)), "down_block_types has 1 entries for 3"),
    "a stage that hands over no maps": (
        lambda: small(down_block_types=("KDownBlock2D", "DownBlock2D", "DownBlock2D")),
        "cannot read the maps of KDownBlock2D; choose another stage",
    ),
    "one hint for two nets": (
        lambda: several()(SAMPLE, 7, TEXT, HINT),
        "controlnet_cond is a Tensor; give a list with one for each of the 2 ControlNets",
    ),
    "three scales for two nets": (
        lambda: several()(SAMPLE, 7, TEXT, [HINT, HINT], [1, 2, 3]),
        "conditioning_scale is 3 entries; give a list with one for each of the 2 ControlNets",
    ),
    "nets for different UNets": (
        lambda: MultiControlNetModel([small(), small(layers_per_block=2)])(SAMPLE, 7, TEXT, [HINT, HINT]),
        "net 1 gives 9 maps and net 0 6: they are for different UNets",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_answered_in_one_line(name):
    call, line = WRONG[name]
    with pytest.raises(ValueError, match=line) as raised:
        call()
    assert "\n" not in str(raised.value)
