"""Train ``langevin/shapes-unconditional``: a small UNet that paints the world's pictures pixel by pixel."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from langevin.checkpoints import model_index
from langevin.zoo.loop import fit, noise_levels
from langevin.zoo.train_autoencoder import pictures
from langevin.zoo.world import random_scene

SIDE = 32
"""The model paints half the world's size, which is what a CPU can learn in an hour."""
UNET = {
    "sample_size": SIDE,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (24, 48, 64),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 16,
    "norm_num_groups": 8,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "clip_sample": True,
    "timestep_spacing": "trailing",
}
STEPS, BATCH, RATE = 20000, 32, 1e-3


def train(
    out: Path,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    minutes: float | None = None,
    start: Path | None = None,
) -> None:
    """Train from nothing, or from the pipeline in ``start``, and save a DDPM pipeline's folder in ``out``."""
    from langevin import DDPMScheduler, UNet2DModel

    torch.manual_seed(seed)
    if start is None:
        model = UNet2DModel(**UNET)
    else:
        model = UNet2DModel.from_pretrained(start, subfolder="unet", torch_dtype=torch.float32).train()
    scheduler = DDPMScheduler(**SCHEDULER)
    levels = scheduler.config.num_train_timesteps

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed << 32 | step)
        rng = random.Random(f"{seed}/{step}")
        clean = nn.functional.avg_pool2d(pictures([random_scene(rng) for _ in range(batch)]), 64 // SIDE)
        noise = torch.randn(clean.shape, generator=generator)
        t = (noise_levels(batch, generator) * levels).long().clamp(max=levels - 1)
        with (
            torch.autocast("cpu", torch.bfloat16),
            sdpa_kernel(SDPBackend.MATH),
        ):  # several times faster on a CPU
            predicted = model(scheduler.add_noise(clean, noise, t), t).sample
        return nn.functional.mse_loss(predicted.float(), scheduler.get_velocity(clean, noise, t))

    average = fit(
        model,
        loss,
        steps=steps,
        rate=RATE,
        out=out,
        minutes=minutes,
        look=lambda m, _: save(out, m, scheduler),
    )
    save(out, average, scheduler)


def save(out: Path, unet: Any, scheduler: Any) -> None:
    """Write a DDPM folder with weights in half precision."""
    copy.deepcopy(unet).half().save_pretrained(out / "unet")
    scheduler.save_pretrained(out / "scheduler")
    parts = {"scheduler": ("diffusers", "DDPMScheduler"), "unet": ("diffusers", "UNet2DModel")}
    model_index.write(out, "DDPMPipeline", parts)
