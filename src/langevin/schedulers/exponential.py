"""φ-functions, of which exponential integrators are made (Hochbruck & Ostermann 2010, "Exponential integrators")."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .dpm_multistep import differences


def phi(k: int, z: float) -> float:
    """φ_k(z) = Σ_j z^j/(j + k)!: φ_0 is exp, φ_{k+1}(z) = (φ_k(z) - 1/k!)/z."""
    if abs(z) < 1.0:  # where the differences would cancel
        return sum(z**j / math.factorial(j + k) for j in range(20))
    return math.exp(z) if k == 0 else (phi(k - 1, z) - 1.0 / math.factorial(k - 1)) / z


def multistep_weights(lambdas: Sequence[float], length: float, h: float, bend: float) -> tuple[float, list[float]]:
    """A step in λ = -log σ by x0 at up to three places: (weight of x, weights of the x0).

    Args:
        lambdas: where the x0 were predicted, the newest first; x is at the first.
        length: how far the step goes.
        h: the same in the φ-functions; more where noise is added afterwards.
        bend: the weight of half the second derivative, in units of h·φ_3(-h). 2 is its integral, 1 is what
            DPM-Solver++ takes.
    """
    parts = [h * phi(1, -h), h * phi(2, -h), bend * h * phi(3, -h)]
    scaled = [
        [part * weight for weight in weights]
        for part, weights in zip(parts, differences(lambdas, length), strict=False)
    ]
    return math.exp(-h), [sum(column) for column in zip(*scaled, strict=True)]
