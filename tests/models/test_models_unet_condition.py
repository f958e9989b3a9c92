"""UNet2DConditionModel gives the reference's numbers, whatever its config switches on."""

from __future__ import annotations

import pytest
import torch
from models_oracle import assert_close, randn, twins

from langevin.models.unet_2d_condition import UNet2DConditionModel

CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
MIXED = {
    "down_block_types": ("AttnDownBlock2D", "SimpleCrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "AttnUpBlock2D"),
}
KATHERINE = {
    "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
    "mid_block_type": None,
    "up_block_types": ("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
    "norm_num_groups": None,
}
BASE = {
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
}
TEXT = randn(2, 7, 24)
KEEP = torch.tensor([[1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
BOXES = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
BOX_MASK = torch.tensor([[1.0, 0, 1], [1, 1, 0]])

# name: (config, forward arguments)
CASES = {
    "sd1": ({**CROSS, "layers_per_block": 2, "attention_head_dim": 4}, {}),
    "sd2": ({**CROSS, "attention_head_dim": (2, 4, 8), "use_linear_projection": True, "upcast_attention": True}, {}),
    "sdxl": (
        {
            **CROSS,
            "transformer_layers_per_block": [1, 2, 3],
            "attention_head_dim": [2, 4, 8],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 48,
            "use_linear_projection": True,
        },
        {"added_cond_kwargs": {"text_embeds": randn(2, 16), "time_ids": torch.arange(12).reshape(2, 6) * 70}},
    ),
    "if-1": (
        {
            **SIMPLE,
            "act_fn": "gelu",
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 4,
            "cross_attention_norm": "group_norm",
            "cross_attention_dim": 64,
            "encoder_hid_dim": 40,
            "encoder_hid_dim_type": "text_proj",
            "mid_block_only_cross_attention": True,
            "resnet_skip_time_act": True,
            "resnet_time_scale_shift": "scale_shift",
            "time_embedding_act_fn": "gelu",
            "out_channels": 8,
        },
        {"encoder_hidden_states": randn(2, 7, 40)},
    ),
    "if-2": (
        {
            **SIMPLE,
            "act_fn": "gelu",
            "class_embed_type": "timestep",
            "encoder_hid_dim": 40,
            "cross_attention_dim": 64,
            "cross_attention_norm": "group_norm",
            "only_cross_attention": True,
            "resnet_out_scale_factor": 1.414,
            "mid_block_scale_factor": 1.2,
            "resnet_time_scale_shift": "scale_shift",
            "norm_num_groups": 8,
            "layers_per_block": [1, 2, 1],
        },
        {"encoder_hidden_states": randn(2, 7, 40), "class_labels": torch.tensor([3, 900])},
    ),
    "layer norm on a text as wide as the map": (
        {
            **SIMPLE,
            "block_out_channels": (32, 32, 32),
            "cross_attention_dim": 32,
            "cross_attention_norm": "layer_norm",
            "only_cross_attention": [True, False, True],
        },
        {"encoder_hidden_states": randn(2, 7, 32)},
    ),
    "unclip decoder": (
        {**SIMPLE, "class_embed_type": "identity", "resnet_time_scale_shift": "scale_shift"},
        {"class_labels": randn(2, 128), "encoder_attention_mask": KEEP},
    ),
    "x4 upscaler": (
        {**CROSS, "only_cross_attention": [True, False, True], "num_class_embeds": 20, "use_linear_projection": True},
        {"class_labels": torch.tensor([3, 19])},
    ),
    "latent upscaler": (
        {
            **KATHERINE,
            "layers_per_block": 3,
            "act_fn": "gelu",
            "time_embedding_type": "fourier",
            "timestep_post_act": "gelu",
            "time_cond_proj_dim": 10,
            "conv_in_kernel": 1,
            "conv_out_kernel": 1,
            "resnet_time_scale_shift": "scale_shift",
        },
        {
            "timestep": torch.tensor([0.3, -0.1]),
            "timestep_cond": randn(2, 10),
            "encoder_attention_mask": KEEP.bool(),
        },
    ),
    "k-diffusion, narrow and deep": ({**KATHERINE, "time_embedding_dim": 64, "layers_per_block": 2}, {}),
    "stable unclip": (
        {
            **CROSS,
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 12,
            "time_embedding_act_fn": "silu",
            "act_fn": "gelu",
        },
        {"class_labels": randn(2, 12)},
    ),
    "class vector joined on": (
        {
            **CROSS,
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": 12,
            "class_embeddings_concat": True,
        },
        {"class_labels": randn(2, 12)},
    ),
    "class vector joined on, added keys": (
        {**SIMPLE, "class_embed_type": "identity", "class_embeddings_concat": True},
        {"class_labels": randn(2, 128)},
    ),
    "kandinsky text and image": (
        {
            **SIMPLE,
            "addition_embed_type": "text_image",
            "encoder_hid_dim": 10,
            "encoder_hid_dim_type": "text_image_proj",
        },
        {
            "encoder_hidden_states": randn(2, 5, 10),
            "added_cond_kwargs": {"text_embeds": randn(2, 24), "image_embeds": randn(2, 24, seed=2)},
        },
    ),
    "kandinsky image": (
        {**SIMPLE, "addition_embed_type": "image", "encoder_hid_dim": 10, "encoder_hid_dim_type": "image_proj"},
        {"encoder_hidden_states": None, "added_cond_kwargs": {"image_embeds": randn(2, 10)}},
    ),
    "kandinsky hint": (
        {
            **CROSS,
            "in_channels": 8,
            "addition_embed_type": "image_hint",
            "encoder_hid_dim": 10,
            "encoder_hid_dim_type": "image_proj",
        },
        {
            "encoder_hidden_states": None,
            "added_cond_kwargs": {"image_embeds": randn(2, 10), "hint": randn(2, 3, 128, 128)},
        },
    ),
    "text added to the time": ({**CROSS, "addition_embed_type": "text", "addition_embed_type_num_heads": 4}, {}),
    "depths per layer": (
        {
            **CROSS,
            "layers_per_block": [1, 2, 2],
            "transformer_layers_per_block": [[2], [1, 2], 1],
            "reverse_transformer_layers_per_block": [1, [1, 2, 1], [3, 1]],
            "cross_attention_dim": [24, 24, 24],
        },
        {},
    ),
    "depths per layer down to the middle": (
        {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 2,
            "transformer_layers_per_block": [1, [1, 2], [3, 1]],
            "reverse_transformer_layers_per_block": [[1, 2, 1], [1, 1, 2], 1],
        },
        {},
    ),
    "depths of the way up": (
        {**CROSS, "transformer_layers_per_block": [1, 2, 3], "reverse_transformer_layers_per_block": [2, 3, 1]},
        {},
    ),
    "only text, scale and shift": (
        {
            **CROSS,
            "only_cross_attention": True,
            "resnet_time_scale_shift": "scale_shift",
            "mid_block_scale_factor": 1.4,
            "act_fn": "gelu",
        },
        {"encoder_attention_mask": KEEP},
    ),
    "settings that these stages do not read": (
        {**CROSS, "resnet_skip_time_act": True, "resnet_out_scale_factor": 1.7, "mid_block_only_cross_attention": True},
        {},
    ),
    "three kinds of attention": (
        {**MIXED, "resnet_skip_time_act": True, "resnet_out_scale_factor": 1.7, "mid_block_scale_factor": 1.4},
        {"encoder_attention_mask": KEEP},
    ),
    "no attention in the middle": ({**MIXED, "mid_block_type": "UNetMidBlock2D", "act_fn": "mish"}, {}),
    "unusual convolutions": (
        {
            **CROSS,
            "freq_shift": 1,
            "flip_sin_to_cos": False,
            "downsample_padding": 0,
            "norm_eps": 1e-6,
            "norm_num_groups": 8,
            "conv_in_kernel": 5,
            "conv_out_kernel": 7,
            "mid_block_type": None,
            "act_fn": "relu",
        },
        {},
    ),
    "fourier time": (
        {
            **CROSS,
            "class_embed_type": "timestep",
            "time_embedding_type": "fourier",
            "time_embedding_dim": 20,
            "flip_sin_to_cos": False,
            "center_input_sample": True,
            "attention_head_dim": [4, 2, 8],
        },
        {"class_labels": torch.tensor([0.2, 0.7]), "timestep": 0.25},
    ),
    "self-attention mask": (
        {
            "block_out_channels": (32,),
            "down_block_types": ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",),
        },
        {"attention_mask": (torch.arange(512).reshape(2, 256) % 3 > 0).float(), "encoder_attention_mask": KEEP},
    ),
    "gligen": (
        {**CROSS, "attention_type": "gated"},
        {
            "cross_attention_kwargs": {
                "gligen": {"boxes": BOXES, "masks": BOX_MASK, "positive_embeddings": randn(2, 3, 24)}
            }
        },
    ),
    "gligen with images": (
        {**CROSS, "attention_type": "gated-text-image"},
        {
            "cross_attention_kwargs": {
                "gligen": {
                    "boxes": BOXES,
                    "masks": BOX_MASK,
                    "phrases_masks": BOX_MASK.flip(0),
                    "image_masks": 1 - BOX_MASK,
                    "phrases_embeddings": randn(2, 3, 24),
                    "image_embeddings": randn(2, 3, 24, seed=5),
                }
            }
        },
    ),
    "dropout is off in evaluation": ({**CROSS, "dropout": 0.5}, {}),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_same_numbers_as_the_reference(name):
    config, given = CASES[name]
    reference, ours = twins(UNet2DConditionModel, **{**BASE, **config})
    hint = 4 if config.get("addition_embed_type") == "image_hint" else 0
    arguments = {"timestep": torch.tensor([3, 501]), "encoder_hidden_states": TEXT, **given}
    sample = randn(2, ours.config.in_channels - hint, 16, 16)
    assert_close(ours(sample, **arguments).sample, reference(sample, **arguments).sample)


@pytest.fixture(scope="module")
def sd():
    return twins(UNet2DConditionModel, **{**BASE, **CROSS, "layers_per_block": 2})


@pytest.mark.parametrize("size", [(13, 18), (17, 9), (5, 6)])
@torch.no_grad()
def test_sizes_that_do_not_halve_evenly(sd, size):
    reference, ours = sd
    sample = randn(2, 4, *size)
    assert_close(ours(sample, 7, TEXT).sample, reference(sample, 7, TEXT).sample)


def _maps(widths: tuple[int, ...], sides: tuple[int, ...]) -> list[torch.Tensor]:
    return [randn(2, w, s, s, seed=i) for i, (w, s) in enumerate(zip(widths, sides, strict=True))]


@torch.no_grad()
def test_controlnet_residuals_are_added(sd):
    reference, ours = sd
    sample = randn(2, 4, 16, 16)
    down = _maps((32, 32, 32, 32, 64, 64, 64, 64, 64), (16, 16, 16, 8, 8, 8, 4, 4, 4))
    mid = randn(2, 64, 4, 4)
    told = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    assert_close(ours(sample, 7, TEXT, **told).sample, reference(sample, 7, TEXT, **told).sample)


@pytest.mark.parametrize("with_mid", [False, True])
@torch.no_grad()
def test_adapter_residuals_are_added_and_their_list_is_left_alone(sd, with_mid):
    reference, ours = sd
    sample = randn(2, 4, 16, 16)
    maps = _maps((32, 64, 64, 64)[: 3 + with_mid], (16, 8, 4, 4)[: 3 + with_mid])
    theirs = reference(sample, 7, TEXT, down_intrablock_additional_residuals=list(maps)).sample
    given = list(maps)
    assert_close(ours(sample, 7, TEXT, down_intrablock_additional_residuals=given).sample, theirs)
    assert len(given) == len(maps)


@torch.no_grad()
def test_adapter_residuals_given_the_old_way(sd):
    reference, ours = sd
    sample = randn(2, 4, 16, 16)
    maps = _maps((32, 64, 64), (16, 8, 4))
    theirs = reference(sample, 7, TEXT, down_block_additional_residuals=list(maps)).sample
    assert_close(ours(sample, 7, TEXT, down_block_additional_residuals=maps).sample, theirs)


@torch.no_grad()
def test_adapter_residual_of_a_first_stage_without_attention_comes_after_its_downsampling():
    config = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64),
    }
    reference, ours = twins(UNet2DConditionModel, **{**BASE, **config})
    sample, maps = randn(2, 4, 16, 16), _maps((32, 64), (8, 8))
    theirs = reference(sample, 7, TEXT, down_intrablock_additional_residuals=list(maps)).sample
    assert_close(ours(sample, 7, TEXT, down_intrablock_additional_residuals=maps).sample, theirs)


@torch.no_grad()
def test_freeu_on_and_off():
    reference, ours = twins(UNet2DConditionModel, **{**BASE, **CROSS, "layers_per_block": 2})
    sample = randn(2, 4, 16, 16)
    plain = ours(sample, 7, TEXT).sample
    reference.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    ours.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    changed = ours(sample, 7, TEXT).sample
    assert_close(changed, reference(sample, 7, TEXT).sample)
    assert not torch.allclose(changed, plain, atol=1e-2)
    ours.disable_freeu()
    assert torch.equal(ours(sample, 7, TEXT).sample, plain)


@torch.no_grad()
def test_a_timestep_may_be_a_number_or_a_tensor_and_a_tuple_may_come_back(sd):
    _, ours = sd
    sample = randn(2, 4, 16, 16)
    expected = ours(sample, torch.tensor([750, 750]), TEXT).sample
    for timestep in (750, 750.0, torch.tensor(750), torch.tensor([750.0])):
        assert torch.equal(ours(sample, timestep, TEXT).sample, expected)
    (got,) = ours(sample, 750, TEXT, return_dict=False)
    assert torch.equal(got, expected)


@torch.no_grad()
def test_heads_may_be_said_by_their_own_name():
    common = {**BASE, **CROSS}
    one = UNet2DConditionModel(**{**common, "attention_head_dim": (2, 4, 8)}).eval()
    two = UNet2DConditionModel(**{**common, "num_attention_heads": (2, 4, 8)}).eval()
    two.load_state_dict(one.state_dict())
    sample = randn(2, 4, 8, 8)
    assert torch.equal(one(sample, 7, TEXT).sample, two(sample, 7, TEXT).sample)


@torch.no_grad()
def test_masked_tokens_do_not_matter(sd):
    _, ours = sd
    sample = randn(2, 4, 16, 16)
    other = TEXT.clone()
    other[KEEP == 0] += 5.0
    got = ours(sample, 7, TEXT, encoder_attention_mask=KEEP).sample
    assert_close(ours(sample, 7, other, encoder_attention_mask=KEEP.float()).sample, got)
    cut = ours(sample[1:], 7, TEXT[1:, :6]).sample
    assert_close(got[1:], cut)
