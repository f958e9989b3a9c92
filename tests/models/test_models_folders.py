"""Networks written by one library are read by the other, with the same numbers."""

from __future__ import annotations

import json

import pytest
import torch
from models_oracle import assert_close, diffusers, randn, twins

from langevin.models.autoencoder_kl import AutoencoderKL
from langevin.models.unet_2d import UNet2DModel
from langevin.models.unet_2d_condition import UNet2DConditionModel
from langevin.models.vq_model import VQModel

NETWORKS = {
    UNet2DConditionModel: (
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": 24,
            "attention_head_dim": (2, 4),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "transformer_layers_per_block": (1, 2),
        },
        lambda net: net(randn(1, 4, 8, 8), 5, randn(1, 7, 24)).sample,
    ),
    UNet2DModel: (
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        },
        lambda net: net(randn(1, 3, 8, 8), 5).sample,
    ),
    AutoencoderKL: (
        {"block_out_channels": (32,), "latents_mean": (0.0, 0.1, 0.2, 0.3)},
        lambda net: net(randn(1, 3, 8, 8)).sample,
    ),
    VQModel: (
        {"block_out_channels": (32,), "norm_type": "spatial", "vq_embed_dim": 3},
        lambda net: net(randn(1, 3, 8, 8)).sample,
    ),
}


@pytest.mark.parametrize("ours", NETWORKS)
@torch.no_grad()
def test_there_and_back(ours, tmp_path):
    config, run = NETWORKS[ours]
    reference, mine = twins(ours, **config)
    reference.save_pretrained(tmp_path / "theirs")
    read = ours.from_pretrained(tmp_path / "theirs")
    assert_close(run(read), run(reference))
    mine.save_pretrained(tmp_path / "ours")
    back = getattr(diffusers, ours.__name__).from_pretrained(tmp_path / "ours").eval()
    assert_close(run(mine), run(back))
    kept = json.loads((tmp_path / "ours" / "config.json").read_text())
    known = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert {k: v for k, v in kept.items() if k[0] != "_"} == {k: v for k, v in known.items() if k[0] != "_"}
