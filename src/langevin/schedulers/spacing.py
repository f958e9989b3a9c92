"""Spacings: which noise levels a run of n steps visits.

Two kinds, and neither knows the solver. A *timestep spacing* picks from the training timesteps 0..T-1, a *sigma
spacing* lays σ between two ends. Both return n numbers, noisiest first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from itertools import pairwise
from typing import Any

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


def sgm_uniform(train_steps: int, steps: int, offset: int = 0) -> list[float]:
    """From T-1 towards 0, which would be the next: even, not rounded (Stability AI's generative-models)."""
    return np.linspace(train_steps - 1, 0, steps + 1)[:-1].tolist()


def simple(train_steps: int, steps: int, offset: int = 0) -> list[float]:
    """T-1 - floor(i·T/n): "trailing" rounded the other way (ComfyUI's "simple")."""
    return [train_steps - 1 - i * train_steps // steps for i in range(steps)]


def ddim_uniform(train_steps: int, steps: int, offset: int = 0) -> list[float]:
    """Multiples of T//n, counted from 1 whatever the offset: the original DDIM sampler of latent diffusion."""
    return leading(train_steps, steps, 1)


TIMESTEP_SPACINGS: dict[str, Callable[..., list[float]]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim_uniform": ddim_uniform,
}
CONFIG_SPACINGS = ("leading", "trailing", "linspace")
"""Those that a config may name as its ``timestep_spacing``."""
FROM_ALL_NOISE = ("trailing", "linspace", "sgm_uniform", "simple")
"""Those that begin at T-1, where nothing of the image is left."""

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


def polyexponential(sigma_max: float, sigma_min: float, steps: int, rho: float = 1.0) -> list[float]:
    """log σ falls as (1 - u)^ρ; ρ > 1 puts more levels at the quiet end (Crowson's k-diffusion)."""
    ramp = np.linspace(1, 0, steps) ** rho
    return (sigma_min * (sigma_max / sigma_min) ** ramp).tolist()


def kl_optimal(sigma_max: float, sigma_min: float, steps: int) -> list[float]:
    """arctan σ is linear: least KL divergence for Gaussian data (Sabour, Fidler & Kreis 2024, arXiv:2404.14507,
    section 3.1)."""
    return np.tan(np.linspace(math.atan(sigma_max), math.atan(sigma_min), steps)).tolist()


def linear_quadratic(sigma_max: float, sigma_min: float, steps: int, threshold: float = 0.025) -> list[float]:
    """σ/σ_max falls evenly from 1 to 1 - ``threshold`` in the first half, then by a parabola towards 0, which would be
    the next (Movie Gen, arXiv:2410.13720, section 3.4.2). Made for flows; σ_min has no say."""
    half = steps // 2
    if half == 0:
        return [sigma_max]
    slope = threshold / half
    bend = (1 - slope * steps) / (steps - half) ** 2
    return [sigma_max * (1 - slope * i - bend * max(i - half, 0) ** 2) for i in range(steps)]


_OPTIMISED = {
    "sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def align_your_steps(sigma_max: float, sigma_min: float, steps: int, model: str = "sd1") -> list[float]:
    """The levels that Sabour, Fidler & Kreis 2024 (arXiv:2404.14507) found best for ``model``: "sd1", "sdxl" or "svd".

    Theirs are for ten steps; others lie between them, log σ interpolated over n + 1 places of which the last is left
    out. Where the model at hand has other ends than theirs, log σ is stretched to those.
    """
    if model not in _OPTIMISED:
        raise ValueError(f"model={model!r} has no optimised levels; there are: {', '.join(map(repr, _OPTIMISED))}")
    table = np.log(_OPTIMISED[model])
    part = (np.interp(np.linspace(0, 10, steps + 1), np.arange(11), table)[:-1] - table[-1]) / (table[0] - table[-1])
    return (sigma_min * (sigma_max / sigma_min) ** part).tolist()


SIGMA_SPACINGS: dict[str, Callable[..., list[float]]] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
    "kl_optimal": kl_optimal,
    "linear_quadratic": linear_quadratic,
    "align_your_steps": align_your_steps,
    "lu": exponential,  # Lu et al. 2022 (arXiv:2206.00927, section 3.4): even in λ = log(α/σ)
}
SPACINGS = {**TIMESTEP_SPACINGS, **SIGMA_SPACINGS}


def check(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Refuse a spacing, or an option, that there is not. "uniform" is "linspace"; hyphens are underscores."""
    key = {"uniform": "linspace"}.get(name, str(name).replace("-", "_"))
    if key not in SPACINGS:
        raise ValueError(f"spacing {name!r} is not known; allowed: {', '.join(map(repr, ['uniform', *SPACINGS]))}")
    allowed = [option for option in signature(SPACINGS[key]).parameters if option not in ("train_steps", "steps")]
    if odd := [option for option in options if option not in allowed]:
        raise TypeError(f"spacing {name!r} takes no {', '.join(map(repr, odd))}; it takes: {', '.join(allowed)}")
    return key, dict(options)


def refuse_unless_ascending(name: str, given: Sequence[float]) -> None:
    """Refuse what an inversion cannot visit: its levels go up in noise."""
    if any(late <= early for early, late in pairwise(map(float, given))):
        raise ValueError(f"{name} of an inversion must be in ascending order, got {list(given)}")


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
