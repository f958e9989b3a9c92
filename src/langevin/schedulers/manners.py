"""Two manners of working: as the reference implementation has it, which is the default, and as published.

Numbers are diffusers' by default, so that nobody's pictures change. Where those are not what the paper says,
``plan(…, as_published=True)`` gives the paper's. Each room's ``deviations.py`` has both side by side, with the reason.
A solver is handed one of the two and asks it; which one, is decided in ``plan`` and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Manner = TypeVar("Manner")


@dataclass(frozen=True)
class Manners(Generic[Manner]):
    """A pair of functions, or of objects with the same methods."""

    reference: Manner
    published: Manner

    def of(self, as_published: bool) -> Manner:
        """The one that the run option ``as_published`` asks for."""
        return self.published if as_published else self.reference
