"""SA-Solver: the reference's numbers, and what it must do without a reference."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import langevin
from langevin import SASolverScheduler
from langevin.checkpoints.errors import CheckpointError
from langevin.schedulers.logsnr.sa_solver import sa_weights
from langevin.schedulers.noise import Level
from tests.schedulers.meaning_checks import gaussian_belief, sample
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

NAME = "SASolverScheduler"
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NOISE = {"algorithm_type": "noise_prediction", **LATENT}


def half(t) -> float:
    return 0.5 if t > 300 else 0.25


def never(t) -> float:
    return 0.0


CONFIGS = [
    {},
    LATENT,
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    {"num_train_timesteps": 500, "beta_end": 0.04},
    {"trained_betas": torch.linspace(0.0005, 0.015, 1000).tolist()},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading", "steps_offset": 1, **LATENT},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    *({"predictor_order": p, "corrector_order": c, **LATENT} for p, c in itertools.product((1, 2, 3), (1, 2, 4))),
    {"predictor_order": 4, "corrector_order": 3},
    {"predictor_order": 3, "corrector_order": 3, "lower_order_final": False, **LATENT},
    {"tau_func": half, **LATENT},
    {"tau_func": never, "predictor_order": 3, "corrector_order": 4},
    {"tau_func": lambda t: 1.0, "prediction_type": "v_prediction"},
    *({f"use_{kind}_sigmas": True, **LATENT} for kind in ("karras", "exponential", "beta")),
    {"use_karras_sigmas": True, "predictor_order": 3, "corrector_order": 4, "timestep_spacing": "leading"},
    {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    *({"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": kind} for kind in FLOW_FORMS),
    *({"predictor_order": order, "corrector_order": order, **NOISE} for order in (1, 2, 3, 4)),
    {"prediction_type": "v_prediction", "tau_func": half, **NOISE},
    {"prediction_type": "sample", **NOISE},
]


def label(config: dict) -> str:
    return ",".join(f"{k}={getattr(v, '__name__', v) if k != 'trained_betas' else '…'}" for k, v in config.items())


# -- numbers of the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_whole_trajectories_equal_the_reference(config):
    agrees_with_reference(NAME, config, exactly=True, dtype=torch.float64)


@pytest.mark.parametrize("config", [{}, LATENT, {"prediction_type": "v_prediction"}], ids=label)
def test_in_fp32_the_references_rounding_is_all_that_differs(config):
    agrees_with_reference(NAME, config, tolerance=1e-4)


@pytest.mark.parametrize("config", CONFIGS[:10] + CONFIGS[-12:-4], ids=label)
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


def test_noise_is_added_as_the_reference_adds_it():
    for config in (LATENT, {"use_karras_sigmas": True}):
        ours, theirs = both(NAME, **config)
        x0, noise = torch.randn(3, 3, 5, 5), torch.randn(3, 3, 5, 5)
        for steps in (None, 7):
            if steps:
                ours.set_timesteps(steps)
                theirs.set_timesteps(steps)
            t = theirs.timesteps[[0, 3, 6]].long()
            torch.testing.assert_close(
                ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize(
    "config",
    [
        {"algorithm_type": "dpmsolver++"},
        {"predictor_order": 0},
        {"corrector_order": 0},
        {"predictor_order": 5},
        {"beta_schedule": "quartic"},
        {"use_karras_sigmas": True, "use_beta_sigmas": True},
        {"timestep_spacing": "dense"},
        {"algorithm_type": "noise_prediction", "prediction_type": "flow_prediction"},
    ],
    ids=str,
)
def test_what_the_reference_refuses_is_refused(config):
    for library in (reference(), langevin):
        with pytest.raises((ValueError, NotImplementedError, AssertionError, IndexError)) as caught:
            familiar(getattr(library, NAME)(**config), 12)
    assert any(word in str(caught.value) for word in config)


def test_a_function_for_tau_cannot_be_saved(tmp_path):
    with pytest.raises(CheckpointError, match="tau_func"):
        SASolverScheduler(tau_func=half).save_pretrained(tmp_path)
    twin = SASolverScheduler.from_config(SASolverScheduler(tau_func=half).config)
    assert twin.config.tau_func is half


# -- without a reference ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data_prediction", "noise_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras", "exponential", "beta"])
def test_a_perfect_prediction_of_one_point_is_reached(kind, spacing):
    """On ε only without noise: what it takes out there, it takes by an ε that is not known until the step's end."""
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for order in (1, 2, 3):
        taus = [never] if kind == "noise_prediction" else [never, half, None]
        for tau, steps in itertools.product(taus, (1, 2, 3, 7, 20)):
            scheduler = SASolverScheduler(
                predictor_order=order, corrector_order=order, tau_func=tau, algorithm_type=kind
            ).with_spacing(spacing)
            for start in {0, steps // 2, steps - 1}:
                run = scheduler.plan(steps, as_published=True)
                x = run.add_noise(point, torch.randn_like(point), start)
                end = sample(run, x, lambda *_: point, start=start)
                torch.testing.assert_close(end, point, rtol=0, atol=1e-8)


def geometric(steps: int) -> list[float]:
    """σ in even steps of λ, after three of h² in which the history is gathered."""
    h = 5.0 / steps
    return [12 * math.exp(-at) for at in (0.0, h**2, 2 * h**2, *(3 * h**2 + k * h for k in range(steps + 1)))]


@pytest.mark.parametrize("kind", ["data_prediction", "noise_prediction"])
@pytest.mark.parametrize(("predictor", "corrector", "order"), [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 3, 3), (3, 3, 3)])
def test_without_noise_the_error_falls_as_fast_as_the_order_promises(kind, predictor, corrector, order):
    """A corrector of one order more lifts its predictor."""
    scheduler = SASolverScheduler(
        predictor_order=predictor,
        corrector_order=corrector,
        algorithm_type=kind,
        tau_func=never,
        lower_order_final=False,
    )
    deviation, x = 0.7, torch.tensor([[[[1.5]]]], dtype=torch.float64)

    def error(steps: int) -> float:
        run = scheduler.plan(sigmas=geometric(steps))
        spreads = [math.hypot(level.sigma, level.alpha * deviation) for level in (run.levels[0], run.targets[-1])]
        return abs(sample(run, x, gaussian_belief(0.0, deviation)).item() - spreads[1] / spreads[0] * x.item())

    errors = [error(steps) for steps in (80, 160, 320)]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(measured) > order - 0.4, (errors, measured)


