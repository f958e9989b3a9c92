"""Numbers of the reference implementation, to 1e-5 over whole trajectories."""

from __future__ import annotations

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
from tests.schedulers.scheduler_checks import both, distance, familiar, planned, reference

PIXEL = [
    {"clip_sample": False},
    {"clip_sample_range": 0.4},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"thresholding": True, "prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"prediction_type": "sample", "clip_sample": False},
    {"prediction_type": "v_prediction", "clip_sample": False},
    ZERO_SNR,
    {**ZERO_SNR, "clip_sample": False},
    {**ZERO_SNR, **LATENT, "timestep_spacing": "linspace", "clip_sample": False},
    {"rescale_betas_zero_snr": True, "clip_sample": False},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},  # ε at pure noise, but clipped
]
DDPM = [
    *({"variance_type": kind} for kind in ("fixed_small_log", "fixed_large")),
    {"beta_schedule": "sigmoid"},
    {"beta_schedule": "laplace", "timestep_spacing": "trailing"},
]
PNDM = [
    {"skip_prk_steps": True},
    {"skip_prk_steps": True, "set_alpha_to_one": True, "steps_offset": 1, **LATENT},
    {"skip_prk_steps": True, "timestep_spacing": "trailing"},
    {"skip_prk_steps": True, "timestep_spacing": "linspace", "prediction_type": "v_prediction"},
    {"set_alpha_to_one": True},
]
EULER = [
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "leading", "steps_offset": 1, **LATENT},
    {"prediction_type": "sample"},
    ZERO_SNR,
    {**ZERO_SNR, **LATENT},
    {"final_sigmas_type": "sigma_min", **LATENT},
    {"interpolation_type": "log_linear"},
    {"interpolation_type": "log_linear", "use_karras_sigmas": True},
    *({f"use_{kind}_sigmas": True, **LATENT} for kind in ("karras", "exponential", "beta")),
    *({f"use_{kind}_sigmas": True, "timestep_spacing": "leading"} for kind in ("karras", "exponential", "beta")),
    {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 20.0},
    {"use_beta_sigmas": True, "sigma_min": 0.0, "sigma_max": 14.0},
    {"timestep_type": "continuous", "prediction_type": "v_prediction"},
    {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True},
    {"timestep_type": "continuous", "prediction_type": "v_prediction", "interpolation_type": "log_linear"},
]

CASES = [
    *(("DDIMScheduler", config, {}) for config in SHARED + PIXEL + [{"set_alpha_to_one": False}]),
    *(
        ("DDIMScheduler", config, options)
        for config in (LATENT, *PIXEL[:3], PIXEL[6], ZERO_SNR)
        for options in (
            {"eta": 1.0},
            {"eta": 0.3, "use_clipped_model_output": True},
            {"use_clipped_model_output": True},
        )
    ),
    *(("DDPMScheduler", config, {}) for config in SHARED + PIXEL + DDPM),
    *(("PNDMScheduler", config, {}) for config in SHARED + PNDM),
    *(("EulerDiscreteScheduler", config, {}) for config in SHARED + EULER),
    *(("EulerAncestralDiscreteScheduler", config, {}) for config in [*SHARED, *SIGMA, ZERO_SNR]),
    *(("HeunDiscreteScheduler", config, {}) for config in SHARED + SIGMA + SPACED),
    *(
        ("HeunDiscreteScheduler", config, {})
        for config in (
            {"clip_sample": True},
            {"clip_sample": True, "prediction_type": "sample"},
            {"beta_schedule": "exp"},
        )
    ),
    ("HeunDiscreteScheduler", {"beta_schedule": "exp"}, {}),
    *(("LMSDiscreteScheduler", config, {}) for config in SHARED[::2] + SIGMA[:1] + SPACED[:3]),
    *(("LMSDiscreteScheduler", config, {"order": order}) for config in (LATENT, {}) for order in (1, 2, 3)),
    *(
        ("EulerDiscreteScheduler", config, options)
        for config in (LATENT, {"prediction_type": "v_prediction"}, {"prediction_type": "sample"})
        for options in ({"s_churn": 4.0}, {"s_churn": 100.0, "s_tmin": 0.5, "s_tmax": 10.0, "s_noise": 1.01})
    ),
]


