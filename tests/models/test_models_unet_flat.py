"""UNetFlatConditionModel gives the reference's numbers, and is Versatile Diffusion's published text flow."""

from __future__ import annotations

import pytest
import torch
from models_oracle import assert_close, randn, random_weights

import langevin
from langevin.models.unet_2d_condition import UNet2DConditionModel
from langevin.models.unet_flat import UNetFlatConditionModel

BASE = {
    "in_channels": (6, 1, 1),
    "out_channels": (6, 1, 1),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlockFlat", "DownBlockFlat"),
    "up_block_types": ("UpBlockFlat", "CrossAttnUpBlockFlat"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
# name: (config, forward arguments)
CASES = {
    "vectors": ({}, {}),
    "channels with places": ({"in_channels": 5, "out_channels": 3}, {}),
    "as deep as published": (
        {
            "block_out_channels": (32, 64, 64, 64),
            "layers_per_block": 2,
            "down_block_types": ("CrossAttnDownBlockFlat",) * 3 + ("DownBlockFlat",),
            "up_block_types": ("UpBlockFlat",) + ("CrossAttnUpBlockFlat",) * 3,
        },
        {},
    ),
    "linear, other norms": (
        {"use_linear_projection": True, "norm_eps": 1e-3, "norm_num_groups": 16, "attention_head_dim": (2, 4)},
        {},
    ),
    "another activation": ({"act_fn": "mish", "freq_shift": 1, "flip_sin_to_cos": False}, {}),
    "told a class": ({"num_class_embeds": 7}, {"class_labels": torch.tensor([1, 5])}),
    "text alone": ({"only_cross_attention": True, "center_input_sample": True}, {}),
    "text of another width": ({"encoder_hid_dim": 20}, {"encoder_hidden_states": randn(2, 5, 20)}),
    "no middle": ({"mid_block_type": None}, {}),
    "plain middle": ({"mid_block_type": "UNetMidBlockFlat"}, {}),
    "joint middle": ({"mid_block_type": "UNetMidBlockFlatSimpleCrossAttn", "attention_head_dim": 32}, {}),
    "masked": ({}, {"encoder_attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]])}),
}
PUBLISHED = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlockFlat"] * 3 + ["DownBlockFlat"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": [768, 1, 1],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "only_cross_attention": False,
    "out_channels": [768, 1, 1],
    "sample_size": None,
    "up_block_types": ["UpBlockFlat"] + ["CrossAttnUpBlockFlat"] * 3,
    "use_linear_projection": False,
}


def reference(config):
    from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel as Theirs

    return Theirs(**config).eval()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_numbers_are_the_references(case):
    config, options = CASES[case]
    theirs, ours = reference({**BASE, **config}), UNetFlatConditionModel(**{**BASE, **config}).eval()
    weights = random_weights(theirs)
    theirs.load_state_dict(weights)
    ours.load_state_dict(weights)
    form = config.get("in_channels", (6, 1, 1))
    x = randn(2, *((form, 4, 1) if isinstance(form, int) else form), seed=3)
    told = {"encoder_hidden_states": randn(2, 5, 16), **options}
    wanted = theirs(x, torch.tensor([3, 700]), **told).sample
    assert_close(ours(x, torch.tensor([3, 700]), **told).sample, wanted)
    assert_close(ours(x, torch.tensor([3, 700]), **told, return_dict=False)[0], wanted)
    assert (ours(x, 3, **told).sample - wanted).abs().max() > 1e-3


def test_the_published_text_flow_has_the_references_weights():
    with torch.device("meta"):
        ours, theirs = UNetFlatConditionModel.from_config(PUBLISHED), reference(PUBLISHED)
        made = ours(torch.empty(1, 768, 1, 1), 500, torch.empty(1, 77, 768)).sample
    shapes = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert made.shape == (1, 768, 1, 1)


def test_it_survives_a_folder(tmp_path):
    net = UNetFlatConditionModel(**BASE)
    net.save_pretrained(tmp_path)
    read = langevin.UNetFlatConditionModel.from_pretrained(tmp_path)
    assert read.config.in_channels == (6, 1, 1) or read.config.in_channels == [6, 1, 1]
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("cls", "config", "says"),
    [
        (UNetFlatConditionModel, {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}, "with Flat in their"),
        (UNet2DConditionModel, {"in_channels": 4, "out_channels": 4}, "are for UNetFlatConditionModel"),
    ],
)
def test_stages_of_the_other_kind_are_refused(cls, config, says):
    with pytest.raises(ValueError, match=says):
        cls(**{**BASE, **config})


def test_a_sample_of_another_form_is_refused():
    with pytest.raises(ValueError, match=r"takes \(batch, 6, 1, 1\)"):
        UNetFlatConditionModel(**BASE)(randn(2, 4, 8, 8), 3, randn(2, 5, 16))
