"""Train ``langevin/shapes-attention``: a text-to-image UNet that reads its text through cross-attention alone.

In ``langevin/shapes`` the pooled text reaches every residual block with the time embedding. Here, as in Stable
Diffusion 1, attention is the only way for a word into the picture, so what acts on attention acts on the picture.
Words that name a thing are taught to be looked at where it is: TokenCompose, Wang et al., 2023
(https://arxiv.org/abs/2312.03626). Things lie anywhere, which is for the noise to decide, and few pictures show two:
like larger models, this one is apt to leave out one of two things.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from langevin.guiders.attention_maps import watching
from langevin.zoo.loop import draw, fit
from langevin.zoo.outlines import anywhere
from langevin.zoo.sisters import Frozen, save, smaller_unet
from langevin.zoo.train_autoencoder import pictures
from langevin.zoo.train_text_to_image import PASSES, POOL, UNSAID
from langevin.zoo.world import SIDE, Scene, coverage, listing, named_things, random_scene, training_caption

STEPS, BATCH, RATE = 2900, 32, 1e-3
GROUNDING = 0.1
"""Weight of the loss on attention maps beside that on the velocity."""
DEFAULTS: dict[str, float] = {"guidance_scale": 2.0}

COUPLES = 0.15
"""Share of the pictures that show two things."""
PLACES = 8
"""Rows and columns of the maps."""


def train(
    model: Path, out: Path, steps: int = STEPS, batch: int = BATCH, seed: int = 0, minutes: float | None = None
) -> None:
    """Train on the latents of the pipeline in the folder ``model``, and save the new UNet's pipeline in ``out``."""
    torch.manual_seed(seed)
    frozen = Frozen.load(model)
    unet = smaller_unet(frozen.unet, middle=False, narrow=True, pooled_text=False).train()

    @lru_cache(maxsize=1)
    def pool(number: int) -> tuple[list[Scene], Tensor, Tensor]:
        rng = random.Random(f"{seed}/attention/{number}")
        scenes = [anywhere(random_scene(rng, 1 + (rng.random() < COUPLES)), rng) for _ in range(POOL)]
        return scenes, frozen.latents(pictures(scenes)), where_things_are(scenes)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed << 32 | step)
        rng = random.Random(f"{seed}/attention/{step}/captions")
        number, chosen = draw(step, batch, POOL, PASSES)
        scenes, latents, places = pool(number)
        shown = [scenes[i] for i in chosen.tolist()]
        captions = ["" if rng.random() < UNSAID else training_caption(scene, rng, listing) for scene in shown]
        states, maps = frozen.states(captions), []

        def see(probabilities: Tensor, *_: Any, **__: Any) -> None:
            maps.append(probabilities.mean(1))

        attention = watching(lambda q, k, layer, views: layer.is_cross_attention, see)
        denoising = frozen.loss(latents[chosen], generator, lambda x, t: unet(x, t, states, attention=attention).sample)
        named = naming_tokens(frozen.tokenizer, captions, shown)
        return denoising + GROUNDING * grounding(torch.stack(maps).mean(0), named, places[chosen])

    def keep(average: Any, step: int) -> None:
        save(out, "StableDiffusionPipeline", average, frozen.scheduler, DEFAULTS)

    keep(fit(unet, loss, steps=steps, rate=RATE, out=out, minutes=minutes, look=keep), steps)


def where_things_are(scenes: Sequence[Scene]) -> Tensor:
    """How much of each of the maps' places the first and the second thing cover, (n, 2, 64); 0 for none."""
    places = torch.zeros(len(scenes), 2, SIDE, SIDE)
    for n, scene in enumerate(scenes):
        for k, thing in enumerate(scene.things):
            places[n, k] = torch.from_numpy(
                coverage(thing.shape, *(np.array([v]) for v in (thing.x, thing.y, thing.radius)))[0]
            )
    return nn.functional.avg_pool2d(places, SIDE // PLACES).flatten(2)


def naming_tokens(tokenizer: Any, captions: Sequence[str], scenes: Sequence[Scene]) -> Tensor:
    """Which tokens name the first and the second thing of each scene, (n, 2, 32) of True and False."""
    spans = tokenizer(list(captions), padding="max_length", truncation=True, return_offsets_mapping=True)
    named = torch.zeros(len(captions), 2, len(spans["offset_mapping"][0]), dtype=torch.bool)
    for n, (text, scene, offsets) in enumerate(zip(captions, scenes, spans["offset_mapping"], strict=True)):
        for start, stop, k in named_things(text, scene):
            named[n, k] |= torch.tensor([start <= first < last <= stop for first, last in offsets])
    return named


def grounding(maps: Tensor, named: Tensor, places: Tensor) -> Tensor:
    """How far the words that name a thing are from being looked at where it is, and only there.

    Args:
        maps: who looks at what, ``(n, places, tokens)``; over the tokens they sum to 1.
        named: see :func:`naming_tokens`.
        places: see :func:`where_things_are`.

    Returns:
        The sum of the paper's two losses: the squared share of a word's attention that lies elsewhere (equation 3),
        and the cross-entropy of its map with the thing's (equation 4).
    """
    if not named.any():
        return maps.sum() * 0
    scene, thing, token = named.nonzero().unbind(1)
    seen, true = maps[scene, :, token], places[scene, thing]
    elsewhere = 1 - (seen * (true > 0)).sum(1) / seen.sum(1).clamp(min=1e-6)
    together = torch.einsum("npt,nkt->nkp", maps, named.float())  # all the words of a thing
    told = named.any(-1)
    crossed = nn.functional.binary_cross_entropy(together[told].clamp(1e-6, 1 - 1e-6), places[told].clamp(0, 1))
    return elsewhere.square().mean() + crossed
