"""What the reference implementation does otherwise than published, for codes."""

from __future__ import annotations

from langevin.schedulers.manners import Manners


def all_timesteps(steps: int, total: int) -> int:
    """Published (arXiv:2111.14822, fast inference strategy): n steps are spread over all timesteps of training, and
    each skips some."""
    return total


def quietest_timesteps(steps: int, total: int) -> int:
    """The reference: they are the n quietest, one by one, though a picture that is all mask belongs to the last."""
    return steps


VISITED = Manners(reference=quietest_timesteps, published=all_timesteps)
"""Over how many of the timesteps, from the quietest on, a run's steps are spread."""
