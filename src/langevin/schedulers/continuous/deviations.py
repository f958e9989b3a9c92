"""What the reference implementation does otherwise than published, for solvers in continuous time.

Everything here is a pair, of which :meth:`SchedulerMixin.plan` chooses one by ``as_published``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from langevin.schedulers.manners import Manners

# -- IPNDM: the first step, from pure noise --------------------------------------------------------------------------


def all_of_the_image(p: float, q: float) -> tuple[float, float]:
    """Published (arXiv:2202.09778, equation 11): x0 = p·x + q·output, which v tells of even where x is all noise."""
    return p, q


def none_of_the_image(p: float, q: float) -> tuple[float, float]:
    """The reference works x0 out from ε alone, which is 0/0 there, and takes it for 0."""
    return 0.0, 0.0


IPNDM_FIRST = Manners(reference=none_of_the_image, published=all_of_the_image)

# -- KarrasVe: σ, and draws ------------------------------------------------------------------------------------------


class KarrasVeAsPublished:
    """Published (arXiv:2206.00364, algorithm 2): σ falls from σ_max to σ_min; noise is drawn where some is added."""

    #: noise is drawn before every step, also where none is added
    draws_always = False

    def ends(self, most: float, least: float) -> tuple[float, float]:
        """The σ between which a run's levels are laid."""
        return most, least

    def start(self, most: float, first: float) -> float:
        """σ of the noise to begin with, where the first level is at ``first``."""
        return first


class KarrasVeAsReference(KarrasVeAsPublished):
    """The reference takes table 1's time t = σ² for σ: it falls from σ_max² to σ_min², though the noise to begin with
    is σ_max. (That of its own even levels alone: it knows no other spacings.)"""

    draws_always = True

    def ends(self, most: float, least: float) -> tuple[float, float]:
        return most**2, least**2

    def start(self, most: float, first: float) -> float:
        return most


KARRAS_VE = Manners[KarrasVeAsPublished](reference=KarrasVeAsReference(), published=KarrasVeAsPublished())

# -- Score SDE, variance exploding: what is told and what is counted with, and the batch's norms ---------------------

Move = tuple[float, float]


class ScoreSdeVeAsPublished:
    """Published (arXiv:2011.13456, algorithms 2 and 4): the network is told the very σ that the steps count with, and a
    corrector looks at each image alone."""

    #: the corrector's norms are each image's own; otherwise the batch's mean
    alone = True

    def even(self, steps: int, most: float, least: float, eps: float) -> tuple[list[float], list[Move]] | None:
        """What the network is told at each level, and from which σ to which the steps go; None: as any spacing has
        it."""
        return None


class ScoreSdeVeAsReference(ScoreSdeVeAsPublished):
    """The reference: σ is told by the time, evenly from 1 to ``eps``, and counted with by a table from σ_min to σ_max,
    in which the time's place is cut to a whole number; the two differ a little. The corrector takes the batch's mean
    norms, so that an image depends on the others."""

    alone = False

    def even(self, steps: int, most: float, least: float, eps: float) -> tuple[list[float], list[Move]] | None:
        times = even_times(steps, eps)
        table = even_table(steps, least, most).tolist()
        places = places_of(times, steps).tolist()
        return sigmas_at(times, least, most).tolist(), [(table[k], table[k - 1] if k else 0.0) for k in places]


SCORE_SDE_VE = Manners[ScoreSdeVeAsPublished](reference=ScoreSdeVeAsReference(), published=ScoreSdeVeAsPublished())


def moves_between(visited: Sequence[float]) -> tuple[list[float], list[Move]]:
    """The same for levels that are told and counted with: ``visited``, the last of which is the end."""
    return list(visited[:-1]), list(pairwise(visited))


# The tables in fp32, as everybody builds them.


def even_times(steps: int, eps: float) -> torch.Tensor:
    """Times from 1 to ``eps``."""
    return torch.linspace(1, eps, steps)


def sigmas_at(times: torch.Tensor, least: float, most: float) -> torch.Tensor:
    """σ(t) = σ_min·(σ_max/σ_min)^t (arXiv:2011.13456, appendix C)."""
    return least * (most / least) ** times


def even_table(steps: int, least: float, most: float) -> torch.Tensor:
    """σ ascending, log σ even."""
    return torch.linspace(math.log(least), math.log(most), steps).exp()


def places_of(times: torch.Tensor, steps: int) -> torch.Tensor:
    """The index in the table of σ that a time means. Cut, so that a time near 1 may mean the one below."""
    return (times * (steps - 1)).long()
