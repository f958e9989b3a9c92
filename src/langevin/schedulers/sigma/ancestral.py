"""Ancestral steps: down below the next level without noise, then up to it by fresh noise (Crowson's k-diffusion,
``get_ancestral_step``)."""

from __future__ import annotations

import math


def ancestral_step(sigma: float, target: float, eta: float = 1.0) -> tuple[float, float]:
    """(σ_down, σ_up) with σ_down² + σ_up² = target²: where to go without noise, and how much noise to add then.

    ``eta`` scales σ_up, as far as σ_down can make up for it: 0 is no noise.
    """
    down = target**2 / sigma if sigma else 0.0
    up = math.sqrt(max(target**2 - down**2, 0.0))
    if eta != 1.0:
        up = min(eta * up, target)
        down = math.sqrt(target**2 - up**2)
    return down, up


def ancestral_within(sigma: float, target: float, end: float, eta: float) -> tuple[float, float]:
    """:func:`ancestral_step` that does not go below ``end``."""
    down = max(ancestral_step(sigma, target, eta)[0], end)
    return down, max(target**2 - down**2, 0.0) ** 0.5
