"""EDM's schedulers of preconditioned networks: the reference's numbers, and what they must do without it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import langevin
from langevin import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from tests.schedulers.scheduler_checks import (
    STEPS,
    agrees_with_reference,
    both,
    distance,
    familiar,
    planned,
    reference,
    same_as_reference,
    starts,
)

NAMES = ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]
SHARED = [
    {},
    {"prediction_type": "v_prediction"},
    {"sigma_schedule": "exponential", "sigma_max": 120.0, "sigma_data": 1.0, "prediction_type": "v_prediction"},
    {"sigma_min": 0.01, "sigma_max": 20.0, "rho": 5.0},
    {"final_sigmas_type": "sigma_min"},
]
MULTISTEP = [
    {"solver_order": 1},
    {"solver_order": 3},
    {"solver_order": 3, "lower_order_final": False},
    {"solver_type": "heun"},
    {"euler_at_final": True, "final_sigmas_type": "sigma_min", "solver_order": 3},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"algorithm_type": "sde-dpmsolver++"},
    {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "sigma_schedule": "exponential"},
    {"algorithm_type": "deis", "solver_type": "bh2", "final_sigmas_type": "sigma_min"},
]


# -- numbers of the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SHARED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_whole_trajectories_equal_the_reference(name, config):
    agrees_with_reference(name, config)


@pytest.mark.parametrize("config", MULTISTEP, ids=str)
def test_multistep_trajectories_equal_the_reference(config):
    agrees_with_reference("EDMDPMSolverMultistepScheduler", config)


@pytest.mark.parametrize(
    "churn", [{"s_churn": 4.0}, {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.01}]
)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_churned_trajectories_equal_the_reference(kind, churn):
    agrees_with_reference("EDMEulerScheduler", {"prediction_type": kind}, **churn)


@pytest.mark.parametrize("config", SHARED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_lists_equal_the_reference(name, config):
    ours, theirs = both(name, **config)
    for steps in (None, *STEPS, 999):
        if steps is not None:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-7)
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("law", ["karras", "exponential"])
def test_places_given_as_sigmas_equal_the_reference(law):
    ours, theirs = both("EDMEulerScheduler", sigma_schedule=law)
    places = torch.tensor([0.0, 0.1, 0.35, 0.5, 0.9, 1.0])
    ours.set_timesteps(sigmas=places)
    theirs.set_timesteps(sigmas=places)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-7)
    x = torch.randn(2, 3, 4, 4)
    for t in theirs.timesteps[2:]:
        mine, his = (s.step(s.scale_model_input(x, t).tanh(), t, x).prev_sample for s in (ours, theirs))
        torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-5)
        x = his


def test_training_noise_and_preconditioning_equal_the_reference():
    for name in NAMES:
        for config in SHARED[:3]:
            ours, theirs = both(name, **config)
            x, output = torch.randn(3, 3, 5, 5), torch.randn(3, 3, 5, 5)
            sigma = torch.tensor([0.01, 0.7, 60.0]).view(3, 1, 1, 1)
            pairs = [
                (ours.precondition_inputs(x, sigma), theirs.precondition_inputs(x, sigma)),
                (ours.precondition_outputs(x, output, sigma), theirs.precondition_outputs(x, output, sigma)),
                (ours.precondition_outputs(x, output, 0.7), theirs.precondition_outputs(x, output, 0.7)),
                (ours.precondition_noise(sigma), theirs.precondition_noise(sigma)),
                (ours.precondition_noise(0.7), theirs.precondition_noise(0.7)),
            ]
            for steps in (None, 7):
                if steps:
                    ours.set_timesteps(steps)
                    theirs.set_timesteps(steps)
                t = theirs.timesteps[[0, 3, 6]]
                pairs.append((ours.add_noise(x, output, t), theirs.add_noise(x, output, t)))
            for mine, his in pairs:
                torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-5)


def test_an_image_given_to_step_equals_the_reference():
    x, x0 = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for churn in ({}, {"s_churn": 2.0}):
        ours, theirs = both("EDMEulerScheduler")
        ends = []
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(5)
            z = {"generator": torch.Generator().manual_seed(3)}
            here, path = x, []
            for i, t in enumerate(scheduler.timesteps):
                known = {"pred_original_sample": x0} if i in (1, 2) else {}
                here = scheduler.step(here.tanh(), t, here, **churn, **z, **known).prev_sample
                path.append(here)
            ends.append(path)
        for mine, his in zip(*ends, strict=True):
            torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-5)


def test_a_begun_run_equals_the_reference():
    for name in NAMES:
        ours, theirs = both(name)
        x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        ends = []
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(7)
            scheduler.set_begin_index(2)
            t = scheduler.timesteps[2:3]
            here = scheduler.add_noise(x, noise, t)
            before = scheduler.scale_model_input(here, t[0])
            after = scheduler.step(before.tanh(), t[0], here).prev_sample
            assert (scheduler.begin_index, scheduler.step_index) == (2, 3)
            ends.append((here, before, after, scheduler.add_noise(x, noise, t)))
        for mine, his in zip(*ends, strict=True):
            torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [{}, {"sigma_schedule": "exponential", "prediction_type": "v_prediction"}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_saved_here_loads_there_and_back(name, config, tmp_path):
    for scheduler, folder in zip(both(name, **config), ("ours", "theirs"), strict=True):
        scheduler.save_pretrained(tmp_path / folder)
        here, there = (type(s).from_pretrained(tmp_path / folder) for s in both(name))
        same_as_reference(here, there, 7)
        here, there = (type(s).from_config(s.config) for s in (here, there))
        same_as_reference(here, there, 7)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, {"sigma_schedule": "cubic"}) for name in NAMES),
        *((name, {"final_sigmas_type": "one"}) for name in NAMES),
        *((name, {"prediction_type": "wish"}) for name in NAMES),
        *((name, {"prediction_type": "sample"}) for name in NAMES),
        (NAMES[1], {"algorithm_type": "dpmsolver"}),
        (NAMES[1], {"solver_type": "wish"}),
    ],
    ids=str,
)
def test_what_the_reference_refuses_is_refused(name, config):
    def run_one_step(make):
        scheduler, x = make(**config), torch.zeros(1, 3, 2, 2)
        scheduler.set_timesteps(3)
        scheduler.step(x, scheduler.timesteps[0], x)

    with pytest.raises((ValueError, NotImplementedError, UnboundLocalError)):
        run_one_step(getattr(reference(), name))
    with pytest.raises((ValueError, NotImplementedError)) as caught:
        run_one_step(getattr(langevin, name))
    assert all(repr(value) in str(caught.value) for value in config.values())


def test_whole_timesteps_and_steps_without_a_run_are_refused():
    x = torch.zeros(1, 3, 2, 2)
    for scheduler in both("EDMEulerScheduler"):
        scheduler.set_timesteps(5)
        for t in (0, torch.tensor(3)):
            with pytest.raises(ValueError, match=r"integer|whole"):
                scheduler.step(x, t, x)
    for scheduler in both("EDMDPMSolverMultistepScheduler"):
        with pytest.raises(ValueError, match="set_timesteps"):
            scheduler.step(x, 1.0, x)
    with pytest.raises(ValueError, match="as_published"):
        EDMEulerScheduler().set_timesteps(sigmas=[80.0, 1.0])
    with pytest.raises(ValueError, match="num_inference_steps=3"):
        EDMEulerScheduler().set_timesteps(3, sigmas=[0.0, 1.0])


# -- without the reference -------------------------------------------------------------------------------------------


def told(run, i, x, x0, sigma_data=0.5):
    """The output of a preconditioned network that believes in x0 (equation 7 solved for F)."""
    sigma = run.levels[i].sigma
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / math.hypot(sigma, sigma_data)
    return (x0 - c_skip * x) / c_out * (-1 if run.prediction_type == "v_prediction" else 1)


def sample(run, x, believe, start=0, noise=torch.randn_like):
    for i in range(start, len(run)):
        x = run.step(told(run, i, x, believe(run.levels[i].sigma, x)), i, x, noise).prev_sample
    return x


def gaussian(mean=0.4, deviation=0.7):
    return lambda sigma, x: mean + deviation**2 / (deviation**2 + sigma**2) * (x - mean)


SOLVERS = [
    *(EDMEulerScheduler(**config) for config in SHARED[:2]),
    EDMEulerScheduler(sigma_schedule="exponential"),
    *(
        EDMDPMSolverMultistepScheduler(solver_order=order, solver_type=k)
        for order in (1, 2, 3)
        for k in ("midpoint", "heun")
    ),
    EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"),
    *(EDMEulerScheduler().with_spacing(name) for name in ("exponential", "beta", "linspace", "trailing")),
]


@pytest.mark.parametrize("scheduler", SOLVERS, ids=lambda s: type(s).__name__)
def test_a_perfect_prediction_of_one_point_is_reached_from_any_start(scheduler):
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for steps in STEPS:
        for start in starts(steps):
            run = scheduler.plan(steps, as_published=True)
            assert run.sigmas[0] == pytest.approx(80.0) or (steps, scheduler._spacing) == (1, ("linspace", {}))
            x = run.add_noise(point, torch.randn_like(point), start)
            torch.testing.assert_close(sample(run, x, lambda *_: point, start), point, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("scheduler", "order"),
    [
        (EDMEulerScheduler(), 1.0),
        (EDMDPMSolverMultistepScheduler(lower_order_final=False), 1.8),
        (
            EDMDPMSolverMultistepScheduler(lower_order_final=False, solver_type="heun", sigma_schedule="exponential"),
            1.8,
        ),
    ],
)
def test_error_falls_as_fast_as_the_solver_promises(scheduler, order):
    errors = []
    for steps in (25, 50, 100):
        run = scheduler.plan(steps)
        x = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 8, 8) * math.hypot(run.sigmas[0], 0.7)
        exact = 0.4 + 0.7 * (x - 0.4) / math.hypot(run.sigmas[0], 0.7)
        errors.append((sample(run, x, gaussian()) - exact).abs().max().item())
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(measured) > order - 0.15, (errors, measured)


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (EDMEulerScheduler(), {"s_churn": 5.0}),
        (EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), {}),
        (EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3), {}),
    ],
    ids=["churn", "sde-2", "sde-3"],
)
def test_stochastic_solvers_give_a_gaussians_mean_and_spread(scheduler, options):
    torch.manual_seed(0)
    run = scheduler.plan(100, **options)
    x = torch.randn(1, 1, 100, 200, dtype=torch.float64) * run.sigmas[0]
    end = sample(run, x, gaussian())
    assert end.mean().item() == pytest.approx(0.4, abs=0.03)
    assert end.std().item() == pytest.approx(0.7, rel=0.05)


def test_both_forms_agree():
    for make, options in (
        (EDMEulerScheduler, {}),
        (EDMDPMSolverMultistepScheduler, {"thresholding": True, "sample_max_value": 3.0}),
    ):
        runs = [make(prediction_type=form, **options).plan(9) for form in ("epsilon", "v_prediction")]
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64) * runs[0].init_noise_sigma
        torch.testing.assert_close(*(sample(run, x, gaussian()) for run in runs), rtol=1e-9, atol=1e-9)


def test_the_networks_input_has_unit_variance_and_its_time_is_log_sigma():
    run = EDMEulerScheduler(sigma_data=0.7).plan(5)
    for i, (sigma, t) in enumerate(zip(run.sigmas, run.timesteps, strict=False)):
        x = run.add_noise(0.7 * torch.randn(50000), torch.randn(50000), i)
        assert run.scale_model_input(x, i).std().item() == pytest.approx(1.0, abs=0.02)
        assert t == pytest.approx(0.25 * math.log(sigma))


def test_sigmas_and_timesteps_of_a_plan_agree_and_so_does_set_timesteps_as_published():
    chosen = [80.0, 12.0, 3.0, 0.4, 0.01]
    for name in NAMES:
        ours, _ = both(name)
        by_sigma = planned(ours, set_with={"sigmas": [*chosen, 0.0]})
        by_time = planned(ours, set_with={"timesteps": [0.25 * math.log(sigma) for sigma in chosen]})
        assert distance(by_sigma, by_time) < 1e-6
        assert distance(familiar(ours, set_with={"sigmas": chosen, "as_published": True}), by_sigma) < 1e-6


def test_a_single_exponential_step_begins_where_the_noise_is_if_asked():
    scheduler = EDMEulerScheduler(sigma_schedule="exponential")
    assert scheduler.plan(1, as_published=True).sigmas == pytest.approx([80.0, 0.0])
    assert scheduler.plan(1).sigmas == pytest.approx([0.002, 0.0])


@pytest.mark.parametrize(
    ("scheduler", "options", "calls"),
    [
        (EDMEulerScheduler(), {}, 0),
        (EDMEulerScheduler(), {"s_churn": 1.0}, 6),
        (EDMEulerScheduler(), {"s_churn": 1.0, "s_tmax": 30.0}, 5),
        (EDMDPMSolverMultistepScheduler(thresholding=True, solver_order=3), {}, 0),
        (EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), {}, 6),
    ],
)
def test_a_step_never_looks_at_the_numbers_and_draws_only_what_it_needs(scheduler, options, calls):
    drawn = []

    def noise(like):
        drawn.append(like.shape)
        return torch.empty_like(like)

    run = scheduler.plan(6, **options)
    x = torch.empty(2, 3, 4, 4, device="meta")
    for i in range(len(run)):
        run.add_noise(x, x, i)
        out = run.step(run.scale_model_input(x, i), i, x, noise)
        assert out.pred_original_sample.shape == x.shape
        x = out.prev_sample
    assert drawn == [(2, 3, 4, 4)] * calls


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_nan_and_samples_keep_their_precision(name):
    grid = {"prediction_type": ("epsilon", "v_prediction"), "sigma_schedule": ("karras", "exponential"),
            "final_sigmas_type": ("zero", "sigma_min")}  # fmt: skip
    if name == NAMES[1]:
        grid |= {"solver_order": (2, 3), "solver_type": ("midpoint", "heun")}
        grid |= {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "lower_order_final": (True, False)}
    for values in itertools.product(*grid.values()):
        config = dict(zip(grid, values, strict=True))
        for steps, dtype in ((1, torch.float16), (2, torch.bfloat16), (7, torch.float32), (16, torch.float64)):
            run = both(name, **config)[0].plan(steps)
            x = (torch.linspace(-3, 3, 4).reshape(1, 1, 2, 2) * run.init_noise_sigma).to(dtype)
            for i in range(steps):
                out = run.step(torch.tanh(run.scale_model_input(x, i)), i, x)
                x = out.prev_sample
                for tensor in (x, out.pred_original_sample, run.scale_model_input(x, i)):
                    assert tensor.isfinite().all(), (config, steps, i)
                    assert tensor.dtype == dtype
