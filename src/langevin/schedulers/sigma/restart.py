"""Restart: Xu, Deng, Cheng, Tian, Liu & Jaakkola 2023, "Restart Sampling for Improving Generative Processes",
arXiv:2306.14878.

Noise contracts the errors that earlier steps made, and a deterministic solver makes few new ones. So x goes down by
Heun's method, is thrown back up by a big portion of noise, goes down again, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Any

from langevin.schedulers.sigma.base import SigmaRun
from langevin.schedulers.sigma.recipe import SlopeStagedRun, Stage, StagedScheduler, euler
from langevin.schedulers.spacing import karras
from langevin.schedulers.weights import Recipe

Interval = tuple[float, float, int, int]
"""(σ_min, σ_max, steps, times)."""


class RestartScheduler(StagedScheduler):
    """Heun's method, which at some low σ goes back to a higher one with fresh noise, and repeats that.

    Args: those of every solver of the family, see :class:`langevin.schedulers.sigma.recipe.RecipeScheduler`.

    Run options:
        intervals: a list of ``(σ_min, σ_max, steps, times)``: having come to σ_min, ``times`` times add noise up to
            σ_max and come down again in ``steps`` steps, spaced as Karras et al. do (algorithm 1, with N_Restart - 1
            steps and K times). Both σ are moved to the nearest that the run visits. These steps come on top of
            ``num_inference_steps``; two calls each.
            None, the default, takes them out of ``num_inference_steps``: from 20 on, (0.1, 2) with 9 steps once, from
            36 on with a quarter of the steps twice, as the Stable Diffusion web interface does; below 20, and for
            timesteps or sigmas of your own, no restarts. [] is Heun's method.
        s_noise: a factor on the noise that is added.

        >>> run = RestartScheduler(use_karras_sigmas=True).plan(18, intervals=[(0.1, 2.0, 5, 2)])  # 18 + 10 steps
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x, torch.randn_like).prev_sample
    """

    order = 2
    run_options = ("intervals", "s_noise")
    run_class = SlopeStagedRun

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        intervals: Sequence[Interval] | None = None, **options: Any,
    ) -> SigmaRun:  # fmt: skip
        if intervals is None:
            intervals = []
            if timesteps is None and sigmas is None and steps >= 20:
                repeated, times = (9, 1) if steps < 36 else (steps // 4, 2)
                intervals = [(0.1, 2.0, repeated, times)]
                steps -= repeated * times
        for low, high, repeated, times in intervals:
            if not (0.0 < low < high and repeated >= 1 and times >= 0):
                raise ValueError(
                    f"restart interval {(low, high, repeated, times)} must be (σ_min, σ_max, steps, times) with "
                    "0 < σ_min < σ_max and at least one step"
                )
        return super()._plan(steps, timesteps, sigmas, intervals=intervals, **options)

    def _stages(
        self, sigmas: list[float], intervals: Sequence[Interval] = (), s_noise: float = 1.0
    ) -> list[list[Stage]]:
        moves = []
        for i, move in enumerate(pairwise(sigmas)):
            moves.append(move)
            for low, high, repeated, times in intervals:
                bottom, top = _nearest(sigmas, low), _nearest(sigmas, high)
                if i + 1 == bottom and top < bottom:
                    moves += [*pairwise(karras(sigmas[top], sigmas[bottom], repeated + 1))] * times
        following = [sigma for sigma, _ in moves[1:]] + [0.0]
        return [
            heun(sigma, target, s_noise * sqrt(max(then**2 - target**2, 0.0)) if then > target else 0.0)
            for (sigma, target), then in zip(moves, following, strict=True)
        ]


def _nearest(sigmas: list[float], wanted: float) -> int:
    """The place of the σ > 0 that is nearest."""
    return min((k for k, sigma in enumerate(sigmas) if sigma), key=lambda k: abs(sigmas[k] - wanted))


def heun(sigma: float, target: float, noise: float = 0.0) -> list[Stage]:
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 1, lines 4 to 8, and noise on what comes out."""
    if target == 0.0:
        return [Stage(sigma, euler(sigma, target))]
    half = (target - sigma) / 2
    return [Stage(sigma, euler(sigma, target)), Stage(target, Recipe(1.0, (half, half), noise))]
