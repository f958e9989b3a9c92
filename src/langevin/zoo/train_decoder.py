"""Teach the decoder of ``langevin/shapes`` to paint clean shapes from the latents that its own UNet makes.

An autoencoder's decoder has only seen what the encoder writes. The UNet's latents are a little off, and the decoder
answers with smears. Here pictures are encoded, noised, denoised in one step by the UNet, and the decoder learns to
give the picture back. The encoder is left alone, so the UNet's world stays what it was.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from torch import Tensor, nn

from langevin.zoo.loop import fit
from langevin.zoo.train_autoencoder import pictures
from langevin.zoo.train_text_to_image import encode, tokenize
from langevin.zoo.world import random_scene, training_caption

STEPS, BATCH, RATE = 2000, 16, 5e-4
HIGHEST = 350
"""Latents are noised to levels below this one (of 1000) before the UNet cleans them."""
UNTOUCHED = 0.25
"""Share of the latents that go to the decoder as the encoder wrote them."""


def train(
    model: Path, out: Path, steps: int = STEPS, batch: int = BATCH, seed: int = 0, minutes: float | None = None
) -> None:
    """Fine-tune the decoder of the pipeline in the folder ``model``, and save it there; ``out`` is for resuming."""
    from langevin import DiffusionPipeline

    torch.manual_seed(seed)
    pipe = DiffusionPipeline.from_pretrained(model)
    vae, scheduler = pipe.vae, pipe.scheduler
    decoder = nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder}).requires_grad_(True)
    frozen = copy.deepcopy(vae)

    @torch.no_grad()
    def remade(latents: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
        noise = torch.randn(latents.shape, generator=generator)
        t = torch.randint(0, HIGHEST, (len(latents),), generator=generator)
        states = pipe.text_encoder(tokenize(pipe.tokenizer, captions)).last_hidden_state
        noisy = scheduler.add_noise(latents, noise, t)
        velocity = pipe.unet(noisy, t, states).sample.float()
        signal = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        return signal.sqrt() * noisy - (1 - signal).sqrt() * velocity

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed << 32 | step)
        rng = random.Random(f"{seed}/decoder/{step}")
        scenes = [random_scene(rng) for _ in range(batch)]
        images, captions = pictures(scenes), [training_caption(scene, rng) for scene in scenes]
        latents, kept = encode(frozen, images), int(batch * UNTOUCHED)
        with torch.autocast("cpu", torch.bfloat16):
            latents[kept:] = remade(latents[kept:], captions[kept:], generator)
            latents = latents / vae.config.scaling_factor
            again = decoder["decoder"](decoder["post_quant_conv"](latents))
        error = again.float() - images
        return error.abs().mean() + error.square().mean()

    average = fit(decoder, loss, steps=steps, rate=RATE, out=out, minutes=minutes, decay=0.99)
    decoder.load_state_dict(average.state_dict())
    vae.half().save_pretrained(model / "vae")