@pytest.mark.parametrize("case", CASES, ids=label)
def test_whole_trajectories_equal_the_reference(case):
    trajectories_agree(case)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_lists_equal_the_reference(case):
    lists_agree(case)


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
@pytest.mark.parametrize("clip", [True, False])
def test_learned_variances_equal_the_reference(kind, clip):
    ours, theirs = both("DDPMScheduler", variance_type=kind, clip_sample=clip)
    network_with_variance = {"channels": 8}
    for steps in (2, 7, 20):
        theirs_path = familiar(theirs, steps, **network_with_variance)
        if kind == "learned" and not all(p.isfinite().all() for p in theirs_path.path):
            continue
        assert distance(planned(ours, steps, **network_with_variance), theirs_path) < 1e-5
        assert distance(familiar(ours, steps, **network_with_variance), theirs_path) < 1e-5


@pytest.mark.parametrize(
    ("name", "set_with"),
    [
        ("DDPMScheduler", {"timesteps": [900, 512, 511, 100, 3]}),
        ("EulerDiscreteScheduler", {"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]}),
        ("EulerDiscreteScheduler", {"timesteps": [801.5, 400.25, 10.0]}),
        ("EulerDiscreteScheduler", {"sigmas": [14.6, 6.5, 3.8, 1.2, 0.4, 0.15, 0.0]}),
        ("EulerDiscreteScheduler", {"sigmas": [2.0, 0.5]}),
    ],
)
def test_chosen_timesteps_and_sigmas_equal_the_reference(name, set_with):
    ours, theirs = both(name, **LATENT)
    for start in (0, 1):
        want = familiar(theirs, start=start, set_with=set_with)
        assert distance(familiar(ours, start=start, set_with=set_with), want) < 1e-5
        assert distance(planned(ours, start=start, set_with=set_with), want) < 1e-5
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=2e-4)


def test_ddpm_steps_before_set_timesteps_as_the_reference_does():
    ours, theirs = both("DDPMScheduler", clip_sample=False)
    x, output = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for t in (999, 500, 1, 0):
        draws = [torch.Generator().manual_seed(5) for _ in range(2)]
        mine = ours.step(output, t, x, generator=draws[0]).prev_sample
        torch.testing.assert_close(
            mine, theirs.step(output, t, x, generator=draws[1]).prev_sample, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("config", [{}, LATENT])
def test_training_noise_and_velocity_equal_the_reference(name, config):
    ours, theirs = both(name, **config)
    x0, noise = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    t = torch.tensor([0, 17, 500, 999])
    torch.testing.assert_close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-5, atol=1e-6)
    if hasattr(theirs, "get_velocity"):
        torch.testing.assert_close(
            ours.get_velocity(x0, noise, t), theirs.get_velocity(x0, noise, t), rtol=1e-5, atol=1e-6
        )


def test_euler_noise_and_velocity_equal_the_reference():
    ours, theirs = both("EulerDiscreteScheduler", **LATENT)
    x0, noise = torch.randn(3, 3, 5, 5), torch.randn(3, 3, 5, 5)
    for steps in (None, 7):
        if steps:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
        t = theirs.timesteps[[0, 3, 6]]
        torch.testing.assert_close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            ours.get_velocity(x0, noise, t), theirs.get_velocity(x0, noise, t), rtol=1e-5, atol=1e-5
        )
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
        scheduler.set_begin_index(2)
    torch.testing.assert_close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-5, atol=1e-5)
    for scheduler in (ours, theirs):
        scheduler.scale_model_input(x0, scheduler.timesteps[2])
        scheduler.step(x0, scheduler.timesteps[2], x0)
        assert (scheduler.begin_index, scheduler.step_index) == (2, 3)
    torch.testing.assert_close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-5, atol=1e-5)


def test_half_precision_samples_are_as_good_as_the_reference_or_better():
    for name in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"):
        ours, theirs = both(name, **LATENT)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(10)
        t = theirs.timesteps[3]
        x, output = torch.randn(1, 4, 6, 6).half(), torch.randn(1, 4, 6, 6).half()
        for scheduler in (ours, theirs):
            scheduler.scale_model_input(x, t)
        draws = [{"generator": torch.Generator().manual_seed(1)} if name == "DDPMScheduler" else {} for _ in range(2)]
        mine = ours.step(output, t, x, **draws[0]).prev_sample
        his = theirs.step(output, t, x, **draws[1]).prev_sample
        assert mine.dtype == torch.float16
        torch.testing.assert_close(mine.float(), his.float(), rtol=5e-3, atol=5e-3)


