"""What every network here promises: attention that can be watched and replaced, checkpointed gradients, kept dtypes,
calls that do not disturb each other, and one clear line for a wrong input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from models_oracle import assert_close, randn

from langevin.models.autoencoder_kl import AutoencoderKL
from langevin.models.layers.attention import Attention
from langevin.models.unet_2d import UNet2DModel
from langevin.models.unet_2d_condition import UNet2DConditionModel
from langevin.models.unet_3d import UNet3DConditionModel

TEXT = randn(2, 7, 24)
SAMPLE = randn(2, 4, 16, 16)


def conditional(**config):
    torch.manual_seed(0)
    base = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**base, **config})


def unconditional(**config):
    torch.manual_seed(0)
    base = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    }
    return UNet2DModel(**{**base, **config})


def autoencoder(**config):
    torch.manual_seed(0)
    base = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(**{**base, **config})


def video():
    torch.manual_seed(0)
    return UNet3DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )


PYRAMID = {
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
KATHERINE = {
    "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D"),
    "mid_block_type": None,
    "up_block_types": ("KCrossAttnUpBlock2D", "KUpBlock2D"),
    "time_embedding_dim": 64,
    "block_out_channels": (64, 64),
}
# name: (network, one pass that gives a tensor)
NETWORKS = {
    "conditional": (conditional, lambda net, **kw: net(SAMPLE.to(net.dtype), 7, TEXT.to(net.dtype), **kw).sample),
    "gated": (
        lambda: conditional(attention_type="gated"),
        lambda net, **kw: (
            net(
                SAMPLE.to(net.dtype),
                7,
                TEXT.to(net.dtype),
                cross_attention_kwargs={
                    "gligen": {
                        "boxes": torch.rand(2, 3, 4).to(net.dtype),
                        "masks": torch.ones(2, 3).to(net.dtype),
                        "positive_embeddings": randn(2, 3, 24).to(net.dtype),
                    }
                },
                **kw,
            ).sample
        ),
    ),
    "dual": (
        lambda: conditional(dual_cross_attention=True),
        lambda net, **kw: (
            net(
                SAMPLE.to(net.dtype), 7, TEXT.to(net.dtype), cross_attention_kwargs={"dual": {"lengths": (3, 4)}}, **kw
            ).sample
        ),
    ),
    "k-diffusion": (
        lambda: conditional(**KATHERINE),
        lambda net, **kw: net(SAMPLE.to(net.dtype), 7, TEXT.to(net.dtype), **kw).sample,
    ),
    "unconditional": (unconditional, lambda net, **kw: net(SAMPLE[:, :3].to(net.dtype), 7, **kw).sample),
    "pyramid": (
        lambda: unconditional(**PYRAMID, time_embedding_type="fourier"),
        lambda net, **kw: net(SAMPLE[:, :3].to(net.dtype), 7, **kw).sample,
    ),
    "video": (
        video,
        lambda net, **kw: (
            net(SAMPLE[:, :, None, :4, :4].repeat(1, 1, 3, 1, 1).to(net.dtype), 7, TEXT.to(net.dtype), **kw).sample
        ),
    ),
    "autoencoder": (autoencoder, lambda net, **kw: net(SAMPLE[:, :3].to(net.dtype), **kw).sample),
}


@pytest.fixture(params=NETWORKS)
def network_and_run(request):
    build, run = NETWORKS[request.param]
    return build().eval(), run


@torch.no_grad()
def test_an_attention_function_sees_every_layer_and_a_faithful_one_changes_nothing(network_and_run):
    network, run = network_and_run
    seen = []

    def attend(q, k, v, mask, layer):
        assert q.ndim == k.ndim == v.ndim == 4
        assert q.shape[1] == layer.heads
        assert q.shape[3] == layer.head_dim
        seen.append(layer)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    torch.manual_seed(0)
    plain = run(network)
    torch.manual_seed(0)
    watched = run(network, attention=attend)
    assert torch.equal(watched, plain)
    layers = [module for module in network.modules() if isinstance(module, Attention)]
    assert len(seen) == len(layers) > 0
    assert set(map(id, seen)) == set(map(id, layers))


@torch.no_grad()
def test_an_attention_function_that_does_something_else_changes_the_result():
    network = conditional().eval()
    plain = network(SAMPLE, 7, TEXT).sample

    def blind(q, k, v, mask, layer):
        if layer.is_cross_attention:
            return torch.zeros_like(q)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    assert not torch.allclose(network(SAMPLE, 7, TEXT, attention=blind).sample, plain, atol=1e-3)
    assert torch.equal(network(SAMPLE, 7, TEXT).sample, plain)


def test_layers_know_whether_they_look_at_something_else():
    network = conditional()
    kinds = {name: m.is_cross_attention for name, m in network.named_modules() if isinstance(m, Attention)}
    assert not kinds["down_blocks.0.attentions.0.transformer_blocks.0.attn1"]
    assert kinds["down_blocks.0.attentions.0.transformer_blocks.0.attn2"]
    assert not kinds["down_blocks.1.attentions.0"]
    assert kinds["up_blocks.0.attentions.0"]


def test_checkpointing_gives_the_same_gradients(network_and_run):
    network, run = network_and_run
    network.train()

    def gradients():
        network.zero_grad()
        torch.manual_seed(0)
        run(network).square().mean().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    plain = gradients()
    network.enable_gradient_checkpointing()
    assert network.is_gradient_checkpointing
    saved = gradients()
    network.disable_gradient_checkpointing()
    assert not network.is_gradient_checkpointing
    assert plain.keys() == saved.keys()
    for name, gradient in plain.items():
        assert_close(saved[name], gradient, 1e-6)


def test_checkpointing_keeps_less():
    def kept(network):
        size = 0

        def pack(tensor):
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(SAMPLE, 7, TEXT)
        return size

    network = conditional().train()
    plain = kept(network)
    network.enable_gradient_checkpointing()
    assert kept(network) < 0.4 * plain


def test_every_parameter_that_should_learn_gets_a_gradient():
    for network, run in ((build(), run) for build, run in NETWORKS.values()):
        run(network.train()).square().mean().backward()
        without = {name for name, p in network.named_parameters() if p.grad is None}
        # random frequencies are fixed; the encodings of absent boxes were not asked for; the two below have no reader
        assert all("time_proj" in name or "null_" in name for name in without), without


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_keeps_its_dtype_and_comes_near(network_and_run, dtype):
    network, run = network_and_run
    torch.manual_seed(0)
    full = run(network)
    torch.manual_seed(0)
    half = run(network.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()


@torch.no_grad()
def test_channels_last_gives_the_same(network_and_run):
    network, run = network_and_run
    if any(parameter.ndim == 5 for parameter in network.parameters()):
        pytest.skip("torch has no such layout for convolutions over time")
    torch.manual_seed(0)
    plain = run(network)
    torch.manual_seed(0)
    assert_close(run(network.to(memory_format=torch.channels_last)), plain)


@torch.no_grad()
def test_one_network_serves_many_threads(network_and_run):
    network, run = network_and_run
    if "gligen" in str(getattr(network.config, "attention_type", "")):
        pytest.skip("draws its boxes at random")
    scales = [1.0, 0.5, 0.25, 2.0]

    def attend_at(scale):
        return lambda q, k, v, mask, layer: F.scaled_dot_product_attention(q * scale, k, v, attn_mask=mask)

    def one(scale):
        with torch.no_grad():
            return run(network, attention=attend_at(scale))

    torch.manual_seed(0)
    alone = [one(scale) for scale in scales]
    before = {name: id(value) for name, value in vars(network).items()}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, scales * 3))
    if "position_net" not in dict(network.named_children()):
        for got, expected in zip(together, alone * 3, strict=True):
            assert torch.equal(got, expected)
    assert before == {name: id(value) for name, value in vars(network).items()}


@torch.no_grad()
def test_inputs_are_left_as_they_were(network_and_run):
    network, run = network_and_run
    before = SAMPLE.clone(), TEXT.clone()
    run(network)
    assert torch.equal(SAMPLE, before[0])
    assert torch.equal(TEXT, before[1])


def test_outputs_are_records_with_items():
    out = unconditional().eval()(SAMPLE[:, :3], 7)
    assert out[0] is out.sample is out["sample"] is out.to_tuple()[0]
    assert list(out.keys()) == ["sample"]
    with pytest.raises(KeyError, match="has no 'image'; it has: sample"):
        out["image"]


def _call(*args, **kwargs):
    return lambda net: net(*args, **kwargs)


# what is asked for, and the line that comes back
WRONG = {
    "channels": (lambda: conditional()(randn(2, 3, 16, 16), 7, TEXT), r"\(2, 3, 16, 16\).*\(batch, 4, height, width\)"),
    "dimensions": (lambda: unconditional()(randn(3, 16, 16), 7), r"\(3, 16, 16\).*\(batch, 3, height, width\)"),
    "no text": (lambda: conditional()(SAMPLE, 7, None), r"is None; the network takes \(2, tokens, 24\)"),
    "text of another width": (lambda: conditional()(SAMPLE, 7, randn(2, 7, 32)), r"\(2, 7, 32\).*\(2, tokens, 24\)"),
    "text for another batch": (lambda: conditional()(SAMPLE, 7, TEXT[:1]), r"\(1, 7, 24\).*\(2, tokens, 24\)"),
    "timestep": (
        lambda: unconditional()(SAMPLE[:, :3], torch.tensor([1, 2, 3])),
        r"\(3,\) for a batch of 2; give a number, or a tensor of shape \(\) or \(2,\)",
    ),
    "mask": (
        lambda: conditional()(SAMPLE, 7, TEXT, encoder_attention_mask=torch.ones(2, 1, 7)),
        r"encoder_attention_mask has shape \(2, 1, 7\).*give \(batch, keys\)",
    ),
    "no class": (lambda: conditional(num_class_embeds=3)(SAMPLE, 7, TEXT), "give class_labels, one per picture"),
    "a class too few": (
        lambda: conditional(num_class_embeds=3)(SAMPLE, 7, TEXT, class_labels=torch.tensor([1])),
        r"class_labels has shape \(1,\) for a batch of 2",
    ),
    "a class for nobody": (
        lambda: unconditional()(SAMPLE[:, :3], 7, class_labels=torch.tensor([1, 2])),
        "told no class; leave them out",
    ),
    "no vectors": (
        lambda: conditional(
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64
        )(SAMPLE, 7, TEXT, added_cond_kwargs={"text_embeds": TEXT[:, 0]}),
        "needs added_cond_kwargs with time_ids; it was given text_embeds",
    ),
    "guidance scale": (
        lambda: conditional()(SAMPLE, 7, TEXT, timestep_cond=randn(2, 8)),
        "timestep_cond was given to a network without time_cond_proj_dim",
    ),
    "attention arguments": (
        lambda: conditional()(SAMPLE, 7, TEXT, cross_attention_kwargs={"scales": 1}),
        "cross_attention_kwargs has scales; known are: gligen, dual, scale",
    ),
    "boxes": (
        lambda: conditional()(SAMPLE, 7, TEXT, cross_attention_kwargs={"gligen": {"boxes": SAMPLE}}),
        "attention_type='gated'",
    ),
    "residuals": (
        lambda: conditional()(
            SAMPLE, 7, TEXT, down_block_additional_residuals=[SAMPLE], mid_block_additional_residual=SAMPLE
        ),
        "has 1 maps; this network hands over 4",
    ),
    "size": (
        lambda: unconditional(**PYRAMID)(SAMPLE[:, :3, :15], 7),
        "15 high and 16 wide; this network takes multiples of 2",
    ),
    "block name": (
        lambda: unconditional(down_block_types=("DownBlok2D",) * 2),
        "'DownBlok2D'; use one of: DownBlock2D",
    ),
    "middle": (lambda: conditional(mid_block_type="Mid"), "mid_block_type: no block is called 'Mid'"),
    "stages": (lambda: conditional(down_block_types=("DownBlock2D",)), "down_block_types has 1 entries for 2"),
    "heads": (lambda: conditional(attention_head_dim=(1, 2, 3)), "attention_head_dim has 3 entries for 2"),
    "activation": (lambda: conditional(act_fn="tanhh"), "no activation is called 'tanhh'; use one of: silu"),
    "time": (lambda: conditional(time_embedding_type="x"), "time_embedding_type='x' is unknown; use 'positional'"),
    "class kind": (lambda: conditional(class_embed_type="x"), "class_embed_type='x' is unknown; use one of"),
    "addition": (lambda: conditional(addition_embed_type="x"), "addition_embed_type='x' is unknown; use one of"),
    "projection": (lambda: conditional(encoder_hid_dim_type="x", encoder_hid_dim=3), "encoder_hid_dim_type='x'"),
    "projection width": (lambda: conditional(encoder_hid_dim_type="text_proj"), "needs encoder_hid_dim"),
    "class width": (lambda: conditional(class_embed_type="projection"), "needs projection_class_embeddings_input_dim"),
    "time use": (
        lambda: conditional(resnet_time_scale_shift="x"),
        "resnet_time_scale_shift='x' is unknown; use one of",
    ),
    "context norm": (
        lambda: conditional(cross_attention_norm="x"),
        "cross_attention_norm='x' is unknown; use None, 'layer_norm' or 'group_norm'",
    ),
    "depths": (lambda: conditional(transformer_layers_per_block=[[1], 1]), "reverse_transformer_layers_per_block"),
    "too few depths": (
        lambda: conditional(
            transformer_layers_per_block=[1, 1], reverse_transformer_layers_per_block=[1, [1]], layers_per_block=2
        ),
        r"a stage of 3 layers has transformer depths \(1,\); give one, or one each",
    ),
    "odd fourier": (lambda: conditional(time_embedding_type="fourier", time_embedding_dim=5), "=5 is odd"),
    "attention type": (lambda: conditional(attention_type="x"), "attention_type='x' is unknown"),
    "pyramid with text": (lambda: conditional(**PYRAMID), "are for UNet2DModel"),
    "learned time": (lambda: unconditional(time_embedding_type="learned"), "num_train_timesteps"),
    "picture": (lambda: autoencoder().encode(SAMPLE), r"\(2, 4, 16, 16\).*\(batch, 3, height, width\)"),
    "latents": (lambda: autoencoder().decode(SAMPLE[:, :3]), r"\(2, 3, 16, 16\).*\(batch, 4, height, width\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_gives_one_clear_line(name):
    ask, line = WRONG[name]
    with pytest.raises(ValueError, match=line) as caught:
        ask()
    assert "\n" not in str(caught.value)