@pytest.mark.parametrize("tau", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["data_prediction", "noise_prediction"])
def test_whatever_tau_a_gaussians_mean_and_spread_come_out(kind, tau):
    torch.manual_seed(0)
    scheduler = SASolverScheduler(tau_func=lambda t: tau, algorithm_type=kind)
    run = scheduler.plan(sigmas=geometric(150))
    x = torch.randn(1, 1, 100, 200, dtype=torch.float64)
    end = sample(run, x, gaussian_belief(0.4, 0.7))
    alpha, sigma = run.targets[-1]
    assert end.mean().item() == pytest.approx(0.4 * alpha, abs=0.02)
    assert end.std().item() == pytest.approx(math.hypot(0.7 * alpha, sigma), rel=0.03)


@pytest.mark.parametrize("predicts_x0", [True, False])
def test_a_step_has_the_variance_of_the_equation_whatever_tau(predicts_x0):
    """With x0 known, α_t·x0 + σ_t·z comes out of α_s·x0 + σ_s·z': so says the weight of x and that of the noise."""
    here, target = Level.of_sigma(2.0), Level.of_sigma(0.8)
    for tau in (0.0, 0.3, 1.0, 2.0):
        of_x, (weight,), deviation = sa_weights([here], here, target, tau, True)
        assert math.hypot(of_x * here.sigma, deviation) == pytest.approx(target.sigma)
        assert of_x * here.alpha + weight == pytest.approx(target.alpha)
        of_x, (weight,), deviation = sa_weights([here], here, target, tau, False)
        assert of_x * here.alpha == pytest.approx(target.alpha)
        assert (deviation > 0) is (tau > 0)


def test_the_corrector_uses_the_noise_of_the_step_that_it_corrects():
    """With a prediction that is the same everywhere there is nothing to correct: corrected and not are the same."""
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    run = SASolverScheduler(tau_func=lambda t: 1.0).plan(10)
    x = run.add_noise(point, torch.randn_like(point), 0)
    for i in range(10):
        alpha, sigma = run.levels[i]
        out = run.step((x - alpha * point) / sigma, i, x, torch.randn_like)
        torch.testing.assert_close(run.origin, x, rtol=0, atol=1e-10)
        x = out.prev_sample


@pytest.mark.parametrize(("tau", "calls"), [(None, 10), (never, 0), (lambda t: 1.0, 10)])
def test_noise_is_drawn_only_for_runs_that_need_it_and_numbers_are_never_looked_at(tau, calls):
    drawn = []

    def noise(like):
        drawn.append(like.shape)
        return torch.empty_like(like)

    run = SASolverScheduler(tau_func=tau, predictor_order=3, corrector_order=3, thresholding=True).plan(10)
    x = torch.empty(1, 3, 4, 4, device="meta")
    for i in range(len(run)):
        x = run.step(x, i, x, noise).prev_sample
    assert drawn == [(1, 3, 4, 4)] * calls


def test_learned_variances_are_left_aside():
    run = SASolverScheduler(variance_type="learned", tau_func=never).plan(5)
    plain = SASolverScheduler(tau_func=never).plan(5)
    x = y = torch.linspace(-2, 2, 48).reshape(1, 3, 4, 4)
    for i in range(5):
        x = run.step(torch.cat([torch.tanh(x), 100 * x], 1), i, x).prev_sample
        y = plain.step(torch.tanh(y), i, y).prev_sample
    torch.testing.assert_close(x, y)


def test_one_generator_per_image_makes_each_image_alone_repeatable():
    ends = []
    for batch in ([0, 1, 2], [1]):
        scheduler = SASolverScheduler()
        scheduler.set_timesteps(6)
        generators = [torch.Generator().manual_seed(k) for k in batch]
        x = torch.cat([torch.randn(1, 2, 4, 4, generator=g) for g in generators])
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x, generator=generators).prev_sample
        ends.append(x)
    torch.testing.assert_close(ends[0][1:2], ends[1])


def test_both_ways_through_it_are_the_same():
    for start in (0, 3):
        scheduler = SASolverScheduler(predictor_order=3, corrector_order=4)
        assert distance(planned(scheduler, 9, start), familiar(scheduler, 9, start)) < 1e-7
