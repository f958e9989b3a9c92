"""DEIS: the reference's numbers, and what it must do without a reference."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import langevin
from langevin import DEISMultistepScheduler
from langevin.schedulers.logsnr.deis import adams_moments, adams_weights
from tests.schedulers.meaning_checks import ode_error, sample
from tests.schedulers.scheduler_checks import (
    FLOW_FORMS,
    STEPS,
    agrees_with_reference,
    both,
    distance,
    familiar,
    in_double,
    planned,
    reference,
)

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CONFIGS = [
    {},
    LATENT,
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 500, "beta_end": 0.04},
    {"trained_betas": torch.linspace(0.0005, 0.015, 1000).tolist()},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "leading", "steps_offset": 1, **LATENT},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"prediction_type": "v_prediction", "thresholding": True},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"solver_order": 1},
    {"solver_order": 3, **LATENT},
    {"solver_order": 3, "lower_order_final": False},
    {"solver_order": 3, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    *({f"use_{kind}_sigmas": True, **LATENT} for kind in ("karras", "exponential", "beta")),
    {"use_karras_sigmas": True, "solver_order": 3, "timestep_spacing": "leading"},
    {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    *({"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": kind} for kind in FLOW_FORMS),
    {"use_flow_sigmas": True, "flow_shift": 0.7, "prediction_type": "flow_prediction", "solver_order": 3},
    {"algorithm_type": "dpmsolver++", "solver_type": "bh2"},
]


def label(config: dict) -> str:
    return ",".join(f"{k}={'…' if k == 'trained_betas' else v}" for k, v in config.items())


# -- numbers of the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_whole_trajectories_equal_the_reference(config):
    """In fp64: at σ_max an ε-solver multiplies x by 1/α > 100, and the rounding of fp32 with it."""
    agrees_with_reference("DEISMultistepScheduler", config, exactly=True, dtype=torch.float64)


@pytest.mark.parametrize(("config", "tolerance"), [({}, 1e-5), (LATENT, 1e-5), ({"solver_order": 3}, 1e-4)], ids=str)
def test_in_fp32_the_references_rounding_is_all_that_differs(config, tolerance):
    agrees_with_reference("DEISMultistepScheduler", config, tolerance)


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_lists_equal_the_reference(config):
    ours, theirs = both("DEISMultistepScheduler", **config)
    for steps in (None, *STEPS, 300):
        if steps is not None:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
            assert ours.timesteps.dtype == theirs.timesteps.dtype
            torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=2e-6, atol=1e-7)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, check_dtype=False)
        assert ours.init_noise_sigma == theirs.init_noise_sigma
    for attribute in ("betas", "alphas", "alphas_cumprod"):
        torch.testing.assert_close(getattr(ours, attribute), getattr(theirs, attribute), rtol=0, atol=0)


def test_the_shift_may_be_chosen_for_each_run():
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    for mu in (0.5, 1.15):
        ours, theirs = both("DEISMultistepScheduler", **config)
        want = familiar(in_double(theirs), set_with={"num_inference_steps": 8, "mu": mu}, dtype=torch.float64)
        mine = familiar(ours, set_with={"num_inference_steps": 8, "mu": mu}, dtype=torch.float64)
        assert distance(mine, want) < 1e-5
        assert distance(planned(ours, 8, mu=mu, dtype=torch.float64), want) < 1e-5
        assert ours.config.flow_shift == 1.0
    ours.set_timesteps(8, None, 0.5)  # in the reference's order
    assert ours.sigmas.tolist() == pytest.approx(ours.plan(8, mu=0.5).sigmas)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"algorithm_type": "sde-dpmsolver++"}, {}),
        ({"solver_type": "rk4"}, {}),
        ({"beta_schedule": "quartic"}, {}),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, {}),
        ({"timestep_spacing": "dense"}, {}),
        ({}, {"mu": 0.5}),
    ],
    ids=str,
)
def test_what_the_reference_refuses_is_refused(config, options):
    for library in (reference(), langevin):
        with pytest.raises((ValueError, NotImplementedError, AssertionError)) as caught:
            library.DEISMultistepScheduler(**config).set_timesteps(5, **options)
    for word in [*config, *options]:
        assert word in str(caught.value)


def test_noise_is_added_as_the_reference_adds_it():
    ours, theirs = both("DEISMultistepScheduler", **LATENT)
    x0, noise = torch.randn(3, 3, 5, 5), torch.randn(3, 3, 5, 5)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    for begin in (None, 2):
        if begin is not None:
            ours.set_begin_index(begin)
            theirs.set_begin_index(begin)
        t = theirs.timesteps[[0, 3, 6]]
        torch.testing.assert_close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-5, atol=1e-6)


# -- without a reference ---------------------------------------------------------------------------------------------


def test_the_weights_integrate_polynomials_exactly():
    """∫ e^(z(1-s/h))·p(s) ds against a sum of many small pieces."""
    h, places = 0.7, [0.0, -0.4, -1.1, -1.5]
    for z, power in itertools.product((0.7, -1.4, -9.0), range(4)):
        weights = adams_weights(places, adams_moments(4, h, z))
        s = torch.linspace(0, h, 20001, dtype=torch.float64)
        exact = torch.trapezoid((z * (1 - s / h)).exp() * s**power, s).item()
        assert sum(w * at**power for w, at in zip(weights, places, strict=True)) == pytest.approx(exact, abs=1e-7)


def test_coefficients_stay_exact_in_the_smallest_steps():
    """Over a thousand steps the weights still add up to what a constant ε integrates to."""
    run = DEISMultistepScheduler(solver_order=3, lower_order_final=False).plan(999)
    for i, target in enumerate(run.targets[:-1]):
        of_x, weights, _ = run.recipes[i][-1]
        want = target.sigma - target.alpha / run.levels[i].alpha * run.levels[i].sigma
        assert sum(weights) == pytest.approx(want, rel=1e-7)
        assert of_x == pytest.approx(target.alpha / run.levels[i].alpha)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras", "exponential", "beta"])
def test_a_perfect_prediction_of_one_point_is_reached(order, spacing):
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    scheduler = DEISMultistepScheduler(solver_order=order).with_spacing(spacing)
    for steps in (1, 2, 3, 7, 20):
        for start in {0, steps // 2, steps - 1}:
            run = scheduler.plan(steps, as_published=True)
            x = run.add_noise(point, torch.randn_like(point), start)
            end = sample(run, x, lambda *_: point, start=start)
            torch.testing.assert_close(end, point, rtol=0, atol=1e-8)


def test_without_as_published_the_noise_of_the_least_noisy_level_is_left():
    point, noise = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    for spacing in ("linspace", "karras"):
        run = DEISMultistepScheduler().with_spacing(spacing).plan(10)
        end = sample(run, run.add_noise(point, noise, 0), lambda *_: point)
        torch.testing.assert_close(end, noise * run.targets[-1].sigma, rtol=1e-4, atol=1e-5)
        assert 0.005 < run.targets[-1].sigma < 0.02


@pytest.mark.parametrize("order", [1, 2, 3])
def test_error_falls_as_fast_as_the_order_promises(order):
    """Down to σ_min, so that the last step into σ = 0, of first order, does not hide the others."""
    scheduler = DEISMultistepScheduler(solver_order=order, lower_order_final=False)

    def error(steps: int) -> float:
        h = 5.0 / steps  # of λ = -log σ, after two steps of h² in which the history is gathered
        sigmas = [16 * math.exp(-at) for at in (0.0, h**2, *(2 * h**2 + k * h for k in range(steps + 1)))]
        deviation, x = 0.7, torch.tensor([[[[1.5]]]], dtype=torch.float64)
        run = scheduler.plan(sigmas=sigmas)
        spreads = [math.hypot(level.sigma, level.alpha * deviation) for level in (run.levels[0], run.targets[-1])]

        def believe(run, i, x):
            alpha, sigma = run.levels[i]
            return alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * x

        return abs(sample(run, x, believe).item() - spreads[1] / spreads[0] * x.item())

    errors = [error(steps) for steps in (160, 320, 640)]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(measured) > order - 0.35, (errors, measured)


def test_second_order_is_better_than_first_on_few_steps():
    solvers = [DEISMultistepScheduler(solver_order=order, use_karras_sigmas=True) for order in (1, 2, 3)]
    errors = [ode_error(solver, 12, as_published=True) for solver in solvers]
    assert errors[0] > 2 * errors[1], errors
    assert errors[1] > errors[2], errors


def test_more_steps_than_the_network_has_timesteps_near_the_end_are_finite():
    """Two equal timesteps in a row say nothing about a slope; the reference divides 0 by 0."""
    run = DEISMultistepScheduler(solver_order=3).plan(timesteps=[900, 500, 500, 500, 100, 3])
    x = torch.randn(1, 3, 4, 4)
    for i in range(len(run)):
        x = run.step(torch.tanh(x), i, x).prev_sample
    assert x.isfinite().all()


def test_a_step_never_looks_at_the_numbers_and_draws_no_noise():
    def never(like):
        raise AssertionError("noise drawn")

    run = DEISMultistepScheduler(solver_order=3, thresholding=True).plan(6)
    x = torch.empty(1, 3, 4, 4, device="meta")
    for i in range(len(run)):
        x = run.step(x, i, x, never).prev_sample
    assert x.shape == (1, 3, 4, 4)
