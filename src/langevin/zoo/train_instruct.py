"""Train ``langevin/shapes-instruct``: a UNet that changes a picture as an instruction says (InstructPix2Pix).

Brooks et al., 2023 (https://arxiv.org/abs/2211.09800): the latents of the picture to be changed are four more input
channels, unscaled as they come from the encoder. In training the instruction, the picture or both are now and then
left out (an empty text, zeros), so that both can be guided by.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langevin.zoo.edits import training_edit
from langevin.zoo.loop import draw, fit
from langevin.zoo.sisters import Frozen, save, smaller_unet
from langevin.zoo.train_autoencoder import pictures
from langevin.zoo.train_text_to_image import POOL

STEPS, BATCH, RATE = 12000, 32, 1e-3
PASSES = 4
"""How often each pair of pictures is used (with new noise)."""
DROPPED = 0.05
"""Share of the examples without instruction; as many are without picture, and as many without both."""
SHIFTS = (0.4, -0.4)
"""In the first half more of the high noise levels (around 0.6): what is to come is decided there, by picture and
instruction. In the second half more of those where outlines are made (around 0.4)."""
DEFAULTS: dict[str, float] = {"guidance_scale": 1.5, "image_guidance_scale": 1.5}
"""Guidance scales of ``model_index.json``, found by ``python -m langevin.zoo.evaluate_tasks instruct``."""


def train(
    model: Path,
    out: Path,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    minutes: float | None = None,
    start: Path | None = None,
) -> None:
    """Train on the latents of the pipeline in the folder ``model``, and save the new UNet's pipeline in ``out``.

    The UNet begins from that pipeline's, or goes on from the one in ``start``, with the second half's noise levels.
    """
    from langevin import UNet2DConditionModel

    torch.manual_seed(seed)
    frozen = Frozen.load(model)
    if start is None:
        unet = smaller_unet(frozen.unet, extra_channels=4, middle=True).train()
    else:
        unet = UNet2DConditionModel.from_pretrained(start, subfolder="unet", torch_dtype=torch.float32).train()

    @lru_cache(maxsize=1)
    def pool(number: int) -> tuple[list[str], Tensor, Tensor]:
        rng = random.Random(f"{seed}/edits/{number}")
        edits = [training_edit(rng) for _ in range(POOL)]
        before, after = ([getattr(edit, name) for edit in edits] for name in ("before", "after"))
        unscaled = frozen.latents(pictures(before)) / frozen.vae.config.scaling_factor
        return [edit.instruction for edit in edits], unscaled, frozen.latents(pictures(after))

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed << 32 | step)
        number, chosen = draw(step, batch, POOL, PASSES)
        texts, before, after = pool(number)
        left_out = torch.rand(batch, generator=generator)
        silent, blind = left_out < 2 * DROPPED, (left_out >= DROPPED) & (left_out < 3 * DROPPED)
        states = frozen.states(["" if mute else texts[i] for i, mute in zip(chosen, silent, strict=True)])
        seen = before[chosen] * ~blind.view(-1, 1, 1, 1)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return unet(torch.cat([x, seen], 1), t, states).sample

        return frozen.loss(after[chosen], generator, predict, SHIFTS[start is not None or step >= steps // 2])

    def keep(average: Any, step: int) -> None:
        save(out, "StableDiffusionInstructPix2PixPipeline", average, frozen.scheduler, DEFAULTS)

    keep(fit(unet, loss, steps=steps, rate=RATE, out=out, minutes=minutes, look=keep), steps)
