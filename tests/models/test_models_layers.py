"""Layers that no config of the reference's whole networks reaches, against the reference's layers."""

from __future__ import annotations

import pytest
import torch
from models_oracle import assert_close, diffusers, randn, random_weights

from langevin.models.layers.blocks import UpStage
from langevin.models.layers.embeddings import sinusoid
from langevin.models.layers.kinds import UP, Options
from langevin.models.layers.map_attention import Call
from langevin.models.layers.resnet import ResnetBlock
from langevin.models.layers.transformer import DualTransformer2D, Mix


@pytest.fixture
def dual():
    from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel

    reference = DualTransformer2DModel(4, 8, in_channels=32, num_layers=1, cross_attention_dim=24, norm_num_groups=8)
    ours = DualTransformer2D(32, heads=4, head_dim=8, context_dim=24, groups=8)
    weights = random_weights(reference)
    reference.load_state_dict(weights)
    ours.load_state_dict(weights, strict=True)
    return reference.eval(), ours.eval()


@torch.no_grad()
def test_dual_transformer(dual):
    reference, ours = dual
    x, context = randn(2, 32, 6, 6), randn(2, 77 + 257, 24)
    assert_close(ours(x, context), reference(x, context, return_dict=False)[0])


@torch.no_grad()
def test_dual_transformer_with_another_mix(dual):
    reference, ours = dual
    x, context = randn(2, 32, 6, 6), randn(2, 20, 24)
    reference.mix_ratio, reference.condition_lengths, reference.transformer_index_for_condition = 0.2, [7, 13], [0, 1]
    got = ours(x, context, mix=Mix(0.2, (7, 13), (0, 1)))
    assert_close(got, reference(x, context, return_dict=False)[0])
    with pytest.raises(ValueError, match=r"has 20 tokens.*into 77 and 257"):
        ours(x, context)


@torch.no_grad()
def test_dual_attention_in_a_unet_is_told_how_to_mix_by_the_call():
    from langevin.models.unet_2d_condition import UNet2DConditionModel

    config = {
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 24,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "dual_cross_attention": True,
    }
    reference, ours = diffusers.UNet2DConditionModel(**config).eval(), UNet2DConditionModel(**config).eval()
    assert set(reference.state_dict()) == set(ours.state_dict())
    sample, text = randn(1, 4, 8, 8), randn(1, 12, 24)

    def run(**mix):
        return ours(sample, 5, text, cross_attention_kwargs={"dual": {"lengths": (4, 8), **mix}}).sample

    assert torch.equal(run(), run(ratio=0.5))
    assert not torch.allclose(run(ratio=0.9), run(ratio=0.1), atol=1e-3)


@pytest.mark.parametrize("use", ["ada_group", "spatial"])
@torch.no_grad()
def test_residual_block_with_conditional_norms(use):
    from diffusers.models.resnet import ResnetBlockCondNorm2D

    reference = ResnetBlockCondNorm2D(
        in_channels=32, out_channels=64, temb_channels=12, groups=8, groups_out=16, time_embedding_norm=use
    )
    ours = ResnetBlock(32, 64, embedding_dim=12, embedding_use=use, groups=8, groups_out=16)
    weights = random_weights(reference)
    reference.load_state_dict(weights)
    ours.load_state_dict(weights, strict=True)
    emb = randn(2, 12) if use == "ada_group" else randn(2, 12, 4, 4)
    x = randn(2, 32, 8, 8)
    assert_close(ours.eval()(x, emb), reference.eval()(x, emb))


@torch.no_grad()
def test_decoder_stage_with_spatial_norms():
    from diffusers.models.unets.unet_2d_blocks import AttnUpDecoderBlock2D

    reference = AttnUpDecoderBlock2D(
        in_channels=32,
        out_channels=64,
        num_layers=2,
        resnet_eps=1e-6,
        resnet_act_fn="swish",
        resnet_groups=32,
        resnet_time_scale_shift="spatial",
        attention_head_dim=64,
        temb_channels=4,
    ).eval()
    options = Options(embedding_dim=4, embedding_use="spatial", eps=1e-6, head_dim=64)
    ours = UpStage(UP["AttnUpDecoderBlock2D"], 32, 64, 0, layers=2, upsample=True, options=options).eval()
    weights = random_weights(reference)
    reference.load_state_dict(weights)
    ours.load_state_dict(weights, strict=True)
    x, z = randn(2, 32, 8, 8), randn(2, 4, 4, 4)
    assert_close(ours(x, [], Call(emb=z))[0], reference(x, z))


@pytest.mark.parametrize("dim", [16, 17])
@pytest.mark.parametrize("cos_first", [False, True])
def test_sinusoid(dim, cos_first):
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 1.5, 999.0])
    theirs = get_timestep_embedding(t, dim, flip_sin_to_cos=cos_first, downscale_freq_shift=1)
    assert_close(sinusoid(t, dim, cos_first=cos_first, freq_shift=1), theirs)


def test_a_timestep_of_750_stays_750_in_a_bfloat16_network():
    half = sinusoid(torch.tensor([750]), 32).bfloat16()
    assert torch.equal(half, sinusoid(torch.tensor([750.0]), 32).bfloat16())
    assert not torch.equal(half, sinusoid(torch.tensor([752.0]), 32).bfloat16())
