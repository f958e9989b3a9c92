"""What a cosine of ``langevin/shapes-clip`` is worth: how often a text with it is true of the picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from langevin.zoo.neighbours import ATTRIBUTES, differing, terse, true_of
from langevin.zoo.scoring import Scorer
from langevin.zoo.world import Scene, caption, is_held_out, random_scene, render

TERSE = 0.25
"""Share of the captions that say neither sizes nor places."""
CALIBRATED_ON = 1500
"""Pictures, each with a text that is true of it and one that is not."""


def questions(count: int, seed: str) -> tuple[list[Scene], list[str], list[str]]:
    """Scenes, for each a text kept out of training that is true of it, and one that is false.

    Half of the false texts are true of a neighbour that differs in one attribute, half of some other scene.
    """
    rng = random.Random(seed)
    scenes: list[Scene] = []
    true: list[str] = []
    false: list[str] = []
    while len(scenes) < count:
        scene = random_scene(rng)
        other = differing(scene, rng.choice(ATTRIBUTES), rng) if rng.random() < 0.5 else random_scene(rng)
        texts = [terse(text) if rng.random() < TERSE else text for text in (caption(scene, rng), caption(other, rng))]
        if is_held_out(texts[0]) and not true_of(texts[1], scene):
            scenes.append(scene)
            true.append(texts[0])
            false.append(texts[1])
    return scenes, true, false


def cosines_of(scorer: Scorer, scenes: Sequence[Scene], *texts: Sequence[str]) -> Tensor:
    """The cosines of pictures with their texts, (lists of texts, pictures)."""
    made = []
    for start in range(0, len(scenes), 125):
        part = slice(start, start + 125)
        shown = [Image.fromarray(picture) for picture in render(scenes[part])]
        made.append(torch.stack([scorer.cosines(shown, each[part]).diagonal() for each in texts]))
    return torch.cat(made, 1)


def calibration(model: Path, count: int = CALIBRATED_ON, seed: str = "calibration") -> dict[str, float]:
    """The logistic function from cosine to chance of being true that suits as many true as false texts best."""
    scenes, true, false = questions(count, seed)
    return logistic(*cosines_of(Scorer.load(model), scenes, true, false))


def logistic(true: Tensor, false: Tensor) -> dict[str, float]:
    """The most likely ``scale`` and ``offset`` of a logistic function, from values that should give 1 and 0."""
    value = torch.cat([true, false]).double()
    wanted = torch.cat([torch.ones_like(true), torch.zeros_like(false)]).double()
    middle, width = value.mean(), value.std()
    numbers = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([numbers], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            numbers[0] * (value - middle) / width + numbers[1], wanted
        )
        loss.backward()
        return loss

    optimiser.step(closure)
    slope, at_middle = numbers.detach().tolist()
    scale = slope / float(width)
    return {"scale": round(scale, 4), "offset": round(at_middle - scale * float(middle), 4)}
