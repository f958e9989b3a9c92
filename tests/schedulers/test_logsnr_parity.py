"""Numbers of the reference in DPM-Solver++ and UniPC, which count in λ, to 1e-5 over whole trajectories."""

from __future__ import annotations

import diffusers
import pytest
import torch

import langevin
from tests.schedulers.parity_checks import (
    LATENT,
    SHARED,
    SIGMA,
    SPACED,
    ZERO_SNR,
    label,
    lists_agree,
    trajectories_agree,
)
from tests.schedulers.scheduler_checks import FLOW_FORMS

THIRD = {"solver_order": 3, **LATENT}
SDE = {"algorithm_type": "sde-dpmsolver++", **LATENT}
EPSILON = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", **LATENT}
DPM = [
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"prediction_type": "sample", "final_sigmas_type": "sigma_min"},
    ZERO_SNR,
    {**LATENT, "use_lu_lambdas": True},
    {**LATENT, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
    {**LATENT, "lower_order_final": False, "solver_order": 3},
    {**LATENT, "euler_at_final": True, "final_sigmas_type": "sigma_min"},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "timestep_spacing": "trailing"},
    {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
    {**LATENT, "solver_type": "heun"},
    {**LATENT, "solver_order": 1},
    THIRD,
    {**THIRD, "use_karras_sigmas": True, "prediction_type": "v_prediction"},
    SDE,
    {**SDE, "solver_type": "heun", "use_karras_sigmas": True},
    {**SDE, "solver_order": 1},
    {**SDE, "solver_order": 3},
    EPSILON,
    {**EPSILON, "solver_type": "heun"},
    {**EPSILON, "solver_order": 3},
    {**EPSILON, "algorithm_type": "sde-dpmsolver"},
    {**EPSILON, "algorithm_type": "sde-dpmsolver", "solver_type": "heun"},
    {**EPSILON, "prediction_type": "v_prediction", "thresholding": True},
    {**EPSILON, "prediction_type": "sample"},
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    {"algorithm_type": "deis", "solver_type": "bh2", "final_sigmas_type": "sigma_min"},
    *({"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": kind} for kind in FLOW_FORMS),
]

UNIPC = [
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"prediction_type": "sample"},
    ZERO_SNR,
    {**LATENT, "final_sigmas_type": "sigma_min"},
    {**LATENT, "final_sigmas_type": "sigma_min", "use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0},
    {**LATENT, "solver_order": 1},
    {**LATENT, "solver_order": 3},
    {**LATENT, "solver_order": 3, "use_karras_sigmas": True},
    {**LATENT, "solver_type": "bh1", "final_sigmas_type": "sigma_min", "lower_order_final": False},
    {**LATENT, "solver_type": "midpoint", "disable_corrector": [0, 2]},
    {**LATENT, "predict_x0": False, "final_sigmas_type": "sigma_min"},
    {**LATENT, "predict_x0": False, "final_sigmas_type": "sigma_min", "prediction_type": "v_prediction"},
    {**LATENT, "predict_x0": False, "final_sigmas_type": "sigma_min", "prediction_type": "sample", "solver_order": 3},
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "shift_terminal": 0.1},
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "use_karras_sigmas": True},
    *({"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": kind} for kind in FLOW_FORMS),
    {"use_flow_sigmas": True, "use_karras_sigmas": True, "prediction_type": "v_prediction"},
    {"use_flow_sigmas": True, "predict_x0": False, "final_sigmas_type": "sigma_min", "prediction_type": "v_prediction"},
]

CASES = [
    *(("DPMSolverMultistepScheduler", config, {}) for config in SHARED + SIGMA + SPACED + DPM),
    *(("UniPCMultistepScheduler", config, {}) for config in SHARED + SIGMA + SPACED + UNIPC),
]


@pytest.mark.parametrize("case", CASES, ids=label)
def test_whole_trajectories_equal_the_reference(case):
    trajectories_agree(case)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_lists_equal_the_reference(case):
    lists_agree(case)


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_bounded_images_of_v_on_straight_lines_are_the_reference_ones(steps):
    """Near σ = 1 the reference's fp32 makes 1e-4 of its own here; reading v otherwise makes 1."""
    config = {**EPSILON, "use_flow_sigmas": True, "flow_shift": 2.0, "prediction_type": "v_prediction"}
    config |= {"thresholding": True, "solver_order": 1}
    ends = []
    for library in (langevin, diffusers):
        scheduler = library.DPMSolverMultistepScheduler(**config)
        scheduler.set_timesteps(steps)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.sin(1.3 * x) + 0.2 * x, t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(*ends, atol=1e-3, rtol=0)
