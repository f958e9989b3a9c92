"""What tests of several rooms share: a tiny Stable Diffusion built by the reference, and many threads at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import torch


def tiny_tokenizer(folder, window: int = 16):
    """A CLIP tokenizer whose tokens are single bytes: any text, no training."""
    from transformers import CLIPTokenizer

    letters = [chr(b) for b in range(33, 127)] + ["Ã", "©", "ï", "¸", "ı"]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": window, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return CLIPTokenizer.from_pretrained(folder)


TINY_UNET = dict(
    sample_size=8,
    block_out_channels=(16, 32),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=24,
    attention_head_dim=4,
    norm_num_groups=8,
)


def reference_parts(folder, *, unet=(), vae=(), text=(), safety=False):
    """Random components of a tiny Stable Diffusion, built by the reference, scheduler left out."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    text_config = dict(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**{**text_config, **dict(text)})).eval()
    vae_config = dict(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    parts = dict(
        vae=diffusers.AutoencoderKL(**{**vae_config, **dict(vae)}).eval(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**{**TINY_UNET, **dict(unet)}).eval(),
        safety_checker=None,
        feature_extractor=None,
    )
    if safety:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        config = transformers.CLIPConfig(vision_config={**vision, "image_size": 32, "patch_size": 8}, projection_dim=8)
        checker = StableDiffusionSafetyChecker(config).eval()
        for name in ("concept_embeds", "special_care_embeds"):
            getattr(checker, name).data.normal_()
        parts["safety_checker"] = checker
        size = {"shortest_edge": 32}, {"height": 32, "width": 32}
        parts["feature_extractor"] = transformers.CLIPImageProcessor(size=size[0], crop_size=size[1])
    return parts


def in_threads(make, count=8):
    """``make(0)`` … ``make(count - 1)``, each in a thread of its own, all at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(make, range(count)))
