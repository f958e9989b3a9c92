"""UNet3DConditionModel gives the reference's numbers, whatever its config and its call switch on."""

from __future__ import annotations

import pytest
import torch
from models_oracle import assert_close, randn, twins

from langevin.models.layers.temporal import TemporalConvolutions, TemporalTransformer
from langevin.models.unet_3d import UNet3DConditionModel

BASE = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
}
TEXT = randn(2, 5, 24)
# maps for the way up of BASE, and the middle's, of two videos of three frames
RESIDUALS = [randn(6, 16, 8, 8, seed=k) for k in (1, 2)] + [randn(6, 16, 4, 4, seed=3), randn(6, 32, 4, 4, seed=4)]
MIDDLE = randn(6, 32, 4, 4, seed=5)

# name: (config, forward arguments, frames, height and width)
CASES = {
    "plain": ({}, {}, 3, (8, 8)),
    "one frame": ({}, {}, 1, (8, 8)),
    "sizes that do not halve": ({}, {}, 2, (7, 10)),
    "timesteps of their own": ({}, {"timestep": torch.tensor([5, 900])}, 3, (8, 8)),
    "two layers, wide heads": ({"layers_per_block": 2, "attention_head_dim": 16}, {}, 3, (8, 8)),
    "attention below": (
        {
            "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
            "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"),
        },
        {},
        3,
        (8, 8),
    ),
    "three stages": (
        {
            "block_out_channels": (16, 16, 32),
            "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        },
        {},
        2,
        (8, 12),
    ),
    "numbers": (
        {"act_fn": "gelu", "norm_eps": 1e-3, "mid_block_scale_factor": 1.5, "downsample_padding": 0},
        {},
        3,
        (8, 8),
    ),
    "other channels": ({"in_channels": 5, "out_channels": 3}, {}, 2, (8, 8)),
    "told a scale": ({"time_cond_proj_dim": 12}, {"timestep_cond": randn(2, 12)}, 2, (8, 8)),
    "residuals": (
        {},
        {"down_block_additional_residuals": RESIDUALS, "mid_block_additional_residual": MIDDLE},
        3,
        (8, 8),
    ),
    "residuals of the way down": ({}, {"down_block_additional_residuals": RESIDUALS}, 3, (8, 8)),
    "residual of the middle": ({}, {"mid_block_additional_residual": MIDDLE}, 3, (8, 8)),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_same_numbers_as_the_reference(name):
    config, given, frames, size = CASES[name]
    reference, mine = twins(UNet3DConditionModel, **{**BASE, **config})
    arguments = {"timestep": 7, "encoder_hidden_states": TEXT, **given}
    sample = randn(2, mine.config.in_channels, frames, *size)
    assert_close(mine(sample, **arguments).sample, reference(sample, **arguments).sample, 1e-5)
    assert torch.equal(mine(sample, **arguments, return_dict=False)[0], mine(sample, **arguments)[0])


@torch.no_grad()
def test_freeu_is_the_references():
    reference, mine = twins(UNet3DConditionModel, **BASE)
    sample = randn(1, 4, 3, 8, 8)
    plain = mine(sample, 7, TEXT[:1]).sample
    for network in (reference, mine):
        network.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    freed = mine(sample, 7, TEXT[:1]).sample
    assert_close(freed, reference(sample, 7, TEXT[:1]).sample, 1e-5)
    assert not torch.allclose(freed, plain, atol=1e-3)
    mine.disable_freeu()
    assert torch.equal(mine(sample, 7, TEXT[:1]).sample, plain)


@pytest.mark.parametrize("chunking", [(), (1, 1), (2, 1), (3, 0)])
@torch.no_grad()
def test_chunks_are_the_whole(chunking):
    """Where the reference demands sizes that divide, any size will do."""
    mine = UNet3DConditionModel(**BASE).eval()
    sample, sizes = randn(1, 4, 3, 8, 8), []
    plain = mine(sample, 7, TEXT[:1]).sample
    layer = mine.down_blocks[0].temp_attentions[0].transformer_blocks[0].ff.net[2]
    watch = layer.register_forward_hook(lambda layer, given, out: sizes.append(tuple(out.shape[:2])))
    mine.enable_forward_chunking(*chunking)
    assert_close(mine(sample, 7, TEXT[:1]).sample, plain, 1e-6)
    size, dim = chunking or (1, 0)
    assert max(shape[dim] for shape in sizes) == size
    sizes.clear()
    mine.disable_forward_chunking()
    mine(sample, 7, TEXT[:1])
    assert sizes == [(64, 3)]
    watch.remove()


def test_an_untrained_layer_along_time_changes_nothing_and_a_trained_one_knows_the_order_of_frames():
    x = randn(6, 16, 4, 4)
    with torch.no_grad():
        layer = TemporalConvolutions(16, groups=8).eval()
        assert torch.equal(layer(x, 3), x)
        torch.nn.init.normal_(layer.conv4[-1].weight)
        backwards = x.unflatten(0, (2, 3)).flip(1).flatten(0, 1)
        turned = layer(backwards, 3).unflatten(0, (2, 3)).flip(1).flatten(0, 1)
        assert not torch.allclose(turned, layer(x, 3), atol=1e-2)
        # attention over frames does not know their order, and one video does not see the other
        block = TemporalTransformer(16, heads=2, head_dim=8, groups=8).eval()
        turned = block(backwards, 3).unflatten(0, (2, 3)).flip(1).flatten(0, 1)
        assert_close(turned, block(x, 3), 1e-5)
        assert_close(block(x, 3)[:3], block(x[:3], 3), 1e-6)
        assert not torch.allclose(block(x, 3), block(x, 1), atol=1e-3)


WRONG = {
    "a picture": (lambda net: net(randn(2, 4, 8, 8), 5, TEXT), r"takes \(batch, 4, frames, height, width\)"),
    "channels": (lambda net: net(randn(2, 3, 2, 8, 8), 5, TEXT), r"takes \(batch, 4, frames"),
    "no text": (lambda net: net(randn(2, 4, 2, 8, 8), 5, None), "encoder_hidden_states is None"),
    "labels": (lambda net: net(randn(2, 4, 2, 8, 8), 5, TEXT, class_labels=torch.ones(2)), "class_labels given"),
    "maps": (
        lambda net: net(randn(2, 4, 3, 8, 8), 5, TEXT, down_block_additional_residuals=RESIDUALS[:3]),
        "has 3 maps; this network hands over 4",
    ),
    "kwargs": (lambda net: net(randn(2, 4, 2, 8, 8), 5, TEXT, cross_attention_kwargs={"x": 1}), "known are"),
    "chunks": (lambda net: net.enable_forward_chunking(1, 2), "dim is 2"),
    "no chunk": (lambda net: net.enable_forward_chunking(0), "chunk_size is 0"),
    "heads": (lambda net: UNet3DConditionModel(**{**BASE, "num_attention_heads": 4}), "num_attention_heads is 4"),
    "head width": (lambda net: UNet3DConditionModel(**{**BASE, "attention_head_dim": 12}), "attention_head_dim is 12"),
    "groups": (lambda net: UNet3DConditionModel(**{**BASE, "norm_num_groups": None}), "norm_num_groups is None"),
    "kinds": (
        lambda net: UNet3DConditionModel(**{**BASE, "down_block_types": ("CrossAttnDownBlock2D",) * 2}),
        "use one of: CrossAttnDownBlock3D, DownBlock3D",
    ),
    "stages": (lambda net: UNet3DConditionModel(**{**BASE, "block_out_channels": (16,)}), "give one per stage"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_answered_in_one_line(name):
    do, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as caught:
        do(UNet3DConditionModel(**BASE))
    assert "\n" not in str(caught.value)
