"""Steps as weighted sums: a solver turns its equation into plain numbers beforehand, and at the step adds up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from langevin.schedulers.arithmetic import combine


class Weights(NamedTuple):
    """x ← of_x·x + of_output·output + of_x0·x0 + of_noise·z: a step by one call of the network.

    ``output`` is what the network gave, ``x0`` the image that it tells of where that is bounded, z fresh noise.
    """

    of_x: float
    of_output: float
    of_x0: float = 0.0
    of_noise: float = 0.0

    def sum(
        self, x: torch.Tensor, output: torch.Tensor, x0: torch.Tensor | None = None, z: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The sum, in at least fp32; parts that are not given are left out."""
        terms = [(self.of_x, x), (self.of_output, output)]
        if x0 is not None:
            terms.insert(0, (self.of_x0, x0))
        if z is not None:
            terms.append((self.of_noise, z))
        return combine(*terms)


class Recipe(NamedTuple):
    """x ← of_origin·origin + Σ_k weights[k]·m_k + noise·z: a step by several calls.

    ``origin`` is x where the step began, the m_k are what was read off the calls, the newest first, z is fresh noise.
    """

    of_origin: float
    weights: Sequence[float]
    noise: float = 0.0

    def sum(self, origin: torch.Tensor, known: Iterable[torch.Tensor], z: torch.Tensor | None = None) -> torch.Tensor:
        """The sum, in at least fp32, over as many of ``known`` as there are weights, or the other way round."""
        terms = [(self.of_origin, origin), *zip(self.weights, known, strict=False)]
        if z is not None:
            terms.append((self.noise, z))
        return combine(*terms)


def along(h: float, x0: tuple[float, float], of_noise: float = 0.0) -> Weights:
    """x + h·(x - x0), Euler's step in σ with h = (σ_next - σ)/σ, where x0 = p·x + q·output: ``x0`` is (p, q)."""
    p, q = x0
    return Weights(1.0 + h * (1.0 - p), -h * q, of_noise=of_noise)
