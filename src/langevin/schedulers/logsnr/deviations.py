"""What the reference implementation does otherwise than published, for solvers that count in λ.

One pair, of which :meth:`SchedulerMixin.plan` chooses by ``as_published``: the methods of the one are the papers',
those of the other what the reference has in their place.
"""

from __future__ import annotations

from typing import Any

import torch

from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import combine
from langevin.schedulers.manners import Manners
from langevin.schedulers.noise import Level
from langevin.schedulers.weights import Recipe


class Published:
    """The papers': arXiv:2206.00927 and arXiv:2211.01095 (DPM-Solver), arXiv:2204.13902 (DEIS), arXiv:2309.05019
    (SA-Solver), arXiv:2302.04867 (UniPC)."""

    def to_x0(self, prediction_type: str, level: Level) -> tuple[float, float]:
        """(p, q) with x0 = p·x + q·output. A v-prediction on straight lines is that of the x of unit variance."""
        return predictions.to_x0(prediction_type, level)

    def to_epsilon(self, prediction_type: str, level: Level) -> tuple[float, float]:
        """(r, w) with ε = r·x + w·output."""
        return predictions.to_epsilon(prediction_type, level)

    def end(self, least: float, told: bool) -> float:
        """σ where a run of DEIS or SA-Solver ends that does not say: the clean image.

        Args:
            least: the least σ that there is, or that the run's spacing visits.
            told: the levels are timesteps of the caller's own.
        """
        return 0.0

    def upwards(self, scheduler: Any, steps: int) -> tuple[list[float], list[float]]:
        """(timesteps, σ and the one to end at) of an inversion by ``scheduler``, a DPMSolverMultistepInverseScheduler:
        n steps between the n + 1 levels that a run of n steps down has."""
        between = scheduler._sigma_spacing()[0] is not None  # both ends are among the levels
        told, spaced, _ = scheduler._visit_sigmas(steps + between, None, None, None)
        if not between:
            told, spaced = [*told, 0], [*spaced, float(scheduler.noise_schedule.sigmas[0])]
        return told[:0:-1], spaced[::-1]

    def slip(self, alpha: float) -> float:
        """What the weight of the second difference is off by in a third-order step of "sde-dpmsolver++" to α, for a
        bend of 1; the expansion's is -α·(φ_2(-2h) - 1/2)."""
        return 0.0

    def noise_so_far(self, added: torch.Tensor | None, z: torch.Tensor, own: Recipe, last: Recipe) -> torch.Tensor:
        """The noise in x since a group of single steps began. All its calls are on one path of the noise: what there is
        goes on over the latest call, and new noise comes to it.

        Args:
            added: what there was before this call; None at the first of its group.
            z: fresh noise.
            own: the recipe of this call, whose noise is that of the group so far.
            last: the step from the call before to this one's target alone, of first order.
        """
        if added is None:
            return combine((own.noise, z))
        return combine((last.of_origin, added), (last.noise, z))


class Reference(Published):
    """The reference's."""

    def to_x0(self, prediction_type: str, level: Level) -> tuple[float, float]:
        """v-predictions are read as if α² + σ² were 1, on straight lines too."""
        if prediction_type == "v_prediction":
            return level.alpha, -level.sigma
        return super().to_x0(prediction_type, level)

    def to_epsilon(self, prediction_type: str, level: Level) -> tuple[float, float]:
        """The same."""
        if prediction_type == "v_prediction":
            return level.sigma, level.alpha
        return super().to_epsilon(prediction_type, level)

    def end(self, least: float, told: bool) -> float:
        """At the least noisy level, unless timesteps were given; so that with a sigma spacing, which has that level
        already, the last step stays where it is."""
        return 0.0 if told else least

    def upwards(self, scheduler: Any, steps: int) -> tuple[list[float], list[float]]:
        """ "trailing" spacing takes the image for what the last step down begins with, and its last step stays where it
        is, as with every sigma spacing; "leading" spacing ends at the last timestep, where no run down begins; with
        ``use_flow_sigmas`` it goes *down*; and with Karras spacing, where small σ have the same rounded timestep, it
        stops short by as many steps."""
        c, noise, name = scheduler.config, scheduler.noise_schedule, scheduler._sigma_spacing()[0]
        told, spaced, _ = scheduler._visit_sigmas(steps, None, None, None)
        if name is None:
            if c.timestep_spacing != "trailing":  # one place further down
                told = [*told[1:], c.steps_offset if c.timestep_spacing == "leading" else 0]
            told = told[::-1]
            sigmas = [*noise.sigma_at(told), scheduler._noisiest]
        else:
            upwards = scheduler._spaced_sigmas(steps, float(noise.sigmas[0]), float(noise.sigmas[-1]))
            if upwards is not None:  # not of flows
                spaced = upwards
                whole = round if name in scheduler._rounds else int
                told = [whole(noise.timestep_of(sigma)) for sigma in spaced]
            sigmas = [*spaced, spaced[-1]]
        if name in (None, "karras"):
            told = list(dict.fromkeys(told))
        return told, sigmas[: len(told) + 1]

    def slip(self, alpha: float) -> float:
        """The 1/2 has another sign; in groups of single steps, x so grows beyond bounds."""
        return -alpha

    def noise_so_far(self, added: torch.Tensor | None, z: torch.Tensor, own: Recipe, last: Recipe) -> torch.Tensor:
        """Each call draws the whole of it anew, so that pictures lose contrast."""
        return combine((own.noise, z))


LOGSNR = Manners[Published](reference=Reference(), published=Published())
