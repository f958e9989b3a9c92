"""Inversions: the reference's numbers, the way back, and the pitfall of an off-by-one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import langevin
from langevin import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
)
from tests.schedulers.scheduler_checks import (
    FLOW_FORMS,
    STEPS,
    agrees_with_reference,
    both,
    distance,
    familiar,
    planned,
    reference,
)

DDIM, DPM = "DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHARED = [
    {},
    LATENT,
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 500, "beta_end": 0.04},
    {"trained_betas": torch.linspace(0.0005, 0.015, 1000).tolist()},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading", "steps_offset": 1, **LATENT},
    {"prediction_type": "v_prediction"},
]
DDIM_CONFIGS = [
    *({**config, "clip_sample": False} for config in SHARED),
    {},
    {"clip_sample_range": 0.4, "prediction_type": "v_prediction"},
    {"set_alpha_to_one": False, "clip_sample": False},
    {"set_alpha_to_one": False, "prediction_type": "sample"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    {"set_alpha_to_zero": False, "clip_sample": False},
]
DPM_CONFIGS = [
    *SHARED,
    {"prediction_type": "sample"},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "timestep_spacing": "trailing"},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"solver_order": 1, **LATENT},
    {"solver_order": 3, **LATENT},
    {"solver_order": 3, "lower_order_final": False, **LATENT},
    {"euler_at_final": True, "solver_type": "heun", **LATENT},
    *({"algorithm_type": "dpmsolver", "solver_order": order, **LATENT} for order in (1, 2, 3)),
    {"algorithm_type": "dpmsolver", "prediction_type": "v_prediction", "solver_type": "heun"},
    *({f"use_{kind}_sigmas": True, **LATENT} for kind in ("karras", "exponential", "beta")),
    {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    *({"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": kind} for kind in FLOW_FORMS),
    {"algorithm_type": "deis", "solver_type": "bh2"},
]


def label(config: dict) -> str:
    return ",".join(f"{k}={'…' if k == 'trained_betas' else v}" for k, v in config.items())


# -- numbers of the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", DDIM_CONFIGS, ids=label)
def test_whole_ddim_trajectories_equal_the_reference(config):
    agrees_with_reference(DDIM, config)


@pytest.mark.parametrize("config", DPM_CONFIGS, ids=label)
def test_whole_dpm_trajectories_equal_the_reference(config):
    agrees_with_reference(DPM, config, exactly=True, dtype=torch.float64)


@pytest.mark.parametrize("config", [{}, LATENT, {"solver_order": 3}], ids=label)
def test_whole_dpm_trajectories_equal_the_reference_in_fp32(config):
    agrees_with_reference(DPM, config, tolerance=1e-4)  # a single step multiplies x by 1/σ_min > 100, and its rounding


@pytest.mark.parametrize(
    ("name", "config"), [*((DDIM, config) for config in DDIM_CONFIGS), *((DPM, config) for config in DPM_CONFIGS)]
)
def test_lists_equal_the_reference(name, config):
    if name == DDIM and config.get("prediction_type") == "sample":
        config = {**config, "prediction_type": "epsilon"}
    ours, theirs = both(name, **config)
    for steps in (None, *STEPS, 300):
        if steps is not None:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
            assert ours.timesteps.dtype == theirs.timesteps.dtype
            if name == DPM:
                torch.testing.assert_close(ours.sigmas, theirs.sigmas[: len(ours.sigmas)], rtol=2e-6, atol=1e-7)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, check_dtype=False)
        assert ours.init_noise_sigma == theirs.init_noise_sigma
    assert len(ours) == len(theirs)


@pytest.mark.parametrize(
    ("name", "config", "steps"),
    [
        (DDIM, {"beta_schedule": "quartic"}, 5),
        (DDIM, {"timestep_spacing": "linspace"}, 5),
        (DDIM, {}, 1001),
        (DPM, {"timestep_spacing": "dense"}, 5),
        (DPM, {"algorithm_type": "euler"}, 5),
        (DPM, {"solver_type": "rk4"}, 5),
        (DPM, {"use_karras_sigmas": True, "use_beta_sigmas": True}, 5),
    ],
)
def test_what_the_reference_refuses_is_refused(name, config, steps):
    for library in (reference(), langevin):
        with pytest.raises((ValueError, NotImplementedError)) as caught:
            getattr(library, name)(**config).set_timesteps(steps)
    assert all(word in str(caught.value) for word in config)


@pytest.mark.parametrize(
    ("scheduler", "word"),
    [
        (DPMSolverMultistepInverseScheduler(algorithm_type="sde-dpmsolver++"), "sde-dpmsolver"),
        (DDIMInverseScheduler(prediction_type="sample"), "set_alpha_to_one"),
    ],
)
def test_what_comes_out_as_nan_in_the_reference_is_refused(scheduler, word):
    theirs = getattr(reference(), type(scheduler).__name__).from_config(dict(scheduler.config))
    assert not all(x.isfinite().all() for x in familiar(theirs, 5).path)
    with pytest.raises(ValueError, match=word):
        scheduler.plan(5)


@pytest.mark.parametrize(("name", "forward"), [(DDIM, "DDIMScheduler"), (DPM, "DPMSolverMultistepScheduler")])
def test_it_is_made_from_the_config_of_the_way_down_and_saved_and_loaded(name, forward, tmp_path):
    down = both(forward, **LATENT, timestep_spacing="trailing")
    made = [
        getattr(library, name).from_config(s.config) for library, s in zip((langevin, reference()), down, strict=True)
    ]
    for k, who in enumerate(("ours", "theirs")):
        made[k].save_pretrained(tmp_path / who)
    for folder in ("ours", "theirs"):
        loaded = [getattr(library, name).from_pretrained(tmp_path / folder) for library in (langevin, reference())]
        for ours, theirs in (made, loaded):
            settings = ours._settings_names()
            assert {k: ours.config[k] for k in settings} == {k: theirs.config[k] for k in settings}
            assert distance(familiar(ours, 7), familiar(theirs, 7)) < 1e-5
    assert (name in [c.__name__ for c in made[0].compatibles]) is True


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="mood"):
        DDIMInverseScheduler(mood="good")


# -- the way back ----------------------------------------------------------------------------------------------------


def wave(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """ε of a smooth network, which knows its level by t alone."""
    return torch.tanh(x * (0.5 + 0.3 * sigma)) + 0.2 * x.roll(1, -1).sin()


def walk(run, x: torch.Tensor, scheduler) -> torch.Tensor:
    for i, t in enumerate(run.timesteps):
        level = scheduler.noise_schedule.level(t)
        x = run.step(wave(x, level.sigma), i, x).prev_sample
    return x


IMAGE = torch.linspace(-0.9, 0.9, 16, dtype=torch.float64).reshape(1, 1, 4, 4)


def ddim_gap(steps: int, spacing: str, **options) -> float:
    up = DDIMInverseScheduler(clip_sample=False, timestep_spacing=spacing, **LATENT)
    down = DDIMScheduler(clip_sample=False, timestep_spacing=spacing, **LATENT)
    noise = walk(up.plan(steps, **options), IMAGE, up)
    assert (noise - IMAGE).abs().max() > 0.1
    return (walk(down.plan(steps, as_published=True), noise, down) - IMAGE).abs().max().item()


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_sampling_from_what_ddim_inversion_gave_brings_the_image_back(spacing):
    gaps = [ddim_gap(steps, spacing) for steps in (50, 100, 200, 500)]
    assert gaps[-1] < 2e-3, gaps
    for more, fewer in itertools.pairwise(gaps):
        assert 1.6 < more / fewer < 3.2, gaps  # the first order of DDIM


def test_where_n_does_not_divide_the_timesteps_only_the_published_way_brings_it_back():
    for steps in (70, 300):
        assert ddim_gap(steps, "trailing", as_published=True) < 0.8 * ddim_gap(steps, "trailing")


def dpm_gap(steps: int, order: int, **config) -> float:
    up = DPMSolverMultistepInverseScheduler(solver_order=order, lower_order_final=False, **LATENT, **config)
    down = DPMSolverMultistepScheduler(solver_order=order, lower_order_final=False, **LATENT)
    run = up.plan(steps, as_published=True)
    assert len(run) == steps
    noise = walk(run, IMAGE, up)
    return (walk(down.plan(sigmas=run.sigmas[::-1]), noise, down) - IMAGE).abs().max().item()


@pytest.mark.parametrize("config", [{}, {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}], ids=str)
def test_sampling_from_what_dpm_inversion_gave_brings_the_image_back(config):
    for order, least in ((1, 0.7), (2, 1.2)):
        gaps = [dpm_gap(steps, order, **config) for steps in (25, 50, 100)]
        assert gaps[-1] < gaps[0], gaps
        assert math.log2(gaps[0] / gaps[-1]) / 2 > least, gaps
    assert gaps[-1] < 0.02, gaps


# -- off by one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
def test_an_inversion_has_the_levels_of_the_run_down_in_reverse(spacing, steps):
    """And ends where that begins. Each of DDIM's steps tells the network the timestep that its way down is told."""
    up = DDIMInverseScheduler(**LATENT).with_spacing(spacing).plan(steps, as_published=True)
    down = DDIMScheduler(**LATENT).with_spacing(spacing).plan(steps, as_published=True)
    assert up.levels == down.targets[::-1]
    assert up.targets == down.levels[::-1]
    assert up.timesteps == down.timesteps[::-1]


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50])
def test_by_default_too_where_n_divides_the_timesteps(steps):
    for spacing in ("leading", "trailing"):
        up, down = (make(timestep_spacing=spacing).plan(steps) for make in (DDIMInverseScheduler, DDIMScheduler))
        assert up.levels == down.targets[::-1]
        assert up.targets == down.levels[::-1]
        for before, after in itertools.pairwise(zip(up.levels, up.targets, strict=True)):
            assert before[1] == after[0]  # each step begins where the last one ended


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
@pytest.mark.parametrize(
    "config",
    [{}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading"}, {"use_karras_sigmas": True}],
    ids=str,
)
def test_dpm_inversion_as_published_visits_n_plus_one_different_levels(config, steps):
    run = DPMSolverMultistepInverseScheduler(**config, **LATENT).plan(steps, as_published=True)
    table = DPMSolverMultistepScheduler(**LATENT).noise_schedule.sigmas
    assert len(run) == steps
    assert all(low < high for low, high in itertools.pairwise(run.sigmas))
    assert run.sigmas[0] == pytest.approx(table[0])
    if config.get("timestep_spacing") != "leading":
        assert run.sigmas[-1] == pytest.approx(table[-1])
    for t, sigma in zip(run.timesteps, run.sigmas, strict=False):  # the network is told the level that x is at
        assert table[max(0, math.floor(t) - 1)] <= sigma * 1.000001
        assert sigma <= table[min(999, math.ceil(t) + 1)] * 1.000001
    if "use_karras_sigmas" not in config:
        down = DPMSolverMultistepScheduler(**config, final_sigmas_type="sigma_min", **LATENT).plan(steps)
        assert run.sigmas == down.sigmas[::-1]


def test_a_network_that_knows_the_noise_is_inverted_exactly_at_any_number_of_steps():
    """Where ε is the same at every level, both ways are exact, so any level missed or taken twice shows."""
    noise = torch.tensor([[[[0.3, -1.2, 0.8, 2.0]]]], dtype=torch.float64)
    point = torch.tensor([[[[0.5, 0.1, -0.7, 0.0]]]], dtype=torch.float64)
    for steps, as_published in itertools.product((1, 2, 3, 7, 50), (False, True)):
        if 1000 % steps and not as_published:
            continue
        for spacing in ("leading", "trailing"):
            run = DDIMInverseScheduler(clip_sample=False, timestep_spacing=spacing).plan(
                steps, as_published=as_published
            )
            x = point
            for i in range(steps):
                x = run.step(noise, i, x).prev_sample
            alpha, sigma = run.targets[-1]
            torch.testing.assert_close(x, alpha * point + sigma * noise, rtol=1e-9, atol=1e-9)


def test_own_timesteps_and_sigmas_are_ascending_and_agree():
    table = DDIMScheduler().noise_schedule.sigmas
    chosen = [20, 300, 555, 990]
    for scheduler, sigmas in (
        (DDIMInverseScheduler(), [0.0, *table[chosen]]),
        (DPMSolverMultistepInverseScheduler(), [*table[chosen], table[-1]]),
    ):
        ours = planned(scheduler, set_with={"timesteps": chosen})
        assert distance(planned(scheduler, set_with={"sigmas": [float(s) for s in sigmas]}), ours) < 1e-5
        assert distance(familiar(scheduler, set_with={"timesteps": chosen}), ours) < 1e-6
        for refused in ({"timesteps": chosen[::-1]}, {"sigmas": [3.0, 1.0]}):
            with pytest.raises(ValueError, match="ascending"):
                scheduler.plan(**refused)


def test_nothing_is_nan_with_any_spacing_and_a_step_never_looks_at_the_numbers():
    for make in (DDIMInverseScheduler, DPMSolverMultistepInverseScheduler):
        for spacing in ("leading", "trailing", "linspace", "karras", "exponential", "beta"):
            for steps in (1, 2, 7):
                run = make().with_spacing(spacing).plan(steps)
                x = torch.linspace(-3, 3, 4).reshape(1, 1, 2, 2)
                for i in range(len(run)):
                    x = run.step(torch.tanh(x), i, x).prev_sample
                assert len(run) == steps
                assert x.isfinite().all()
        run, x = make().plan(5), torch.empty(1, 3, 4, 4, device="meta", dtype=torch.float16)
        for i in range(len(run)):
            out = run.step(x, i, x)
            assert out.prev_sample.dtype == out.pred_original_sample.dtype == torch.float16
