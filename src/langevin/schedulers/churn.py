"""Churn: fresh noise before a step (Karras et al. 2022, arXiv:2206.00364, algorithm 2, lines 3 to 6)."""

from __future__ import annotations

import math
from typing import NamedTuple


class Churn(NamedTuple):
    """How much noise to add before steps whose σ lies in [s_tmin, s_tmax]."""

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def raised(self, sigma: float, steps: int) -> float:
        """σ̂, to which fresh noise raises σ in a run of so many steps (lines 3 and 5)."""
        if not (self.s_churn > 0.0 and self.s_tmin <= sigma <= self.s_tmax):
            return sigma
        return sigma + min(self.s_churn / steps, math.sqrt(2) - 1) * sigma

    def added(self, sigma: float, raised: float) -> float:
        """The standard deviation of the noise that leads from σ to σ̂ (line 6)."""
        return self.s_noise * math.sqrt(raised**2 - sigma**2)
