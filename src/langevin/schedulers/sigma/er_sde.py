"""ER-SDE: Cui, Zhang, Lu & Liao 2023, "Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion
Models", arXiv:2309.06169.

All reverse-time equations with the right marginals differ in how much noise they add, which a function φ(σ) says; the
part of x that stays over a step is r = φ(σ_next)/φ(σ). φ = σ is the probability-flow equation, φ = σ² the reverse SDE.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, sqrt

import numpy as np

from langevin.schedulers.sigma.recipe import MultistepRun, MultistepScheduler
from langevin.schedulers.weights import Recipe

NOISE_SCALES: dict[str, Callable[[float], float]] = {
    "ode": lambda s: s,
    "sde": lambda s: s**2,
    "er_sde_2": lambda s: s**1.5,
    "er_sde_5": lambda s: s * (exp(s**0.3) + 10.0),
}
"""φ by name; the last is the paper's choice (appendix A.8)."""

_NODES, _SHARES = np.polynomial.legendre.leggauss(64)


def integral(f: Callable[[float], float], low: float, high: float) -> float:
    """∫ f(σ) dσ by Gauss' rule in log σ, in which the integrands at hand are smooth."""
    middle, half = (log(low) + log(high)) / 2, (log(high) - log(low)) / 2
    places = np.exp(middle + half * _NODES).tolist()
    return half * sum(share * place * f(place) for share, place in zip(_SHARES.tolist(), places, strict=True))


class ERSDERun(MultistepRun):
    """Taylor's expansion of x0 in σ, of up to third order: algorithms 1, 2 and 3."""

    def configure(
        self, order: int = 3, noise_scale: str | Callable[[float], float] = "er_sde_5", s_noise: float = 1.0
    ) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"order={order}: it must be 1, 2 or 3")
        if not callable(noise_scale) and noise_scale not in NOISE_SCALES:
            raise ValueError(
                f"noise_scale={noise_scale!r} must be a function of σ or one of {', '.join(map(repr, NOISE_SCALES))}"
            )
        self.order, self.s_noise = order, s_noise
        self.phi = noise_scale if callable(noise_scale) else NOISE_SCALES[noise_scale]
        super().configure()

    def recipe(self, sigmas: list[float], target: float) -> Recipe:
        if target == 0.0:
            return Recipe(0.0, (1.0,))
        sigma, phi = sigmas[0], self.phi
        r = phi(target) / phi(sigma)
        variance = target**2 - (r * sigma) ** 2
        noise = self.s_noise * sqrt(variance) if variance > 1e-12 * target**2 else 0.0
        weights = [1.0 - r, 0.0, 0.0]
        h = target - sigma
        if len(sigmas) > 1:  # + [h + φ(σ_next)·∫ dσ/φ]·D1, D1 = the first difference quotient
            first = [1.0, -1.0, 0.0]
            slope = h + phi(target) * integral(lambda s: 1.0 / phi(s), target, sigma)
            self._add(weights, slope / (sigma - sigmas[1]), first)
        if len(sigmas) > 2:  # + [h²/2 + φ(σ_next)·∫ (s - σ)/φ dσ]·D2, D2 = the second, of twice the size
            bend = h**2 / 2 + phi(target) * integral(lambda s: (s - sigma) / phi(s), target, sigma)
            share = 2.0 * bend / (sigma - sigmas[2])
            self._add(weights, share / (sigma - sigmas[1]), [1.0, -1.0, 0.0])
            self._add(weights, -share / (sigmas[1] - sigmas[2]), [0.0, 1.0, -1.0])
        return Recipe(r, weights[: len(sigmas)], noise)

    @staticmethod
    def _add(weights: list[float], times: float, pattern: list[float]) -> None:
        for k, sign in enumerate(pattern):
            weights[k] += times * sign


class ERSDEScheduler(MultistepScheduler):
    """Up to third order with fresh noise of an amount between the ODE's (none) and the SDE's; one network call a step.

    Args: those of every solver of the family, see :class:`langevin.schedulers.sigma.recipe.RecipeScheduler`.

    Run options: ``order``, 1 to 3; ``noise_scale``, φ: a function of σ, or "ode", "sde", "er_sde_2", "er_sde_5";
    ``s_noise``, a factor on the noise that is added.

        >>> run = ERSDEScheduler(use_karras_sigmas=True).plan(20)
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x, torch.randn_like).prev_sample
    """

    run_options = ("order", "noise_scale", "s_noise")
    run_class = ERSDERun
