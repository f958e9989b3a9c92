"""What the reference implementation does otherwise than published, for preconditioned networks.

One pair, of which :meth:`SchedulerMixin.plan` chooses by ``as_published``: the methods of the one are the papers',
those of the other what the reference has in their place.
"""

from __future__ import annotations

from collections.abc import Callable

from langevin.schedulers.manners import Manners


class Published:
    """The papers': arXiv:2206.00364 and arXiv:2407.14358."""

    def begun(self, laid: list[float], most: float) -> list[float]:
        """σ of an even run: one of a single step begins at σ_max too."""
        return [most] if len(laid) == 1 else laid

    def given(
        self, sigmas: list[float], schedule: str, sigma_at: Callable[[float], float], even: Callable[[int], list[float]]
    ) -> list[float]:
        """σ of a run for which ``set_timesteps`` was given ``sigmas``: these.

        Args:
            schedule: the config's ``sigma_schedule``.
            sigma_at: σ at a place from 0 (σ_max) to 1 (σ_min).
            even: σ of an even run of so many steps.
        """
        return sigmas


class Reference(Published):
    """The reference's."""

    def begun(self, laid: list[float], most: float) -> list[float]:
        """A single step of the exponential schedule begins at σ_min."""
        return laid

    def given(
        self, sigmas: list[float], schedule: str, sigma_at: Callable[[float], float], even: Callable[[int], list[float]]
    ) -> list[float]:
        """``sigmas`` are places on the schedule, and of places on the exponential schedule only the number counts."""
        if not all(0.0 <= place <= 1.0 for place in sigmas):
            raise ValueError(
                f"sigmas={sigmas} are places from 0 (sigma_max) to 1 (sigma_min) here; to give σ itself, say "
                "as_published=True"
            )
        return even(len(sigmas)) if schedule == "exponential" else [sigma_at(place) for place in sigmas]


EDM = Manners[Published](reference=Reference(), published=Published())
