"""DPM-Solver-fast: Lu, Zhou, Bao, Chen, Li & Zhu 2022, "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model
Sampling in Around 10 Steps", arXiv:2206.00927, appendix D.3.

In σ the paper's steps (algorithms 1 and 2) are sums of slopes; a step of length h in λ goes from σ to σ·e^(-h).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose, log
from typing import Any

from langevin.schedulers.exponential import phi
from langevin.schedulers.sigma.ancestral import ancestral_within
from langevin.schedulers.sigma.base import SigmaRun
from langevin.schedulers.sigma.recipe import SlopeStagedRun, Stage, StagedScheduler, euler
from langevin.schedulers.weights import Recipe


def dpm_step(sigma: float, target: float, order: int, r1: float | None = None, noise: float = 0.0) -> list[Stage]:
    """DPM-Solver-1, -2 or -3 from σ to ``target``, and noise on what comes out.

    ``r1`` is where the second call is, as a part of the step in λ: by default 1/2 at order 2 and 1/3 at order 3.
    """
    if order == 1 or target == 0.0 or isclose(sigma, target):
        return [Stage(sigma, euler(sigma, target)._replace(noise=noise))]
    h, whole = log(sigma / target), target - sigma
    r1 = (0.5 if order == 2 else 1 / 3) if r1 is None else r1
    s1 = sigma * (target / sigma) ** r1
    stages = [Stage(sigma, euler(sigma, s1))]
    if order == 2:  # algorithm 1, line 4
        second = whole / (2 * r1)
        return [*stages, Stage(s1, Recipe(1.0, (second, whole - second), noise))]
    r2 = 2 / 3
    s2 = sigma * (target / sigma) ** r2
    second = -s2 * (r2 / r1) * (r2 * h) * phi(2, r2 * h)  # algorithm 2, lines 5 and 7
    third = -target / r2 * h * phi(2, h)  # line 8
    return [
        *stages,
        Stage(s1, Recipe(1.0, (second, s2 - sigma - second))),
        Stage(s2, Recipe(1.0, (third, 0.0, whole - third), noise)),
    ]


class DPMFastScheduler(StagedScheduler):
    """Third-order single steps of three network calls each, as many as there is room for: n steps are n *calls*.

    Unless a spacing is asked for, levels are even in λ from the model's σ_max to its σ_min, as published. A run that
    is to end at σ = 0 (the default) keeps its last call for the step there from σ_min; with
    ``final_sigmas_type="sigma_min"`` it ends there, as published.

    Args: those of every solver of the family, see :class:`langevin.schedulers.sigma.recipe.RecipeScheduler`.

    Run options: ``eta``, how much of ancestral sampling's noise (0, the default, to 1); ``s_noise``, a factor on it.
    With timesteps or sigmas of one's own every step is of three calls, but for a last one to σ = 0.

        >>> run = DPMFastScheduler(beta_schedule="scaled_linear").plan(13)  # 13 calls
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    run_options = ("eta", "s_noise")
    run_class = SlopeStagedRun

    def _sigma_spacing(self) -> tuple[str | None, dict[str, Any]]:
        name, options = super()._sigma_spacing()
        if name is None and self._spacing is None:
            ends = {
                "sigma_max": float(self.noise_schedule.sigmas[-1]),
                "sigma_min": float(self.noise_schedule.sigmas[0]),
            }
            return "exponential", {**ends, **options}
        return name, options

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, **options: Any
    ) -> SigmaRun:
        if timesteps is not None:
            sigmas = [*self._sigmas_between(list(map(float, timesteps))), self._final_sigma()]
        if sigmas is not None:
            return super()._plan(steps, None, sigmas, orders=[3] * steps, **options)
        last = [1] if self._final_sigma() == 0.0 else []
        calls = steps - len(last)
        if calls == 0:
            orders = []
        elif calls % 3 == 0:
            orders = [3] * (calls // 3 - 1) + [2, 1]
        else:
            orders = [3] * (calls // 3) + [calls % 3]
        visited, levels = self._visit_sigmas(len(orders) + 1, None, None)
        levels = [*levels, 0.0] if last else [*levels[:-1], self._final_sigma()]
        return self._run_over(visited, levels, orders=orders + last, **options)

    def _stages(
        self, sigmas: list[float], orders: Sequence[int], eta: float = 0.0, s_noise: float = 1.0
    ) -> list[list[Stage]]:
        least = min((sigma for sigma in sigmas if sigma), default=0.0)
        steps = []
        for sigma, target, order in zip(sigmas, sigmas[1:], orders, strict=False):
            down, up = ancestral_within(sigma, target, least, eta) if target else (0.0, 0.0)
            steps.append(dpm_step(sigma, down, order, noise=s_noise * up))
        return steps
