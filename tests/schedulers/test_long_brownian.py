"""Numbers of the reference over 999 steps with noise from a Brownian path, which takes long to walk."""

from __future__ import annotations

import torch

from tests.schedulers.brownian_checks import on_a_path
from tests.schedulers.scheduler_checks import both, distance, familiar, planned

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def test_999_steps_of_the_sde_solver_equal_the_reference():
    ours, theirs = both("DPMSolverSDEScheduler", noise_sampler_seed=3, **LATENT)
    want = familiar(theirs, 999, dtype=torch.float64)
    assert distance(planned(ours, 999, dtype=torch.float64), want) < 1e-5


def test_999_steps_of_the_cosine_solver_equal_the_reference():
    ours, theirs = both("CosineDPMSolverMultistepScheduler")
    want = familiar(theirs, 999, 500, dtype=torch.float64)
    assert distance(on_a_path(ours, 999, 500, seed=0, dtype=torch.float64), want) < 1e-5
