"""DPM-Solver, singlestep: the reference's numbers, and what it must do without a reference."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import langevin
from langevin import DPMSolverSinglestepScheduler
from langevin.schedulers.logsnr.dpm_singlestep import orders_of
from tests.schedulers.meaning_checks import gaussian_belief, sample
from tests.schedulers.scheduler_checks import (
    FLOW_FORMS,
    STEPS,
    both,
    distance,
    familiar,
    in_double,
    planned,
    reference,
    same_as_reference,
    starts,
    unambiguous,
)

NAME = "DPMSolverSinglestepScheduler"
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NOISY = {"final_sigmas_type": "sigma_min", **LATENT}
EPSILON = {"algorithm_type": "dpmsolver", **NOISY}
SDE = {"algorithm_type": "sde-dpmsolver++", **LATENT}
CONFIGS = [
    {},
    LATENT,
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    {"num_train_timesteps": 500, "beta_end": 0.04},
    {"trained_betas": torch.linspace(0.0005, 0.015, 1000).tolist()},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"solver_order": 1, **NOISY},
    {"solver_order": 2, **NOISY},
    {"solver_order": 2, "lower_order_final": True, **NOISY},
    *({"solver_order": 3, "solver_type": kind, **LATENT} for kind in ("midpoint", "heun")),
    *({"solver_order": 3, "solver_type": kind, **NOISY} for kind in ("midpoint", "heun")),
    {"solver_order": 3, "lower_order_final": True, **NOISY},
    {"solver_type": "heun", "prediction_type": "v_prediction"},
    *({f"use_{kind}_sigmas": True, **LATENT} for kind in ("karras", "exponential", "beta")),
    *({f"use_{kind}_sigmas": True, "solver_order": 3, **NOISY} for kind in ("karras", "exponential", "beta")),
    *({"solver_order": order, **EPSILON} for order in (1, 2, 3)),
    *({"solver_order": order, "solver_type": "heun", **EPSILON} for order in (2, 3)),
    {"prediction_type": "v_prediction", **EPSILON},
    {"prediction_type": "sample", **EPSILON},
    *({"solver_order": order, **SDE} for order in (1, 2, 3)),
    *({"solver_order": order, "solver_type": "heun", **SDE} for order in (2, 3)),
    {"solver_order": 3, "solver_type": "heun", **SDE, "final_sigmas_type": "sigma_min"},
    {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    *({"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": kind} for kind in FLOW_FORMS),
    {
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "solver_order": 3,
        "final_sigmas_type": "sigma_min",
    },
    {"solver_type": "logrho"},
]


def label(config: dict) -> str:
    return ",".join(f"{k}={'…' if k == 'trained_betas' else v}" for k, v in config.items())


# -- numbers of the reference ----------------------------------------------------------------------------------------


def compare(config: dict, widen=lambda theirs: theirs, tolerance: float = 1e-5, **options) -> None:
    """At every number of steps with new schedulers: the reference's turns lower_order_final on for good where a number
    of steps needs it."""
    for steps in STEPS:
        for start in starts(steps):
            ours, theirs = both(NAME, **config)
            widen(theirs).set_timesteps(steps)
            ways = unambiguous(theirs.timesteps.tolist(), start)
            theirs.register_to_config(lower_order_final=ours.config.lower_order_final)
            same_as_reference(ours, theirs, steps, start, ways=ways, tolerance=tolerance, seed=steps, **options)


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_whole_trajectories_equal_the_reference(config):
    """In fp64: at σ_max an ε-solver multiplies x by 1/α > 100, and the rounding of fp32 with it."""
    compare(config, in_double, dtype=torch.float64)


@pytest.mark.parametrize("config", [{}, LATENT, SDE, {"solver_order": 3, **LATENT}, CONFIGS[7]], ids=label)
def test_whole_trajectories_equal_the_reference_in_fp32(config):
    compare(config)


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_lists_equal_the_reference(config):
    ours, theirs = both(NAME, **config)
    for steps in (None, *STEPS, 300):
        if steps is not None:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
            assert ours.timesteps.dtype == theirs.timesteps.dtype
            torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=2e-6, atol=1e-7)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, check_dtype=False)
        assert ours.init_noise_sigma == theirs.init_noise_sigma


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("kind", ["zero", "sigma_min"])
def test_the_orders_of_the_calls_equal_the_reference(order, final, kind):
    for steps in range(1, 40):
        theirs = both(NAME, solver_order=order, lower_order_final=final, final_sigmas_type=kind)[1]
        theirs.set_timesteps(steps)
        assert orders_of(steps, order, final, kind == "zero") == theirs.order_list


def test_the_familiar_methods_leave_the_config_alone():
    ours = DPMSolverSinglestepScheduler(final_sigmas_type="sigma_min")
    before = dict(ours.config)
    ours.set_timesteps(7)
    assert dict(ours.config) == before


@pytest.mark.parametrize("order", [2, 3])
def test_chosen_timesteps_equal_the_reference(order):
    chosen = {"timesteps": [980, 700, 500, 333, 111, 7]}
    for start in (0, 1, 2, 3):
        ours, theirs = both(NAME, solver_order=order, **LATENT)
        same_as_reference(ours, theirs, None, start, set_with=chosen)


def test_learned_variances_are_left_aside():
    for steps in (1, 5, 8):
        ours, theirs = both(NAME, variance_type="learned_range")
        want = familiar_with_three_channels(theirs, steps)
        got = familiar_with_three_channels(ours, steps)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def familiar_with_three_channels(scheduler, steps: int) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = torch.linspace(-2, 2, 48).reshape(1, 3, 4, 4)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.cat([torch.tanh(x), 100 * x], 1), t, x).prev_sample
    return x


def test_the_shift_may_be_chosen_for_each_run():
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    for mu in (0.5, 1.15):
        ours, theirs = both(NAME, **config)
        want = familiar(theirs, set_with={"num_inference_steps": 8, "mu": mu})
        assert distance(familiar(ours, set_with={"num_inference_steps": 8, "mu": mu}), want) < 1e-5
        assert distance(planned(ours, 8, mu=mu), want) < 1e-5
    ours.set_timesteps(8, None, 0.5)  # in the reference's order
    assert ours.sigmas.tolist() == pytest.approx(ours.plan(8, mu=0.5).sigmas)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"algorithm_type": "sde-dpmsolver"}, {}),
        ({"solver_type": "rk4"}, {}),
        ({"solver_order": 4}, {}),
        ({"algorithm_type": "dpmsolver"}, {}),
        ({"final_sigmas_type": "one"}, {}),
        ({"beta_schedule": "quartic"}, {}),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, {}),
        ({"use_karras_sigmas": True}, {"num_inference_steps": None, "timesteps": [5, 3]}),
        ({}, {"timesteps": [5, 3]}),
        ({}, {"num_inference_steps": None}),
        ({}, {"mu": 0.5}),
    ],
    ids=str,
)
def test_what_the_reference_refuses_is_refused(config, options):
    for library in (reference(), langevin):
        with pytest.raises((ValueError, NotImplementedError, AssertionError)) as caught:
            getattr(library, NAME)(**config).set_timesteps(**{"num_inference_steps": 5, **options})
    if config and not options:
        assert all(word in str(caught.value) for word in config)


def test_flow_predictions_do_not_go_with_the_epsilon_solver():
    ours, theirs = both(NAME, prediction_type="flow_prediction", use_flow_sigmas=True, **EPSILON)
    theirs.set_timesteps(4)
    with pytest.raises(ValueError, match="flow_prediction"):
        theirs.step(torch.zeros(1, 1, 1, 1), theirs.timesteps[0], torch.zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match="flow_prediction"):
        ours.set_timesteps(4)


# -- without a reference ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras", "exponential", "beta"])
def test_a_perfect_prediction_of_one_point_is_reached(order, kind, spacing):
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        scheduler = DPMSolverSinglestepScheduler(solver_order=order, solver_type=kind, algorithm_type=algorithm)
        for steps in (1, 2, 3, 7, 20):
            for start in {0, steps // 2, steps - 1}:
                run = scheduler.with_spacing(spacing).plan(steps)
                x = run.add_noise(point, torch.randn_like(point), start)
                end = sample(run, x, lambda *_: point, start=start)
                torch.testing.assert_close(end, point, rtol=0, atol=1e-8)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize(("kind", "order"), [("midpoint", 1), ("midpoint", 2), ("heun", 2), ("heun", 3)])
def test_error_falls_as_fast_as_the_order_promises(algorithm, kind, order):
    """Over steps of equal length in λ, where the midpoints are midpoints."""
    scheduler = DPMSolverSinglestepScheduler(
        algorithm_type=algorithm, solver_type=kind, solver_order=order, final_sigmas_type="sigma_min"
    )
    deviation, x = 0.7, torch.tensor([[[[1.5]]]], dtype=torch.float64)

    def error(steps: int) -> float:
        run = scheduler.plan(sigmas=[12 * math.exp(-5.0 * k / steps) for k in range(steps + 1)])
        spreads = [math.hypot(level.sigma, level.alpha * deviation) for level in (run.levels[0], run.targets[-1])]
        return abs(sample(run, x, gaussian_belief(0.0, deviation)).item() - spreads[1] / spreads[0] * x.item())

    errors = [error(steps) for steps in (60, 120, 240)]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(measured) > order - 0.3, (errors, measured)


def spread(steps: int, as_published: bool, **config) -> float:
    torch.manual_seed(0)
    scheduler = DPMSolverSinglestepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True, **config)
    run = scheduler.plan(steps, as_published=as_published)
    x = torch.randn(1, 1, 100, 200, dtype=torch.float64)
    end = sample(run, x, gaussian_belief(0.4, 0.7))
    assert as_published is False or end.mean().item() == pytest.approx(0.4, abs=0.02)
    return end.std().item()


@pytest.mark.parametrize(
    ("kind", "order", "steps"),
    [("midpoint", 1, 250), ("midpoint", 2, 100), ("heun", 2, 60), ("midpoint", 3, 60), ("heun", 3, 60)],
)
def test_the_stochastic_solver_gives_a_gaussians_mean_and_spread(kind, order, steps):
    assert spread(steps, True, solver_type=kind, solver_order=order) == pytest.approx(0.7, rel=0.03)


def test_the_references_stochastic_solver_does_not():
    """Why ``as_published`` is there: noise that is drawn anew within a group costs contrast."""
    assert spread(60, False) < spread(60, False, solver_order=1) < 0.65
    assert spread(60, False, solver_order=3, solver_type="heun") > 4


def test_as_published_gives_the_stochastic_third_order_step_its_sign():
    """Of a prediction that curves, the reference's step is off by far more than the curve."""

    def end(as_published: bool) -> float:
        scheduler = DPMSolverSinglestepScheduler(solver_order=3, solver_type="heun", **SDE)
        run = scheduler.plan(sigmas=[2.0, 1.5, 1.2, 1.0], as_published=as_published)
        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        for i in range(3):
            alpha, sigma = run.levels[i]
            x0 = math.log(sigma / alpha) ** 2
            x = run.step((x - alpha * x0) / sigma, i, x, torch.zeros_like).prev_sample
        return x.item()

    h = math.log(2.0)
    s = torch.linspace(0, h, 20001, dtype=torch.float64)  # λ, counted from the group's beginning
    alpha, sigma = (1 / math.sqrt(2), 1 / math.sqrt(2))
    integral = 2 * alpha * torch.trapezoid((-2 * (h - s)).exp() * (s - math.log(2.0)) ** 2, s).item()
    exact = sigma / (2 / math.sqrt(5)) * math.exp(-h) + integral
    assert end(True) == pytest.approx(exact, abs=1e-6)
    assert abs(end(False) - exact) > 0.1


def test_what_other_solvers_are_called_is_understood():
    """The reference says so too, but checks ``final_sigmas_type`` before it translates."""
    ours = DPMSolverSinglestepScheduler(algorithm_type="deis", solver_type="bh2")
    assert (ours.config.algorithm_type, ours.config.solver_type) == ("dpmsolver++", "midpoint")


def test_a_step_never_looks_at_the_numbers_and_draws_noise_only_if_stochastic():
    for algorithm, calls in (("dpmsolver++", 0), ("sde-dpmsolver++", 6)):
        drawn = []

        def noise(like, drawn=drawn):
            drawn.append(like.shape)
            return torch.empty_like(like)

        run = DPMSolverSinglestepScheduler(algorithm_type=algorithm, solver_order=3, thresholding=True).plan(6)
        x = torch.empty(1, 3, 4, 4, device="meta")
        for i in range(len(run)):
            x = run.step(x, i, x, noise).prev_sample
        assert drawn == [(1, 3, 4, 4)] * calls
