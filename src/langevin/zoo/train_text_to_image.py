"""Train ``langevin/shapes``: a text encoder and a UNet in the latents of the autoencoder, Stable Diffusion's layout."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from langevin.checkpoints import model_index, transformers_parts
from langevin.zoo.loop import draw, fit, noise_levels
from langevin.zoo.tokenizer import WINDOW, make_tokenizer
from langevin.zoo.train_autoencoder import pictures
from langevin.zoo.world import (
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    parse,
    random_scene,
    training_caption,
)

UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 96, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": 4,  # the number of heads: see UNet2DConditionModel
    "norm_num_groups": 16,
    "addition_embed_type": "text",  # the text, pooled, joins the time embedding and so reaches every residual block
    "addition_embed_type_num_heads": 4,
}
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "projection_dim": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": WINDOW,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
STEPS, BATCH, RATE = 30000, 32, 1e-3
TEXT_STEPS, TEXT_BATCH = 1500, 64
UNSAID = 0.1
"""Share of the captions replaced by the empty one, for classifier-free guidance."""
ATTENTION = SDPBackend.MATH
"""On a CPU the backward pass of plain attention is several times faster than that of the fused one."""
GUIDANCE = 2.0
"""What ``python -m langevin.zoo.evaluate`` finds best; much more spoils pairs of colour and shape that are new."""
POOL, PASSES = 2048, 2
"""Scenes encoded at a time, and how often each is used (noise, step and caption are new each time)."""


def train(
    out: Path,
    autoencoder: Path,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    minutes: float | None = None,
    start: Path | None = None,
) -> None:
    """Train on the latents of ``autoencoder``, and save the whole pipeline's folder in ``out``.

    The text encoder and the UNet begin from nothing, or from those of the pipeline in ``start``.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    from langevin import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    make_tokenizer(out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    vae = AutoencoderKL.from_pretrained(autoencoder).eval()
    if start is None:
        unet, text = UNet2DConditionModel(**UNET), pretrained_text_encoder(tokenizer, out, seed)
    else:
        unet = UNet2DConditionModel.from_pretrained(start, subfolder="unet", torch_dtype=torch.float32)
        text = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
    model = nn.ModuleDict({"unet": unet.train(), "text": text.train()})
    scheduler = DDIMScheduler(**SCHEDULER)
    levels = scheduler.config.num_train_timesteps

    @lru_cache(maxsize=1)
    def pool(number: int) -> tuple[list, Tensor]:
        rng = random.Random(f"{seed}/pool/{number}")
        scenes = [random_scene(rng) for _ in range(POOL)]
        return scenes, encode(vae, pictures(scenes))

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed << 32 | step)
        rng = random.Random(f"{seed}/{step}")
        number, chosen = draw(step, batch, POOL, PASSES)
        scenes, latents = pool(number)
        captions = ["" if rng.random() < UNSAID else training_caption(scenes[i], rng) for i in chosen.tolist()]
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        t = (noise_levels(batch, generator) * levels).long().clamp(max=levels - 1)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(ATTENTION):
            states = model["text"](tokenize(tokenizer, captions)).last_hidden_state
            predicted = model["unet"](scheduler.add_noise(clean, noise, t), t, states).sample
        target = scheduler.get_velocity(clean, noise, t)
        return nn.functional.mse_loss(predicted.float(), target)

    def keep(average: Any, step: int) -> None:
        save(out, vae, average["unet"], average["text"], scheduler)

    average = fit(model, loss, steps=steps, rate=RATE, out=out, minutes=minutes, look=keep)
    keep(average, steps)


def tokenize(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token numbers, (batch, WINDOW)."""
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def encode(vae: Any, images: Tensor) -> Tensor:
    """Scaled latents of images, (n, 3, 64, 64) in [-1, 1] to (n, 4, 16, 16)."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [vae.encode(part).latent_dist.mean.float() for part in images.split(64)]
    return torch.cat(parts) * vae.config.scaling_factor


# ------------------------------------------------------------------------------------------------ the text encoder

_SAID = {
    "shape": (None, *SHAPES),
    "colour": (None, *COLOURS),
    "size": (None, *SIZES),
    "relation": (None, *RELATIONS),
    "cell": (None, *POSITIONS),
    "background": (None, *BACKGROUNDS),
}
_QUESTIONS: list[tuple[int | None, str]] = [(n, kind) for n in range(2) for kind in ("shape", "colour", "size")]
_QUESTIONS += [(None, kind) for kind in ("relation", "cell", "background")]


def pretrained_text_encoder(tokenizer: Any, out: Path, seed: int) -> nn.Module:
    """A CLIP text encoder whose every state after the caption's end tells all that the caption says.

    This costs two minutes and saves the UNet from waiting until its gradients have taught the words.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    marks["pad_token_id"] = tokenizer.pad_token_id
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **TEXT, **marks))
    sizes = [len(_SAID[kind]) for _, kind in _QUESTIONS]
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(TEXT["hidden_size"], sum(sizes))})

    def loss(step: int) -> Tensor:
        rng = random.Random(f"{seed}/text/{step}")
        captions = [training_caption(random_scene(rng), rng) for _ in range(TEXT_BATCH)]
        tokens = tokenize(tokenizer, captions)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(ATTENTION):
            states = model["encoder"](tokens).last_hidden_state
        answers = torch.tensor([_answers(text) for text in captions])
        after = tokens == tokenizer.eos_token_id
        guesses = model["head"](states.float()[after]).split(sizes, dim=-1)
        asked = answers.repeat_interleave(after.sum(1), dim=0).unbind(1)
        return torch.stack([nn.functional.cross_entropy(g, a) for g, a in zip(guesses, asked, strict=True)]).mean()

    return fit(model, loss, steps=TEXT_STEPS, rate=RATE, out=out / "text-pretraining")["encoder"].requires_grad_(True)


def _answers(text: str) -> list[int]:
    """What a caption says, as one number for each of _QUESTIONS; 0 is "nothing"."""
    said = parse(text)
    answers = []
    for thing, kind in _QUESTIONS:
        source = said if thing is None else said.things[thing] if thing < len(said.things) else None
        answers.append(_SAID[kind].index(getattr(source, kind, None)))
    return answers


# ------------------------------------------------------------------------------------------------ saving


def save(out: Path, vae: Any, unet: Any, text: Any, scheduler: Any) -> None:
    """Write a Stable Diffusion folder with weights in half precision."""
    for name, part in (("vae", vae), ("unet", unet)):
        copy.deepcopy(part).half().save_pretrained(out / name)
    transformers_parts.save(copy.deepcopy(text).half(), out / "text_encoder")
    config = out / "text_encoder" / "config.json"  # would else tell transformers to load this part alone in half
    config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")
    scheduler.save_pretrained(out / "scheduler")
    make_tokenizer(out / "tokenizer")
    write_index(out, "StableDiffusionPipeline", {"guidance_scale": GUIDANCE})


def write_index(out: Path, pipeline: str, defaults: dict[str, float], **more: str) -> None:
    """Write ``model_index.json`` of a pipeline with the parts of ``langevin/shapes`` into ``out``."""
    absent = dict.fromkeys(("feature_extractor", "image_encoder", "safety_checker"), (None, None))
    parts = {
        "scheduler": ("diffusers", "DDIMScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    called = {model_index.CALL_DEFAULTS: defaults} if defaults else {}
    model_index.write(out, pipeline, {**called, **more, **absent, **parts, "requires_safety_checker": False})
