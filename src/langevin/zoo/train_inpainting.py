"""Train ``langevin/shapes-inpainting``: a UNet that paints a part of a picture anew, as a caption says.

As in Stable Diffusion, five more input channels: the mask (1 where it is to paint) and the latents of the picture
with mid-grey under the mask (Rombach et al., 2022, section 4.5).
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from langevin.zoo.loop import draw, fit
from langevin.zoo.masks import random_mask
from langevin.zoo.sisters import Frozen, save, smaller_unet
from langevin.zoo.train_autoencoder import pictures
from langevin.zoo.train_text_to_image import POOL, UNSAID
from langevin.zoo.world import Scene, random_scene, training_caption

STEPS, BATCH, RATE = 10000, 32, 1e-3
PASSES = 4
"""How often each picture with its mask is used (noise and caption are new each time)."""
DEFAULTS: dict[str, float] = {"guidance_scale": 2.0}


def train(
    model: Path, out: Path, steps: int = STEPS, batch: int = BATCH, seed: int = 0, minutes: float | None = None
) -> None:
    """Train on the latents of the pipeline in the folder ``model``, and save the new UNet's pipeline in ``out``."""
    torch.manual_seed(seed)
    frozen = Frozen.load(model)
    unet = smaller_unet(frozen.unet, extra_channels=5, middle=False).train()

    @lru_cache(maxsize=1)
    def pool(number: int) -> tuple[list[Scene], Tensor, Tensor]:
        rng = random.Random(f"{seed}/inpainting/{number}")
        scenes = [random_scene(rng) for _ in range(POOL)]
        masks = torch.from_numpy(np.stack([random_mask(scene, rng) for scene in scenes])).unsqueeze(1)
        images = pictures(scenes)
        latents = frozen.latents(images)
        small = nn.functional.interpolate(masks, latents.shape[-2:])
        return scenes, latents, torch.cat([small, frozen.latents(images * (1 - masks))], 1)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed << 32 | step)
        rng = random.Random(f"{seed}/inpainting/{step}/captions")
        number, chosen = draw(step, batch, POOL, PASSES)
        scenes, latents, extra = pool(number)
        captions = ["" if rng.random() < UNSAID else training_caption(scenes[i], rng) for i in chosen.tolist()]
        states, known = frozen.states(captions), extra[chosen]
        return frozen.loss(latents[chosen], generator, lambda x, t: unet(torch.cat([x, known], 1), t, states).sample)

    def keep(average: Any, step: int) -> None:
        save(out, "StableDiffusionInpaintPipeline", average, frozen.scheduler, DEFAULTS)

    keep(fit(unet, loss, steps=steps, rate=RATE, out=out, minutes=minutes, look=keep), steps)
