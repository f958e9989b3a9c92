"""Brownian paths that can be made again from a seed: Li, Wong, Chen & Duvenaud 2020, "Scalable Gradients for Stochastic
Differential Equations", arXiv:2001.01328, section 4; by way of the package torchsde.

A solver that goes through the noise levels once needs none of this: the increments of a Brownian path over intervals
that do not overlap are independent Gaussians, and the increment over an interval is the sum of those over its parts. A
path from a seed is for pictures that were made with one, and for the same path at other numbers of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

import torch

Path = Callable[[float, float], torch.Tensor]
Seed = int | Sequence[int]

_DIGITS = 6  # of the places on a path that are told apart


def brownian_path(like: torch.Tensor, low: float, high: float, seed: Seed) -> Path:
    """(W(b) - W(a))/sqrt(|b - a|) as a function of a and b, standard normal, for a path W over [low, high].

    Args:
        like: gives shape, dtype and device; the numbers depend on the last two.
        low, high: the ends of the path. It stands still outside of them.
        seed: of the path; a list gives each image of the batch a path of its own.

    Raises ImportError if torchsde is not installed, ValueError if there are not as many seeds as images.
    """
    try:
        from torchsde import BrownianInterval
    except ImportError as error:
        raise ImportError(
            "noise from a seeded Brownian path needs torchsde: pip install langevin[brownian]; or give no seed, then "
            "noise is drawn step by step"
        ) from error
    per_image = isinstance(seed, Sequence)
    seeds = list(seed) if isinstance(seed, Sequence) else [seed]
    if per_image and len(seeds) != len(like):
        raise ValueError(f"{len(seeds)} seeds for a batch of {len(like)}: give one, or one per image")
    shape = like.shape[1:] if per_image else like.shape
    # halfway_tree: the path follows from the seed alone, and not from where it was asked before. A path is defined by
    # the other two settings as much as by its seed; these are the ones in use.
    settings = {"halfway_tree": True, "tol": 10.0**-_DIGITS, "pool_size": 24}
    motions = [
        BrownianInterval(t0=low, t1=high, size=shape, dtype=like.dtype, device=like.device, entropy=entropy, **settings)
        for entropy in seeds
    ]
    ends = round(low, _DIGITS), round(high, _DIGITS)

    def increment(a: float, b: float) -> torch.Tensor:
        start, end = sorted(min(max(t, ends[0]), ends[1]) for t in (a, b))
        if round(start, _DIGITS) == round(end, _DIGITS):
            return torch.zeros_like(like)
        moved = [motion(start, end) for motion in motions]
        scale = (1.0 if a < b else -1.0) / sqrt(abs(b - a))
        return (torch.stack(moved) if per_image else moved[0]) * scale

    return increment
