"""Spacings: which noise levels a run of n steps visits.

Two kinds, and neither knows the solver. A *timestep spacing* picks from the training timesteps 0..T-1, a *sigma
spacing* lays σ between two ends. Both return n numbers, noisiest first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# -- timestep spacings: Lin et al. 2023, arXiv:2305.08891, table 2 ---------------------------------------------------


def leading(train_steps: int, steps: int, offset: int = 0) -> list[float]:
    """Multiples of T//n, counted from 0, plus ``offset``. Never reaches T-1."""
    stride = train_steps // steps
    return [i * stride + offset for i in reversed(range(steps))]


def trailing(train_steps: int, steps: int, offset: int = 0) -> list[float]:
    """round(T - i·T/n) - 1: begins at T-1. The offset has no say."""
    return [round(train_steps - i * (train_steps / steps)) - 1 for i in range(steps)]


def linspace(train_steps: int, steps: int, offset: int = 0) -> list[float]:
    """From T-1 to 0, both included, not rounded. A single step is at 0."""
    return np.linspace(0, train_steps - 1, steps)[::-1].tolist()


TIMESTEP_SPACINGS: dict[str, Callable[..., list[float]]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
}

# -- sigma spacings --------------------------------------------------------------------------------------------------


def karras(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> list[float]:
    """σ^(1/ρ) is linear (Karras et al. 2022, arXiv:2206.00364, equation 5)."""
    return (np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho).tolist()


def exponential(sigma_max: float, sigma_min: float, steps: int) -> list[float]:
    """log σ is linear."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps)).tolist()


def beta(sigma_max: float, sigma_min: float, steps: int, alpha: float = 0.6, beta: float = 0.6) -> list[float]:
    """σ at the quantiles of a Beta distribution, dense at both ends (Lee et al. 2024, arXiv:2407.12173)."""
    return [sigma_min + beta_quantile(p, alpha, beta) * (sigma_max - sigma_min) for p in np.linspace(1, 0, steps)]


SIGMA_SPACINGS: dict[str, Callable[..., list[float]]] = {
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "lu": exponential,  # Lu et al. 2022 (arXiv:2206.00927, section 3.4): even in λ = log(α/σ)
}


def beta_quantile(probability: float, a: float, b: float) -> float:
    """x with I_x(a, b) = probability, by bisection in the incomplete beta function, to the last bit."""
    if probability <= 0.0 or probability >= 1.0:
        return float(probability >= 1.0)
    if probability > _incomplete_beta(0.5, a, b):  # look from the other end, so that x is small and floats are dense
        return 1.0 - _quantile_below_half(1.0 - probability, b, a)
    return _quantile_below_half(probability, a, b)


def _quantile_below_half(probability: float, a: float, b: float) -> float:
    low, high = 0.0, 0.5
    for _ in range(200):
        middle = math.sqrt(low * high) if low else high / 2**8
        if middle in (low, high):
            break
        if _incomplete_beta(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return high


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) for 0 < x <= 1/2: the power series x^a Σ (1-b)_n x^n / (n! (a+n)) / B(a, b) (DLMF 8.17.7)."""
    total, term, n = 0.0, 1.0, 0
    while abs(term) > 1e-18 * abs(total) or n < 2:
        total += term / (a + n)
        n += 1
        term *= (n - b) * x / n
        if term == 0.0:
            break
    log_norm = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) - log_norm) * total
