"""Numbers of the reference over 999 steps, in every scheduler that it has and in at least two settings."""

from __future__ import annotations

import pytest
import torch

from tests.schedulers import karras_ve_checks, repaint_checks, score_sde_checks, unclip_checks, vq_diffusion_checks
from tests.schedulers.scheduler_checks import ALSO_THERE, both, distance, familiar, in_double, planned, widened

STEPS = 999
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
OTHER = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
OWN = {
    "PNDMScheduler": [{"skip_prk_steps": True, **LATENT}, {"skip_prk_steps": True, **OTHER}, {**LATENT}],
    "DEISMultistepScheduler": [LATENT, {"solver_order": 3, **LATENT}],
    "DPMSolverMultistepScheduler": [LATENT, {"solver_order": 3, **LATENT, **OTHER}],
    "DPMSolverSinglestepScheduler": [LATENT, {"solver_order": 3, "prediction_type": "v_prediction"}],
    "UniPCMultistepScheduler": [LATENT, {"solver_order": 3, **LATENT, **OTHER}],
    "DPMSolverSDEScheduler": [],  # test_long_brownian.py
}
CASES = [
    *((name, config) for name in ALSO_THERE for config in OWN.get(name, [LATENT, OTHER])),
    ("EDMEulerScheduler", {}),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_schedule": "exponential"}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("EDMDPMSolverMultistepScheduler", {"solver_order": 3, "prediction_type": "v_prediction"}),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("LCMScheduler", {"original_inference_steps": 1000}),
    ("LCMScheduler", {"original_inference_steps": 1000, "prediction_type": "v_prediction"}),
    ("TCDScheduler", {"original_inference_steps": 1000}),
    ("TCDScheduler", {"original_inference_steps": 1000, "prediction_type": "v_prediction"}),
    ("CMStochasticIterativeScheduler", {"num_train_timesteps": 1000}),
    ("CMStochasticIterativeScheduler", {"num_train_timesteps": 1000, "clip_denoised": False, "rho": 5.0}),
    ("DDIMInverseScheduler", {"clip_sample": False, **LATENT}),
    ("DDIMInverseScheduler", {"prediction_type": "v_prediction"}),
    ("DPMSolverMultistepInverseScheduler", LATENT),
    ("DPMSolverMultistepInverseScheduler", {"solver_order": 3, "prediction_type": "v_prediction"}),
    ("DDIMParallelScheduler", LATENT),
    ("DDIMParallelScheduler", {"clip_sample": False, **OTHER}),
    ("DDPMParallelScheduler", LATENT),
    ("DDPMParallelScheduler", {"clip_sample": False, **OTHER}),
    ("IPNDMScheduler", {}),
    ("IPNDMScheduler", {"trained_betas": torch.linspace(1, 0, 1000).tolist()}),
]
# Solvers which in the reference compute their coefficients anew at every step in fp32, where differences cancel.
RECOMPUTED = ("DEIS", "DPMSolverMultistepInverse", "DPMSolverSinglestep", "SASolver")


def with_exact_tables(name: str, theirs):
    """The reference's scheduler with its tables in fp64, where their rounding in fp32 adds up to 1e-5."""
    if name.startswith(RECOMPUTED):
        return in_double(theirs)
    if name == "IPNDMScheduler":
        return widened(theirs)
    if name.startswith("DDIM"):
        theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    if name.startswith("FlowMatch"):
        theirs.init_noise_sigma, theirs.scale_model_input = 1.0, lambda x, t: x
    return theirs


@pytest.mark.parametrize("k", range(len(CASES)), ids=lambda k: "-".join(map(str, CASES[k])))
def test_999_steps_equal_the_reference(k):
    """The first setting of each from the beginning, the second from the middle. In fp64: over so many steps, the
    rounding of either side in fp32 adds up to more than 1e-5. (The reference's flow matching is always in fp32.)"""
    name, config = CASES[k]
    ours, theirs = both(name, **config)
    theirs = with_exact_tables(name, theirs)
    start = 0 if k == 0 or CASES[k - 1][0] != name else 500
    dtype = torch.float32 if name.startswith("FlowMatch") else torch.float64
    want = familiar(theirs, STEPS, start, dtype=dtype)
    for through in (familiar, planned):
        assert distance(through(ours, STEPS, start, dtype=dtype), want) < 1e-5, through.__name__


@pytest.mark.parametrize("config", karras_ve_checks.CONFIGS[1:3], ids=str)
def test_999_steps_of_karras_s_sampler_equal_the_reference(config):
    ours, theirs = both("KarrasVeScheduler", **config)
    want = karras_ve_checks.walk(theirs, STEPS)
    for through in (karras_ve_checks.walk, karras_ve_checks.planned):
        assert distance(through(ours, STEPS), want) < 1e-5


@pytest.mark.parametrize("config", repaint_checks.CONFIGS[:2], ids=str)
def test_999_steps_of_repaint_equal_the_reference(config):
    ours, theirs = both("RePaintScheduler", **config)
    original, mask = repaint_checks.picture()
    want = repaint_checks.walk(theirs, STEPS, (500, 2), dtype=torch.float64)
    assert distance(repaint_checks.walk(ours, STEPS, (500, 2), dtype=torch.float64), want) < 1e-5
    options = {"mask": mask, "original": original, "jump_length": 500, "jump_n_sample": 2}
    assert distance(planned(ours, STEPS, dtype=torch.float64, **options), want) < 1e-5


@pytest.mark.parametrize("config", score_sde_checks.VE[1:], ids=str)
def test_999_steps_of_the_variance_exploding_sde_equal_the_reference(config):
    ours, theirs = score_sde_checks.both("ScoreSdeVeScheduler", **config)
    want = score_sde_checks.walk(theirs, STEPS)
    for through in (score_sde_checks.walk, score_sde_checks.through_plan):
        assert distance(through(ours, STEPS), want) < 1e-5


@pytest.mark.parametrize("config", score_sde_checks.VP, ids=str)
def test_999_steps_of_the_variance_preserving_sde_equal_the_reference(config):
    ours, theirs = score_sde_checks.both("ScoreSdeVpScheduler", **config)
    want = score_sde_checks.walk_vp(theirs, STEPS)
    for through in (score_sde_checks.walk_vp, score_sde_checks.planned_vp):
        assert distance(through(ours, STEPS), want) < 1e-5


@pytest.mark.parametrize("config", unclip_checks.CONFIGS[:2], ids=str)
def test_999_steps_of_unclip_equal_the_reference(config):
    ours, theirs = both("UnCLIPScheduler", **config)
    want = unclip_checks.walk(theirs, STEPS)
    for through in (unclip_checks.walk, planned):
        assert distance(through(ours, STEPS), want) < 1e-5


@pytest.mark.parametrize("config", vq_diffusion_checks.CONFIGS[::2], ids=str)
def test_999_steps_of_codes_equal_the_reference(config):
    ours, theirs = both("VQDiffusionScheduler", **config, num_train_timesteps=1000)
    want = vq_diffusion_checks.walk(theirs, STEPS)
    for through in (vq_diffusion_checks.walk, vq_diffusion_checks.planned):
        assert torch.equal(through(ours, STEPS), want)