REFUSED = [
    ("DDIMScheduler", {"beta_schedule": "quartic"}, {}),
    ("DDPMScheduler", {"beta_schedule": "quartic"}, {}),
    ("PNDMScheduler", {"beta_schedule": "quartic"}, {}),
    ("EulerDiscreteScheduler", {"beta_schedule": "quartic"}, {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, {}),
    *((name, {"timestep_spacing": "dense"}, {"num_inference_steps": 5}) for name in ("DDIMScheduler", "DDPMScheduler")),
    *(
        (name, {"timestep_spacing": "dense"}, {"num_inference_steps": 5})
        for name in ("PNDMScheduler", "EulerDiscreteScheduler")
    ),
    *((name, {}, {"num_inference_steps": 1001}) for name in ("DDIMScheduler", "DDPMScheduler")),
    ("PNDMScheduler", {}, {"num_inference_steps": 3}),
    ("DDPMScheduler", {}, {"num_inference_steps": 3, "timesteps": [3, 2]}),
    ("DDPMScheduler", {}, {"timesteps": [3, 20]}),
    ("DDPMScheduler", {}, {"timesteps": [1000, 20]}),
    ("EulerDiscreteScheduler", {}, {}),
    ("EulerDiscreteScheduler", {}, {"timesteps": [3.0], "sigmas": [1.0, 0.0]}),
    ("EulerDiscreteScheduler", {}, {"num_inference_steps": 1, "sigmas": [1.0, 0.0]}),
    *(
        ("EulerDiscreteScheduler", {f"use_{k}_sigmas": True}, {"timesteps": [3.0]})
        for k in ("karras", "exponential", "beta")
    ),
    (
        "EulerDiscreteScheduler",
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        {"timesteps": [3.0]},
    ),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "one"}, {"num_inference_steps": 3}),
    ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, {"num_inference_steps": 3}),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: "-".join(map(str, case)))
def test_what_the_reference_refuses_is_refused(case):
    import langevin

    name, config, set_with = case
    for library in (reference(), langevin):
        with pytest.raises((ValueError, NotImplementedError)) as caught:
            getattr(library, name)(**config).set_timesteps(**set_with)
    offending = [v for v in (*config.values(), *set_with.values()) if isinstance(v, (str, int)) and v is not True]
    assert not offending or any(str(v) in str(caught.value) for v in offending), str(caught.value)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_an_unknown_prediction_type_is_refused(name):
    """Ours when it is made, the reference when it steps."""
    with pytest.raises(ValueError, match=r"prediction_type of .* is 'wish'"):
        getattr(langevin, name)(prediction_type="wish")
    x, scheduler = torch.zeros(1, 3, 2, 2), getattr(reference(), name)(prediction_type="wish")
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="wish"):
        scheduler.step(x, scheduler.timesteps[0], x)


def test_steps_that_the_reference_refuses_are_refused():
    x = torch.zeros(1, 3, 2, 2)
    for scheduler in both("DDIMScheduler"):
        with pytest.raises(ValueError, match="set_timesteps"):
            scheduler.step(x, 5, x)
        scheduler.set_timesteps(5)
        with pytest.raises(ValueError, match="variance_noise"):
            scheduler.step(x, 800, x, eta=1.0, variance_noise=x, generator=torch.Generator())
    for scheduler in both("EulerDiscreteScheduler"):
        scheduler.set_timesteps(5)
        for t in (0, torch.tensor(3)):
            with pytest.raises(ValueError):
                scheduler.step(x, t, x)
            with pytest.raises((ValueError, TypeError)):
                scheduler.get_velocity(x, x, t)


def test_given_variance_noise_is_used():
    ours, theirs = both("DDIMScheduler", clip_sample=False)
    x, output, z = (torch.randn(1, 3, 4, 4) for _ in range(3))
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(5)
    mine, his = (s.step(output, 600, x, eta=0.7, variance_noise=z).prev_sample for s in (ours, theirs))
    torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-6)
