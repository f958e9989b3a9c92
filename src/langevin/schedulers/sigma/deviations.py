"""What the reference implementation does otherwise than published, for solvers that count in σ.

Everything here is a pair, of which :meth:`SchedulerMixin.plan` chooses one by ``as_published``.
"""

from __future__ import annotations

import torch

from langevin.schedulers.manners import Manners
from langevin.schedulers.run import Run
from langevin.schedulers.sigma.ancestral import ancestral_step

# -- LMS: how many slopes the weights are for, in a run that begins late (image to image) ----------------------------


def slopes_there_are(known: int, most: int) -> int:
    """Published (k-diffusion, ``sample_lms``): as many as there are."""
    return known


def slopes_there_would_be(known: int, most: int) -> int:
    """The reference: as many as a run from the beginning would have; the leading weights are given to those that there
    are, and no longer sum to the step."""
    return most


LMS_SLOPES = Manners(reference=slopes_there_would_be, published=slopes_there_are)

# -- KDPM2, ancestral: the level below the next, from which noise leads up to it -------------------------------------


def rounded_ancestral_step(sigma: float, target: float) -> tuple[float, float]:
    """The reference: σ_down is the root of σ_next² - σ_up² in fp32, which loses its digits where a step is long; that
    moves the level half-way. Where nothing, or less, is left, it is exact.

    Published (k-diffusion, ``get_ancestral_step``): σ_next²/σ, which is the same number: :func:`ancestral_step`.
    """
    down, up = ancestral_step(sigma, target)
    square, whole = torch.tensor([target, sigma], dtype=torch.float32).square()
    root = (square * (whole - square) / whole).clamp(min=0.0).sqrt()
    return (square - root.square()).clamp(min=0.0).sqrt().item() or down, up


ANCESTRAL_STEP = Manners(reference=rounded_ancestral_step, published=ancestral_step)

# -- v-predictions to train on: of which timestep --------------------------------------------------------------------


def of_the_timestep(run: Run, timesteps: torch.Tensor) -> list[float]:
    """Published (arXiv:2202.00512, section 4): ᾱ is that of the timestep."""
    return timesteps.tolist()


def of_the_index(run: Run, timesteps: torch.Tensor) -> list[float]:
    """The reference: ᾱ is that of the *index* of the timestep in ``scheduler.timesteps``, which counts the other way
    round."""
    if not timesteps.is_floating_point():
        raise ValueError("whole-number timesteps: pass values of scheduler.timesteps, or as_published=True")
    return [run.index_of(t) for t in timesteps.tolist()]


VELOCITY = Manners(reference=of_the_index, published=of_the_timestep)
