"""The optimisation loop that every model in the box is trained with."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

GRADIENT_CLIP = 1.0
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.99)


def learning_rate(progress: float, warm_up: float = 0.02) -> float:
    """Factor on the learning rate at ``progress`` in [0, 1]: a linear rise, then half a cosine down to 0."""
    if progress < warm_up:
        return max(progress / warm_up, 0.01)
    return 0.5 * (1 + math.cos(math.pi * min((progress - warm_up) / (1 - warm_up), 1.0)))


def noise_levels(count: int, generator: torch.Generator, shift: float = -0.4) -> Tensor:
    """Draw ``count`` (even) places in [0, 1] on the noise schedule, in random order.

    Half are spread evenly, half lie around sigmoid(``shift``): 0.4 is where a blot becomes a star or a cross. One
    comes from each of ``count / 2`` equal stretches of probability: a calmer loss than independent draws.
    """
    even, around = (torch.arange(count // 2) + torch.rand(2, count // 2, generator=generator)) / (count // 2)
    around = torch.sigmoid(0.8 * torch.special.ndtri(around) + shift)
    return torch.cat([even, around])[torch.randperm(count, generator=generator)]


def draw(step: int, batch: int, pool: int, passes: int) -> tuple[int, Tensor]:
    """The number of the pool of examples that a step uses, and which ``batch`` of its ``pool`` rows.

    Each pool is used ``passes`` times over, in another order each time, before the next.
    """
    number, place = divmod(step * batch, pool * passes)
    order = torch.randperm(pool, generator=torch.Generator().manual_seed(number * passes + place // pool))
    return number, order[place % pool :][:batch]


class Average:
    """Exponential moving average of a model's weights.

    The decay rises as (1 + n) / (10 + n) up to ``decay``, so that a short run forgets where it began.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards ``model``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine: list[Tensor] = list(self.model.parameters())
        theirs = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def fit(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    out: Path,
    decay: float = 0.999,
    minutes: float | None = None,
    every: int = 1000,
    look: Callable[[Any, int], None] | None = None,
) -> Any:
    """Train ``model`` and return the average of its weights.

    Args:
        model: holds every parameter that is trained.
        loss: from the step's number to the loss of a fresh batch; must draw its random numbers from a
            generator seeded with that number, so that a resumed run goes on as an unbroken one would.
        steps: how many steps in all.
        rate: the highest learning rate.
        out: folder for ``resume.pt``, written every ``every`` steps and read if it is there.
        decay: of the average.
        minutes: end early, with the learning rate at zero, after this time.
        look: called with the average and the step's number every ``every`` steps.
    """
    out.mkdir(parents=True, exist_ok=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, betas=BETAS, weight_decay=WEIGHT_DECAY, foreach=True)
    average = Average(model, decay)
    step, spent, resume = 0, 0.0, out / "resume.pt"
    if resume.exists():
        kept = torch.load(resume, weights_only=True)
        model.load_state_dict(kept["model"])
        average.model.load_state_dict(kept["average"])
        optimiser.load_state_dict(kept["optimiser"])
        step, spent, average.updates = kept["step"], kept["spent"], kept["step"]
    start, shown, progress = time.time() - spent, 0.0, 0.0
    bar = tqdm(total=steps, initial=step, desc=out.name, mininterval=5, maxinterval=30)
    while step < steps and progress < 1:
        spent = time.time() - start
        progress = max(step / steps, spent / (60 * minutes) if minutes else 0.0)
        for group in optimiser.param_groups:
            group["lr"] = rate * learning_rate(progress)
        value = loss(step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trained, GRADIENT_CLIP)
        optimiser.step()
        average.update(model)
        step += 1
        shown += 0.02 * (value.item() - shown) if shown else value.item()
        bar.set_postfix(loss=f"{shown:.4f}", refresh=False)
        bar.update()
        if step % every == 0 or step == steps or progress >= 1:
            state: dict[str, Any] = {"model": model.state_dict(), "average": average.model.state_dict()}
            state |= {"optimiser": optimiser.state_dict(), "step": step, "spent": spent}
            torch.save(state, resume.with_suffix(".tmp"))
            resume.with_suffix(".tmp").replace(resume)
            if look:
                look(average.model, step)
    bar.close()
    return average.model
