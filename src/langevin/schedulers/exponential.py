"""φ-functions, of which exponential integrators are made (Hochbruck & Ostermann 2010, "Exponential integrators").

A step of length h in λ = -log σ is exact but for the integral of the network's predictions, which are expanded in
differences of the latest ones: D0, the newest itself, D1, their first derivative times the step, and D2, half their
second derivative times its square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def phi(k: int, z: float) -> float:
    """φ_k(z) = Σ_j z^j/(j + k)!: φ_0 is exp, φ_{k+1}(z) = (φ_k(z) - 1/k!)/z."""
    if abs(z) < 1.0:  # where the differences would cancel
        return sum(z**j / math.factorial(j + k) for j in range(20))
    return math.exp(z) if k == 0 else (phi(k - 1, z) - 1.0 / math.factorial(k - 1)) / z


def integrals(order: int, z: float, bend: float) -> list[float]:
    """z·φ_k(z) for k = 1 to ``order``: the integrals of the exponential with D0, D1 and D2. z may be infinite.

    ``bend`` is D2's, the third's, weight: 2 is its integral, 1 is what DPM-Solver++ takes.
    """
    parts = [
        z * phi(k, z) if abs(z) < 1.0 else phi(k - 1, z) - 1.0 / math.factorial(k - 1) for k in range(1, order + 1)
    ]
    return [*parts[:2], *(bend * part for part in parts[2:])]


def differences(lambdas: Sequence[float], h: float) -> list[list[float]]:
    """D0, D1, D2 as weights of m0, m1, m2, for as many predictions as there are λ (the newest first)."""
    if len(lambdas) == 1:
        return [[1.0]]
    r0 = (lambdas[0] - lambdas[1]) / h
    first = [1 / r0, -1 / r0]
    if len(lambdas) == 2:
        return [[1.0, 0.0], first]
    r1 = (lambdas[1] - lambdas[2]) / h
    earlier = [0.0, 1 / r1, -1 / r1]
    bend = [a - b for a, b in zip([*first, 0.0], earlier, strict=True)]
    d1 = [a + r0 / (r0 + r1) * b for a, b in zip([*first, 0.0], bend, strict=True)]
    return [[1.0, 0.0, 0.0], d1, [b / (r0 + r1) for b in bend]]


def weigh(parts: Sequence[float], lambdas: Sequence[float], h: float) -> list[float]:
    """Weights of the predictions at these λ, the newest first, in a sum of ``parts`` times D0, D1, D2."""
    scaled = [
        [part * weight for weight in weights] for part, weights in zip(parts, differences(lambdas, h), strict=True)
    ]
    return [sum(column) for column in zip(*scaled, strict=True)]


def multistep_weights(lambdas: Sequence[float], length: float, h: float, bend: float) -> tuple[float, list[float]]:
    """A step in λ = -log σ by x0 at up to three places: (weight of x, weights of the x0).

    Args:
        lambdas: where the x0 were predicted, the newest first; x is at the first.
        length: how far the step goes.
        h: the same in the φ-functions; more where noise is added afterwards.
        bend: see :func:`integrals`.
    """
    return math.exp(-h), weigh([-part for part in integrals(len(lambdas), -h, bend)], lambdas, length)
