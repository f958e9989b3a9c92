"""UNet2DModel gives the reference's numbers, whatever its config switches on."""

from __future__ import annotations

import pytest
import torch
from models_oracle import assert_close, randn, twins

from langevin.models.unet_2d import UNet2DModel

PLAIN = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
RESNET = {
    "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"),
}
SKIP = {
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
}
BASE = {"block_out_channels": (32, 64, 64), "layers_per_block": 1}

CASES = {
    "ddpm": (
        {
            **PLAIN,
            "layers_per_block": 2,
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        },
        {},
    ),
    "adm": (
        {
            **RESNET,
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "num_class_embeds": 4,
        },
        {"class_labels": torch.tensor([3, 1])},
    ),
    "convolutions down, residual blocks up": ({**RESNET, "upsample_type": "resnet"}, {}),
    "ncsn++": (
        {
            **SKIP,
            "time_embedding_type": "fourier",
            "mid_block_scale_factor": 2**0.5,
            "norm_eps": 1e-6,
        },
        {"timestep": torch.tensor([3.0, 0.01])},
    ),
    "ncsn++ with attention everywhere": (
        {
            "block_out_channels": (32, 64, 96),
            "layers_per_block": 2,
            "down_block_types": ("AttnSkipDownBlock2D",) * 3,
            "up_block_types": ("AttnSkipUpBlock2D",) * 3,
        },
        {},
    ),
    "pyramid down only": ({"down_block_types": SKIP["down_block_types"], "up_block_types": ("UpBlock2D",) * 3}, {}),
    "pyramid up only": ({"down_block_types": ("DownBlock2D",) * 3, "up_block_types": SKIP["up_block_types"]}, {}),
    "learned time": (
        {**PLAIN, "time_embedding_type": "learned", "num_train_timesteps": 10},
        {"timestep": torch.tensor([3, 9])},
    ),
    "unclip super-resolution": (
        {
            "down_block_types": ("ResnetDownsampleBlock2D",) * 3,
            "up_block_types": ("ResnetUpsampleBlock2D",) * 3,
            "in_channels": 6,
            "add_attention": False,
            "resnet_time_scale_shift": "scale_shift",
        },
        {},
    ),
    "norm in the middle": (
        {**PLAIN, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8, "mid_block_scale_factor": 1.3},
        {},
    ),
    "a class told like a time": (
        {
            **RESNET,
            "center_input_sample": True,
            "class_embed_type": "timestep",
            "act_fn": "gelu",
            "time_embedding_dim": 40,
            "norm_num_groups": 8,
            "dropout": 0.3,
        },
        {"class_labels": torch.tensor([4, 5])},
    ),
    "a class vector, no middle": (
        {**PLAIN, "class_embed_type": "identity", "mid_block_type": None, "act_fn": "mish"},
        {"class_labels": randn(2, 128)},
    ),
    "old block names": (
        {"down_block_types": ("UNetResAttnDownBlock2D",) * 3, "up_block_types": ("UNetResAttnUpBlock2D",) * 3},
        {},
    ),
    "k-diffusion": ({"down_block_types": ("KDownBlock2D",) * 3, "up_block_types": ("KUpBlock2D",) * 3}, {}),
    "k-diffusion, deep": (
        {
            "down_block_types": ("KDownBlock2D",) * 3,
            "up_block_types": ("KUpBlock2D",) * 3,
            "layers_per_block": 3,
            "time_embedding_dim": 64,
            "act_fn": "gelu",
        },
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_same_numbers_as_the_reference(name):
    config, given = CASES[name]
    reference, ours = twins(UNet2DModel, **{**BASE, **config})
    arguments = {"timestep": torch.tensor([3, 501]), **given}
    sample = randn(2, ours.config.in_channels, 16, 16)
    assert_close(ours(sample, **arguments).sample, reference(sample, **arguments).sample)


@torch.no_grad()
def test_the_default_config():
    # too large to compare in numbers here: its keys and shapes, and that it takes a picture
    import diffusers

    with torch.device("meta"):
        theirs, ours = diffusers.UNet2DModel(), UNet2DModel()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert ours(torch.empty(1, 3, 64, 64, device="meta"), 5).sample.shape == (1, 3, 64, 64)


@torch.no_grad()
def test_sizes_that_do_not_halve_evenly_come_back():
    net = UNet2DModel(**{**BASE, **PLAIN}).eval()
    assert net(randn(1, 3, 13, 18), 5).sample.shape == (1, 3, 13, 18)


@torch.no_grad()
def test_a_timestep_may_be_a_number_or_a_tensor():
    net = UNet2DModel(**{**BASE, **PLAIN}).eval()
    sample = randn(2, 3, 16, 16)
    expected = net(sample, torch.tensor([750, 750])).sample
    for timestep in (750, 750.0, torch.tensor(750), torch.tensor([750])):
        assert torch.equal(net(sample, timestep).sample, expected)
    assert torch.equal(net(sample, 750, return_dict=False)[0], expected)


@torch.no_grad()
def test_a_learned_time_takes_a_plain_number():
    net = UNet2DModel(**{**BASE, **PLAIN}, time_embedding_type="learned", num_train_timesteps=10).eval()
    sample = randn(2, 3, 16, 16)
    assert torch.equal(net(sample, 7).sample, net(sample, torch.tensor([7, 7])).sample)
