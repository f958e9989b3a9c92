"""Keys and shapes of published checkpoints' networks, at full size on the meta device, are the reference's.

A forward pass on that device then shows that the network takes the sizes its pipeline gives it, and that the pass never
reads a value back from the device.
"""

from __future__ import annotations

import pytest
import torch
from models_oracle import diffusers

from langevin.models.autoencoder_kl import AutoencoderKL
from langevin.models.unet_2d import UNet2DModel
from langevin.models.unet_2d_condition import UNet2DConditionModel
from langevin.models.vq_model import VQModel

CROSS_DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
CROSS_UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
SIMPLE = {
    "act_fn": "silu",
    "attention_head_dim": 64,
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    "resnet_time_scale_shift": "scale_shift",
}
IF = {
    **SIMPLE,
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "layers_per_block": 3,
    "out_channels": 6,
    "resnet_skip_time_act": True,
}
SD1 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": CROSS_DOWN,
    "up_block_types": CROSS_UP,
    "layers_per_block": 2,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
}
SD2 = {**SD1, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
SD_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
VQ4 = {
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "num_vq_embeddings": 8192,
    "vq_embed_dim": 3,
    "sample_size": 256,
}

# name: (class, config, millions of parameters where they are published, what forward is given: widths of the vectors)
PUBLISHED = {
    "stable-diffusion-v1-5": (UNet2DConditionModel, SD1, 859.520964, {}),
    "stable-diffusion-inpainting": (UNet2DConditionModel, {**SD1, "in_channels": 9}, None, {}),
    "instruct-pix2pix": (UNet2DConditionModel, {**SD1, "in_channels": 8}, None, {}),
    "sd-image-variations": (UNet2DConditionModel, {**SD1, "sample_size": 64}, None, {}),
    "Paint-by-Example": (UNet2DConditionModel, {**SD1, "in_channels": 9}, None, {}),
    "AltDiffusion": (UNet2DConditionModel, {**SD1, "cross_attention_dim": 1024}, None, {}),
    "ldm-text2im-large-256": (
        UNet2DConditionModel,
        {**SD1, "sample_size": 32, "cross_attention_dim": 1280},
        None,
        {},
    ),
    "stable-diffusion-2-1": (
        UNet2DConditionModel,
        {**SD2, "upcast_attention": True, "sample_size": 96},
        865.910724,
        {},
    ),
    "stable-diffusion-2-depth": (UNet2DConditionModel, {**SD2, "in_channels": 5}, None, {}),
    "stable-diffusion-2-inpainting": (UNet2DConditionModel, {**SD2, "in_channels": 9}, None, {}),
    "stable-diffusion-2-1-unclip": (
        UNet2DConditionModel,
        {**SD2, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048},
        None,
        {"class_labels": (2, 2048)},
    ),
    "stable-diffusion-x4-upscaler": (
        UNet2DConditionModel,
        {
            **SD2,
            "attention_head_dim": 8,
            "block_out_channels": [256, 512, 512, 1024],
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
            "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
            "in_channels": 7,
            "num_class_embeds": 1000,
            "only_cross_attention": [True, True, True, False],
        },
        None,
        {"class_labels": (2,)},
    ),
    "sd-x2-latent-upscaler": (
        UNet2DConditionModel,
        {
            "act_fn": "gelu",
            "attention_head_dim": 64,
            "block_out_channels": [384, 384, 768, 768],
            "conv_in_kernel": 1,
            "conv_out_kernel": 1,
            "cross_attention_dim": 768,
            "cross_attention_norm": "layer_norm",
            "down_block_types": ["KDownBlock2D"] + ["KCrossAttnDownBlock2D"] * 3,
            "in_channels": 8,
            "layers_per_block": 4,
            "mid_block_type": None,
            "norm_num_groups": None,
            "out_channels": 5,
            "resnet_time_scale_shift": "scale_shift",
            "time_cond_proj_dim": 896,
            "time_embedding_type": "fourier",
            "timestep_post_act": "gelu",
            "up_block_types": ["KCrossAttnUpBlock2D"] * 3 + ["KUpBlock2D"],
            "use_linear_projection": True,
        },
        None,
        {"timestep_cond": (2, 896)},
    ),
    "stable-diffusion-xl-base-1.0": (
        UNet2DConditionModel,
        {
            **SD2,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "projection_class_embeddings_input_dim": 2816,
            "transformer_layers_per_block": [1, 2, 10],
        },
        2567.463684,
        {"text_embeds": (2, 1280), "time_ids": (2, 6)},
    ),
    "stable-diffusion-xl-refiner-1.0": (
        UNet2DConditionModel,
        {
            **SD2,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [6, 12, 24, 24],
            "block_out_channels": [384, 768, 1536, 1536],
            "cross_attention_dim": 1280,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "projection_class_embeddings_input_dim": 2560,
            "transformer_layers_per_block": 4,
        },
        None,
        {"text_embeds": (2, 1280), "time_ids": (2, 5)},
    ),
    "IF-I-XL": (
        UNet2DConditionModel,
        {**IF, "block_out_channels": [704, 1408, 2112, 2816], "cross_attention_dim": 2816, "in_channels": 3},
        None,
        {"text_width": 4096},
    ),
    "IF-II-L": (
        UNet2DConditionModel,
        {
            **IF,
            "block_out_channels": [320, 640, 1280, 1280],
            "class_embed_type": "timestep",
            "cross_attention_dim": 1280,
            "in_channels": 6,
            "layers_per_block": [2, 4, 6, 6],
            "mid_block_only_cross_attention": True,
            "mid_block_scale_factor": 1.4142135623730951,
            "only_cross_attention": [False, False, False, True],
            "resnet_out_scale_factor": 1.4142135623730951,
        },
        None,
        {"text_width": 4096, "class_labels": (2,)},
    ),
    "karlo decoder": (
        UNet2DConditionModel,
        {
            **SIMPLE,
            "block_out_channels": [320, 640, 960, 1280],
            "class_embed_type": "identity",
            "cross_attention_dim": 1536,
            "in_channels": 3,
            "layers_per_block": 3,
            "out_channels": 6,
        },
        None,
        {"class_labels": (2, 1280)},
    ),
    "karlo super-resolution": (
        UNet2DModel,
        {
            "add_attention": False,
            "block_out_channels": [320, 640, 960, 1280],
            "down_block_types": ["ResnetDownsampleBlock2D"] * 4,
            "up_block_types": ["ResnetUpsampleBlock2D"] * 4,
            "in_channels": 6,
            "layers_per_block": 3,
            "resnet_time_scale_shift": "scale_shift",
        },
        None,
        {},
    ),
    "versatile-diffusion image_unet": (UNet2DConditionModel, SD1, None, {}),
    "versatile-diffusion with both transformers": (
        UNet2DConditionModel,
        {**SD1, "dual_cross_attention": True},
        None,
        {"tokens": 77 + 257},
    ),
    "gligen": (
        UNet2DConditionModel,
        {**SD1, "attention_type": "gated"},
        None,
        {},
    ),
    "ddpm-cat-256": (
        UNet2DModel,
        {
            "attention_head_dim": None,
            "block_out_channels": [128, 128, 256, 256, 512, 512],
            "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        },
        113.673219,
        {},
    ),
    "ddpm-cifar10-32": (
        UNet2DModel,
        {
            "attention_head_dim": None,
            "block_out_channels": [128, 256, 256, 256],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        },
        35.746307,
        {},
    ),
    "ncsnpp-church-256": (
        UNet2DModel,
        {
            "attention_head_dim": None,
            "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
            "down_block_types": ["SkipDownBlock2D"] * 4 + ["AttnSkipDownBlock2D"] + ["SkipDownBlock2D"] * 2,
            "up_block_types": ["SkipUpBlock2D"] * 2 + ["AttnSkipUpBlock2D"] + ["SkipUpBlock2D"] * 4,
            "center_input_sample": False,
            "mid_block_scale_factor": 1.4142135623730951,
            "norm_eps": 1e-6,
            "time_embedding_type": "fourier",
        },
        None,
        {"side": 128},
    ),
    "ldm-celebahq-256": (
        UNet2DModel,
        {
            "attention_head_dim": 32,
            "block_out_channels": [224, 448, 672, 896],
            "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
            "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
        },
        None,
        {},
    ),
    "ldm-super-resolution-4x": (
        UNet2DModel,
        {
            "attention_head_dim": 32,
            "block_out_channels": [160, 320, 320, 640],
            "down_block_types": ["DownBlock2D"] * 2 + ["AttnDownBlock2D"] * 2,
            "up_block_types": ["AttnUpBlock2D"] * 2 + ["UpBlock2D"] * 2,
            "in_channels": 6,
        },
        None,
        {},
    ),
    "stable-diffusion VAE": (AutoencoderKL, SD_VAE, 83.653863, {}),
    "x4-upscaler VAE": (
        AutoencoderKL,
        {
            **SD_VAE,
            "block_out_channels": [128, 256, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "scaling_factor": 0.08333,
        },
        None,
        {},
    ),
    "ldm-celebahq-256 and ldm-super-resolution-4x VQ": (VQModel, VQ4, None, {}),
    "vq-diffusion-ithq VQ": (
        VQModel,
        {
            **VQ4,
            "block_out_channels": [128, 128, 256, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
            "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
            "latent_channels": 256,
            "num_vq_embeddings": 4096,
            "vq_embed_dim": 256,
        },
        None,
        {},
    ),
    "kandinsky-2-1 MoVQ": (
        VQModel,
        {
            **VQ4,
            "block_out_channels": [128, 256, 256, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
            "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
            "latent_channels": 4,
            "num_vq_embeddings": 16384,
            "vq_embed_dim": 4,
            "norm_type": "spatial",
        },
        None,
        {},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_keys_shapes_and_a_pass(name):
    ours, config, millions, given = PUBLISHED[name]
    with torch.device("meta"):
        reference, network = getattr(diffusers, ours.__name__)(**config), ours(**config)
    theirs = {key: (value.shape, value.dtype) for key, value in reference.state_dict().items()}
    mine = {key: (value.shape, value.dtype) for key, value in network.state_dict().items()}
    assert mine == theirs
    if millions is not None:
        assert sum(p.numel() for p in network.parameters()) == round(millions * 1e6)

    def empty(*shape):
        return torch.empty(shape, device="meta")

    side = given.get("side", 64)
    sample = empty(2, network.config.in_channels, side, side)
    if ours in (AutoencoderKL, VQModel):
        shrunk = side // 2 ** (len(config["block_out_channels"]) - 1)
        said = network.encode(sample)
        z = said.latents if ours is VQModel else said.latent_dist.mode()
        assert z.shape == (2, config.get("vq_embed_dim", 4), shrunk, shrunk)
        assert network.decode(z).sample.shape == sample.shape
        return
    arguments = {key: empty(*given[key]) for key in ("timestep_cond", "class_labels") if key in given}
    if config.get("num_class_embeds"):
        arguments["class_labels"] = arguments["class_labels"].long()
    if ours is UNet2DConditionModel:
        text_width = given.get("text_width", config["cross_attention_dim"])
        arguments["encoder_hidden_states"] = empty(2, given.get("tokens", 77), text_width)
        vectors = {key: empty(*given[key]) for key in ("text_embeds", "time_ids") if key in given}
        arguments["added_cond_kwargs"] = vectors or None
        arguments["encoder_attention_mask"] = empty(2, given.get("tokens", 77))
    predicted = network(sample, 7, **arguments).sample
    assert predicted.shape == (2, network.config.out_channels, side, side)
