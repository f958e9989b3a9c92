"""Train ``langevin/shapes-outline``: a ControlNet that makes ``langevin/shapes`` fill the outlines it is given.

Zhang et al., 2023 (https://arxiv.org/abs/2302.05543): a copy of the UNet's way down sees the outlines as well, and
what it adds to the UNet's own maps begins at zero. The UNet is not changed.
"""

from __future__ import annotations

import copy
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langevin.zoo.loop import draw, fit
from langevin.zoo.outlines import anywhere, outlines, vague
from langevin.zoo.sisters import Frozen
from langevin.zoo.train_autoencoder import pictures
from langevin.zoo.train_text_to_image import POOL, UNET, UNSAID
from langevin.zoo.world import Scene, random_scene, training_caption

NETWORK = {
    key: value for key, value in UNET.items() if key not in ("sample_size", "out_channels", "up_block_types")
} | {
    "mid_block_type": "UNetMidBlock2D",
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": (16, 32, 64),  # two halvings: outlines of 64x64 become maps of 16x16
}
STEPS, BATCH, RATE = 5000, 32, 1e-3
PASSES = 4
"""How often each picture is used (noise and caption are new each time)."""
MOVED = 0.5
"""Share of the scenes whose things lie where no caption could put them."""
VAGUE = 0.25
"""Share of the captions that name no shape: only the outline tells."""


def train(
    model: Path, out: Path, steps: int = STEPS, batch: int = BATCH, seed: int = 0, minutes: float | None = None
) -> None:
    """Train for the UNet of the pipeline in the folder ``model``, and save the ControlNet in ``out``."""
    torch.manual_seed(seed)
    frozen = Frozen.load(model)
    network = control_network(frozen.unet).train()

    @lru_cache(maxsize=1)
    def pool(number: int) -> tuple[list[Scene], Tensor, Tensor]:
        rng = random.Random(f"{seed}/outlines/{number}")
        scenes = [random_scene(rng) for _ in range(POOL)]
        scenes = [anywhere(scene, rng) if rng.random() < MOVED else scene for scene in scenes]
        hints = torch.from_numpy(outlines(scenes)).permute(0, 3, 1, 2)
        return scenes, frozen.latents(pictures(scenes)), hints

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed << 32 | step)
        rng = random.Random(f"{seed}/outlines/{step}/captions")
        number, chosen = draw(step, batch, POOL, PASSES)
        scenes, latents, hints = pool(number)
        states = frozen.states([_said(scenes[i], rng) for i in chosen.tolist()])
        hint = hints[chosen].float() / 255

        def predict(x: Tensor, t: Tensor) -> Tensor:
            down, middle = network(x, t, states, controlnet_cond=hint, return_dict=False)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return frozen.unet(x, t, states, **added).sample

        return frozen.loss(latents[chosen], generator, predict)

    def keep(average: Any, step: int) -> None:
        copy.deepcopy(average).half().save_pretrained(out)

    keep(fit(network, loss, steps=steps, rate=RATE, out=out, minutes=minutes, look=keep), steps)


def _said(scene: Scene, rng: random.Random) -> str:
    place = rng.random()
    if place < UNSAID:
        return ""
    text = training_caption(scene, rng)
    return vague(text) if place < UNSAID + VAGUE else text


def control_network(unet: Any) -> Any:
    """A ControlNet whose way down and embeddings are those of ``unet``."""
    from langevin import ControlNetModel

    network = ControlNetModel(**NETWORK)
    large = unet.state_dict()
    state = network.state_dict()
    for name, tensor in state.items():
        if name in large and large[name].shape == tensor.shape:
            tensor.copy_(large[name])
    network.load_state_dict(state)
    return network
