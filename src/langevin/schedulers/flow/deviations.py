"""What the reference implementation does otherwise than published, on straight lines.

One pair, of which :meth:`SchedulerMixin.plan` chooses by ``as_published``: the methods of the one are the paper's,
those of the other what the reference has in their place.
"""

from __future__ import annotations

from typing import NamedTuple

from langevin.schedulers.churn import Churn
from langevin.schedulers.manners import Manners
from langevin.schedulers.noise import Level


class Raise(NamedTuple):
    """x̂ = of_x·x + of_noise·z at σ̂, and there dx/dσ = σ/σ̂·output + of_gap·(x̂ - x)."""

    sigma: float  # σ̂
    of_x: float = 1.0
    of_noise: float = 0.0
    of_gap: float = 0.0
    draws: bool = False  # whether noise is drawn


class Published:
    """The papers': arXiv:2210.02747, arXiv:2403.03206, and arXiv:2206.00364 for churn."""

    #: levels given as timesteps or sigmas are shifted (and stretched, and spaced) like others; published: taken as they
    #: are
    shifts_given = False
    #: dx/dσ is this times the network's output, in steps of single tokens that add no noise
    sign_of_tokens = 1.0
    #: the second call of a churned Heun step draws noise too, for nothing
    draws_twice = False

    def least(self, unshifted: float, shifted: float) -> float:
        """The least σ of an even run before it is shifted: levels are shifted exactly once."""
        return unshifted

    def down_and_up(
        self, reading: tuple[float, float], sigma: float, target: Level, following: float
    ) -> tuple[tuple[float, float], Level]:
        """How a stochastic step from σ reads x0, as weights of x and the output, and the level that it goes to.

        ``reading`` and ``target`` are those of the run; ``following`` is the target's σ as the run counts it.
        """
        return reading, target

    def churned(self, sigma: float, churn: Churn, steps: int) -> Raise:
        """Noise before a step, at most as much as there can be; and the image fades as it comes in, so that x̂ is x of
        the level σ̂. x0 is what the output says of x, which is what the network saw."""
        raised = min(churn.raised(sigma, steps), 1.0)
        if raised <= sigma:
            return Raise(raised)
        keep = (1.0 - raised) / (1.0 - sigma)
        added = churn.s_noise * max(raised**2 - (keep * sigma) ** 2, 0.0) ** 0.5
        # (x̂ - x0)/σ̂ with x0 = x - σ·output
        return Raise(raised, keep, added, 1.0 / raised, True)


class Reference(Published):
    """The reference: given levels are shifted too, and steps of single tokens take the network's negative."""

    shifts_given = True
    sign_of_tokens = -1.0
    draws_twice = True

    def least(self, unshifted: float, shifted: float) -> float:
        """The least σ of training, which is shifted already, and so is shifted twice."""
        return shifted

    def down_and_up(
        self, reading: tuple[float, float], sigma: float, target: Level, following: float
    ) -> tuple[tuple[float, float], Level]:
        """As if σ were not inverted, where it is."""
        return (1.0, -sigma), Level(1.0 - following, following)

    def churned(self, sigma: float, churn: Churn, steps: int) -> Raise:
        """The image stays as it is, which leaves x louder than any level; and x0 is what the output says of x̂, which
        the network did not see."""
        raised = churn.raised(sigma, steps)
        if raised <= sigma:
            return Raise(raised)
        return Raise(raised, 1.0, churn.added(sigma, raised), 0.0, True)


FLOW = Manners[Published](reference=Reference(), published=Published())
