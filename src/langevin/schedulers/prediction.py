"""What a network's output says about the image: the one place where ε, x0 and v turn into each other.

At a level x = α·x0 + σ·ε every reading is linear in the sample and the output, so it is two plain numbers:
x0 = p·x + q·output, ε = r·x + w·output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from langevin.schedulers.noise import Level

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")  # of most solvers; some know "flow_prediction" too
_TINY = 1e-10  # stands in for a level without image or without noise, so that no 0/0 arises


def check(prediction_type: str, allowed: tuple[str, ...] = PREDICTION_TYPES, owner: str = "this scheduler") -> str:
    """Refuse a prediction type that the solver cannot use."""
    if prediction_type not in allowed:
        raise ValueError(
            f"prediction_type={prediction_type!r} in the config of {owner}: must be one of "
            f"{', '.join(map(repr, allowed))}"
        )
    return prediction_type


def to_x0(prediction_type: str, level: Level) -> tuple[float, float]:
    """(p, q) with x0 = p·x + q·output.

    v is that of Salimans & Ho 2022 (arXiv:2202.00512) of the unit-variance x; a flow's output is ε - x0 on the
    straight line α + σ = 1 (Lipman et al. 2023, arXiv:2210.02747).
    """
    alpha, sigma = level
    if prediction_type == "epsilon":
        return 1 / max(alpha, _TINY), -sigma / max(alpha, _TINY)
    if prediction_type == "v_prediction":
        norm = math.hypot(alpha, sigma)
        return alpha / norm**2, -sigma / norm
    if prediction_type == "flow_prediction":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    return 0.0, 1.0


def to_epsilon(prediction_type: str, level: Level) -> tuple[float, float]:
    """(r, w) with ε = r·x + w·output."""
    alpha, sigma = level
    if prediction_type == "epsilon":
        return 0.0, 1.0
    if prediction_type == "v_prediction":
        norm = math.hypot(alpha, sigma)
        return sigma / norm**2, alpha / norm
    if prediction_type == "flow_prediction":
        return 1 / (alpha + sigma), alpha / (alpha + sigma)
    return 1 / max(sigma, _TINY), -alpha / max(sigma, _TINY)


def to_slope(prediction_type: str, level: Level) -> tuple[float, float]:
    """(a, b) with dx/dσ = (x - x0)/σ = a·x + b·output, where α is 1; 0 where there is no noise."""
    p, q = to_x0(prediction_type, level)
    return ((1.0 - p) / level.sigma, -q / level.sigma) if level.sigma else (0.0, 0.0)


def limiter(config: Mapping[str, Any]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The bound that a config puts on predicted images: dynamic thresholding, else clipping, else none."""
    if config.get("thresholding"):
        ratio, ceiling = config["dynamic_thresholding_ratio"], config["sample_max_value"]
        return lambda x0: dynamic_threshold(x0, ratio, ceiling)
    if config.get("clip_sample"):
        bound = config["clip_sample_range"]
        return lambda x0: x0.clamp(-bound, bound)
    return None


def dynamic_threshold(x0: torch.Tensor, ratio: float, ceiling: float) -> torch.Tensor:
    """Clip each image at the ``ratio`` quantile s of its absolute values, 1 <= s <= ``ceiling``, and divide by s.

    For pixels only (Saharia et al. 2022, arXiv:2205.11487, section 2.3). x0: (batch, ...), fp32 or fp64.
    """
    s = x0.flatten(1).abs().quantile(ratio, dim=1).clamp(min=1, max=ceiling)
    s = s.view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s
