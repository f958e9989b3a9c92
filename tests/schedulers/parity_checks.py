"""Settings that many classes have, and whether a class gives the reference's numbers and lists in one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.schedulers.scheduler_checks import STEPS, both, familiar, in_double, planned, same_as_reference, starts

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
TRAINED = {"trained_betas": np.linspace(0.0005, 0.015, 1000).tolist()}
SHARED = [
    {},
    LATENT,
    {**LATENT, "steps_offset": 1},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 500, "beta_end": 0.04},
    TRAINED,
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing", "steps_offset": 1},
    {"prediction_type": "v_prediction"},
    {**LATENT, "prediction_type": "v_prediction", "timestep_spacing": "linspace"},
]
SIGMA = [
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "leading", "steps_offset": 1, **LATENT},
]
SPACED = [
    *({f"use_{kind}_sigmas": True, **LATENT} for kind in ("karras", "exponential", "beta")),
    *({f"use_{kind}_sigmas": True, "timestep_spacing": "leading"} for kind in ("karras", "exponential", "beta")),
]


def label(case) -> str:
    name, config, options = case
    words = [f"{k}={'…' if k == 'trained_betas' else v}" for k, v in {**config, **options}.items()]
    return "-".join([name.removesuffix("Scheduler"), *words])


def trajectories_agree(case) -> None:
    name, config, options = case
    if config.get("use_beta_sigmas"):
        pytest.importorskip("scipy", reason="the reference needs scipy for beta sigmas")
    ours, theirs = both(name, **config)
    # On straight lines an ε is divided by 1 - σ, which is nearly 0 where a run begins.
    straight = config.get("use_flow_sigmas") and config.get("prediction_type") != "flow_prediction"
    if straight and config.get("predict_x0") is False:  # and in the reference in fp32
        theirs = in_double(theirs)
    for steps in STEPS:
        if name == "PNDMScheduler" and not config.get("skip_prk_steps") and steps < 4:
            continue
        for start in starts(steps, ours.order):
            # Begun late, the reference's Runge-Kutta mixes up its levels and x grows a millionfold, rounding with it.
            lost = name == "PNDMScheduler" and not config.get("skip_prk_steps") and start > steps // 3
            # The reference's Heun divides by σ what it multiplied by σ: its own rounding is 1e-5 in fp32. And the
            # cosine schedule's σ_max, with which Heun multiplies its second slope, is 20291.
            heun = name == "HeunDiscreteScheduler"
            exact = heun or straight or config.get("predict_x0") is False
            dtype = torch.float64 if exact else torch.float32
            steep = heun and config.get("beta_schedule") in ("squaredcos_cap_v2", "exp")
            # From zero SNR, where σ is 4096, a predicted original has 4096 times the rounding of x. And DDIM with
            # eta 1 takes the root of what is 0 but for rounding: of 2⁻²⁴ that is 2.4e-4, on one processor or the other.
            dark = bool(config.get("rescale_betas_zero_snr"))
            rooted = dark and name == "DDIMScheduler" and options.get("eta") == 1
            tolerance = 5e-3 if lost else 5e-4 if rooted else 1e-4 if steep else 1e-5
            theirs.set_timesteps(steps)
            calls = theirs.timesteps.tolist()
            # Of equal timesteps the familiar API takes the second (ours not the second of the whole run).
            ways = {familiar, planned}
            if name not in ("PNDMScheduler", "HeunDiscreteScheduler") and calls.count(calls[start]) > 1:
                if calls[start] == calls[0]:
                    ways = {planned}
                elif start != calls.index(calls[start]) + 1:
                    ways = {familiar}
            same_as_reference(
                ours,
                theirs,
                steps,
                start,
                ways=ways,
                tolerance=tolerance,
                originals=1e-3 if dark else 1e-4,
                seed=steps,
                dtype=dtype,
                **options,
            )


def lists_agree(case) -> None:
    name, config, _ = case
    if config.get("use_beta_sigmas"):
        pytest.importorskip("scipy", reason="the reference needs scipy for beta sigmas")
    ours, theirs = both(name, **config)
    for attribute in ("betas", "alphas", "alphas_cumprod"):
        torch.testing.assert_close(getattr(ours, attribute), getattr(theirs, attribute), rtol=0, atol=0)
    for steps in (None, *STEPS, 999):
        if name == "PNDMScheduler" and not config.get("skip_prk_steps") and steps is not None and steps < 4:
            continue
        if steps is not None:
            if steps == 1 and "shift_terminal" in config:  # the reference divides 0 by 0
                continue
            if steps > ours.config.num_train_timesteps or (
                steps == 999 and "steps_offset" in config and name[0] != "E"
            ):
                continue
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
        if theirs.timesteps is None:
            assert ours.timesteps is None
            continue
        if steps is not None:
            assert ours.timesteps.dtype == theirs.timesteps.dtype
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=2e-4, check_dtype=False)
        assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-5)
        if hasattr(theirs, "sigmas") and (steps or float(theirs.sigmas[0]) > float(theirs.sigmas[-1])):
            torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=2e-6, atol=1e-7)
    assert len(ours) == len(theirs)


def same_lists(ours, theirs) -> None:
    known = theirs.timesteps.isfinite()  # the root of a rounding error below zero is none
    mine, his = (scheduler.timesteps.double()[known] for scheduler in (ours, theirs))
    torch.testing.assert_close(mine, his, rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=2e-6, atol=1e-7)
    assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
