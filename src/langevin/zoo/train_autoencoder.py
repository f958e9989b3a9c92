"""Train the autoencoder of ``langevin/shapes``: 64x64x3 pictures to 16x16x4 latents and back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.zoo.loop import fit
from langevin.zoo.world import Scene, random_scene, render

CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "sample_size": 64,
    "latent_channels": 4,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "force_upcast": False,
}
STEPS, BATCH, RATE = 2900, 32, 2e-3
PRESSED, KL_WEIGHTS = 1000, (5e-4, 2e-5)
"""The KL divergence weighs much for the first PRESSED steps, to press the latents together, then little."""
TINTED = 0.125
"""Share of the pictures under a soft random tint, so that the autoencoder knows more colours than the world's."""


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """Paint scenes: (n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(render(scenes)).permute(0, 3, 1, 2).float() / 127.5 - 1


def tint(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blend smooth random colour fields into images, half of the way at most."""
    count = len(images)
    field = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    field = nn.functional.interpolate(field, images.shape[-2:], mode="bilinear", align_corners=True)
    return torch.lerp(images, field, torch.rand(count, 1, 1, 1, generator=generator) * 0.5)


@torch.no_grad()
def balance(model: Any, count: int = 1024, seed: int = 1) -> float:
    """Give all latent channels the same deviation, and return it.

    The factors go into the 1x1 convolutions on both sides of the latents, so pictures stay what they were;
    only the diffusion model, which weighs all channels alike, sees a difference.
    """
    rng = random.Random(seed)
    images = pictures([random_scene(rng) for _ in range(count)])
    latents = torch.cat([model.encode(part).latent_dist.mean for part in images.split(64)])
    deviation = latents.std(dim=(0, 2, 3))
    target = latents.std()
    factor = target / deviation
    means, _logvars = model.quant_conv.weight.chunk(2)
    mean_bias, logvar_bias = model.quant_conv.bias.chunk(2)
    means.mul_(factor.view(-1, 1, 1, 1))
    mean_bias.mul_(factor)
    logvar_bias.add_(2 * factor.log())
    model.post_quant_conv.weight.div_(factor.view(1, -1, 1, 1))
    return target.item()


def train(out: Path, steps: int = STEPS, batch: int = BATCH, seed: int = 0, minutes: float | None = None) -> None:
    """Train from nothing and save the autoencoder, with its measured ``scaling_factor``, in ``out``."""
    from langevin import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL(**CONFIG)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed << 32 | step)
        rng = random.Random(f"{seed}/{step}")
        images = pictures([random_scene(rng) for _ in range(batch)])
        tinted = int(batch * TINTED)
        images[:tinted] = tint(images[:tinted], generator)
        noise = torch.randn(batch, CONFIG["latent_channels"], 16, 16, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            return _loss(model, images, noise, KL_WEIGHTS[step >= PRESSED])

    average = fit(model, loss, steps=steps, rate=RATE, out=out, minutes=minutes, decay=0.998)
    average.register_to_config(scaling_factor=round(1 / balance(average), 4))
    average.save_pretrained(out)


def _loss(model: Any, images: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
    """Absolute and squared error, and a little KL divergence (all are means)."""
    posterior = model.encode(images).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    error = model.decode(mean + torch.exp(0.5 * logvar) * noise).sample.float() - images
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + error.square().mean() + kl_weight * kl
