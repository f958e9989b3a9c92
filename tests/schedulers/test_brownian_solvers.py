"""The solvers whose noise is a Brownian path: with a seed the reference's numbers, without one the same law."""

from __future__ import annotations

import inspect
import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import langevin
from langevin import CosineDPMSolverMultistepScheduler, DPMSolverSDEScheduler
from langevin.schedulers.brownian import brownian_path
from tests.schedulers.brownian_checks import forbidden, on_a_path
from tests.schedulers.meaning_checks import FORMS, gaussian_belief, sample
from tests.schedulers.parity_checks import same_lists
from tests.schedulers.scheduler_checks import (
    SHAPE,
    SPACINGS,
    STEPS,
    both,
    distance,
    familiar,
    finite,
    planned,
    reference,
    starts,
)

pytestmark = pytest.mark.filterwarnings("ignore:Should have t")  # the reference asks a little outside of its path

LATENT = {"beta_schedule": "scaled_linear"}
SEEDED = {"noise_sampler_seed": 5}
SDE = [
    {},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 500, "beta_end": 0.04, "noise_sampler_seed": [7, 8]},
    {"trained_betas": torch.linspace(0.0005, 0.015, 1000).tolist()},
    {"timestep_spacing": "leading", "steps_offset": 1, **LATENT},
    {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    *({f"use_{kind}_sigmas": True, **LATENT} for kind in ("karras", "exponential", "beta")),
    {"use_karras_sigmas": True, "timestep_spacing": "leading", "prediction_type": "v_prediction"},
]
COSINE = [
    {},
    {"sigma_schedule": "karras", "rho": 5.0, "sigma_min": 0.5, "sigma_max": 80.0},
    {"solver_order": 1, "sigma_data": 0.5},
    {"solver_type": "heun", "lower_order_final": False},
    {"solver_type": "bh2", "prediction_type": "epsilon", "sigma_data": 0.5},
    {"solver_type": "heun", "sigma_schedule": "karras", "euler_at_final": True},
]


def label(value) -> str:
    return "-".join(f"{k}={'…' if k == 'trained_betas' else v}" for k, v in value.items()) or "default"


def needs_scipy(config: dict) -> None:
    if config.get("use_beta_sigmas"):
        pytest.importorskip("scipy", reason="the reference needs scipy for beta sigmas")


def cosine_lists_equal(ours, theirs) -> None:
    for attribute in ("timesteps", "sigmas"):
        torch.testing.assert_close(getattr(ours, attribute), getattr(theirs, attribute), rtol=2e-7, atol=1e-7)
    assert ours.init_noise_sigma == pytest.approx(theirs.init_noise_sigma, rel=1e-9)


# -- numbers of the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SDE, ids=label)
def test_sde_trajectories_and_lists_equal_the_reference(config):
    needs_scipy(config)
    ours, theirs = both("DPMSolverSDEScheduler", **{**SEEDED, **config})
    for steps in STEPS:
        for start in starts(steps, 2)[:: 2 if config else 1]:
            want = familiar(theirs, steps, start, seed=steps)
            for through in (familiar, planned):
                assert distance(through(ours, steps, start, seed=steps), want) < 1e-5, (steps, start)
        same_lists(ours, theirs)


@pytest.mark.parametrize("config", COSINE, ids=label)
def test_cosine_trajectories_and_lists_equal_the_reference(config):
    ours, theirs = both("CosineDPMSolverMultistepScheduler", **config)
    for steps in STEPS:
        for start in starts(steps):
            want = familiar(theirs, steps, start, seed=steps)
            assert distance(familiar(ours, steps, start, seed=steps), want) < 1e-5, (steps, start)
            assert distance(on_a_path(ours, steps, start, seed=steps), want) < 1e-5, (steps, start)
        cosine_lists_equal(ours, theirs)


@pytest.mark.parametrize("s_noise", [0.0, 0.5, 1.01])
def test_less_and_more_noise_equals_the_reference(s_noise):
    ours, theirs = both("DPMSolverSDEScheduler", **SEEDED)
    want = familiar(theirs, 7, s_noise=s_noise)
    for through in (familiar, planned):
        assert distance(through(ours, 7, s_noise=s_noise), want) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_precisions_equal_the_reference(dtype):
    """A path is drawn in the sample's precision, and so differs with it."""
    tolerance = 1e-5 if dtype == torch.float64 else 5e-3
    for name, config in (("DPMSolverSDEScheduler", SEEDED), ("CosineDPMSolverMultistepScheduler", {"sigma_max": 50.0})):
        ours, theirs = both(name, **config)
        want = familiar(theirs, 7, seed=2, dtype=dtype)
        got = familiar(ours, 7, seed=2, dtype=dtype)
        assert got.path[-1].dtype == dtype
        assert distance(*(SimpleNamespace(path=[x.double() for x in t.path]) for t in (got, want))) < tolerance


def test_a_path_for_each_image_equals_the_reference():
    ours, theirs = both("CosineDPMSolverMultistepScheduler")
    x, ends = torch.randn(3, 2, 4, 4), []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
        y = x * 500
        for t in scheduler.timesteps:
            generators = [torch.Generator().manual_seed(k) for k in (3, 4, 5)]
            y = scheduler.step(torch.tanh(scheduler.scale_model_input(y, t)), t, y, generators).prev_sample
        ends.append(y)
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="2 seeds for a batch of 3"):
        ours.plan(6, noise_sampler_seed=[1, 2]).step(x, 0, x)


def test_the_run_before_set_timesteps_equals_the_reference():
    ours, theirs = both("DPMSolverSDEScheduler", **SEEDED)
    same_lists(ours, theirs)
    x = torch.randn(SHAPE)
    steps = []
    for scheduler in (ours, theirs):
        t = scheduler.timesteps[0]
        steps.append(scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample)
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-4)
    ours, theirs = both("CosineDPMSolverMultistepScheduler")
    cosine_lists_equal(ours, theirs)
    for scheduler in (ours, theirs):
        with pytest.raises(ValueError, match="set_timesteps"):
            scheduler.step(x, scheduler.timesteps[0], x)


def test_fewer_training_timesteps_equal_the_reference():
    ours, theirs = both("DPMSolverSDEScheduler", **SEEDED)
    set_with = {"num_inference_steps": 6, "device": None, "num_train_timesteps": 600}
    want = familiar(theirs, set_with=set_with)
    assert distance(familiar(ours, set_with=set_with), want) < 1e-5
    assert distance(planned(ours, 6, num_train_timesteps=600), want) < 1e-5


def test_place_state_and_noising_are_the_reference_s_at_every_call():
    for name, state in (("DPMSolverSDEScheduler", True), ("CosineDPMSolverMultistepScheduler", False)):
        schedulers = both(name)
        x0, noise, x = (torch.randn(2, 3, 4, 4) for _ in range(3))
        for scheduler in schedulers:
            scheduler.set_timesteps(5)
            scheduler.set_begin_index(2)
        for t in schedulers[1].timesteps[2:]:
            noised = [scheduler.add_noise(x0, noise, t.repeat(2)) for scheduler in schedulers]
            scaled = [scheduler.scale_model_input(x, t) for scheduler in schedulers]
            torch.testing.assert_close(*noised, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(*scaled, rtol=1e-5, atol=1e-5)
            if state:
                assert schedulers[0].state_in_first_order == schedulers[1].state_in_first_order
            for scheduler in schedulers:
                scheduler.step(x, t, x)
            assert schedulers[0].step_index == schedulers[1].step_index


def test_ends_that_another_class_left_in_the_config_count_as_in_the_reference():
    for kind in ("karras", "exponential"):
        config = {f"use_{kind}_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0, **SEEDED}
        ours, theirs = (
            library.DPMSolverSDEScheduler.from_config({**library.EulerDiscreteScheduler(**LATENT).config, **config})
            for library in (langevin, reference())
        )
        assert distance(planned(ours, 7), familiar(theirs, 7)) < 1e-5, kind
    ends = DPMSolverSDEScheduler().with_spacing("karras", sigma_min=0.1, sigma_max=10.0).plan(7).sigmas
    assert (ends[0], ends[-2]) == pytest.approx((10.0, 0.1))


def test_preconditioning_functions_equal_the_reference():
    sigma, x, output = torch.tensor([2.5]), torch.randn(2, 3), torch.randn(2, 3)
    for kind in ("epsilon", "v_prediction"):
        ours, theirs = both("CosineDPMSolverMultistepScheduler", prediction_type=kind, sigma_data=0.7)
        for method, inputs in (
            ("precondition_inputs", (x, sigma)),
            ("precondition_noise", (sigma,)),
            ("precondition_noise", (2.5,)),
            ("precondition_outputs", (x, output, sigma)),
        ):
            torch.testing.assert_close(getattr(ours, method)(*inputs), getattr(theirs, method)(*inputs))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DPMSolverSDEScheduler", {"beta_schedule": "quartic"}),
        ("DPMSolverSDEScheduler", {"timestep_spacing": "dense"}),
        ("DPMSolverSDEScheduler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}),
        *((name, {"prediction_type": kind}) for name in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
          for kind in ("sample", "wish")),
        ("CosineDPMSolverMultistepScheduler", {"solver_type": "bh3"}),
        ("CosineDPMSolverMultistepScheduler", {"solver_order": 3}),
        ("CosineDPMSolverMultistepScheduler", {"sigma_schedule": "even"}),
        ("CosineDPMSolverMultistepScheduler", {"final_sigmas_type": "one"}),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_reference_refuses_is_refused(name, config):
    def go(library):
        scheduler, x = getattr(library, name)(**config), torch.zeros(1, 3, 2, 2)
        scheduler.set_timesteps(6)
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, x).prev_sample

    for library, errors in ((reference(), Exception), (langevin, (ValueError, NotImplementedError))):
        with pytest.raises(errors) as caught:
            go(library)
    assert all(value is True or str(value) in str(caught.value) for value in config.values()), caught.value


@pytest.mark.parametrize(
    "config", [{}, {"sigma_schedule": "karras", "solver_type": "heun", "sigma_data": 0.5}], ids=str
)
def test_cosine_saved_here_loads_there_and_back(config, tmp_path):
    schedulers = both("CosineDPMSolverMultistepScheduler", **config)
    for scheduler, folder in zip(schedulers, ("ours", "theirs"), strict=True):
        scheduler.save_pretrained(tmp_path / folder)
    for folder in ("ours", "theirs"):
        here, there = (type(scheduler).from_pretrained(tmp_path / folder) for scheduler in schedulers)
        assert {k: v for k, v in here.config.items() if k[0] != "_"} == {
            k: v for k, v in there.config.items() if k[0] != "_"
        }
        assert distance(familiar(here, 7), familiar(there, 7)) < 1e-5
    assert CosineDPMSolverMultistepScheduler._compatibles == type(schedulers[1])._compatibles


# -- noise -----------------------------------------------------------------------------------------------------------


def test_a_path_is_additive_and_of_the_right_spread():
    like = torch.empty(4, 5000, dtype=torch.float64)
    path = brownian_path(like, 0.1, 9.0, 3)
    places = [9.0, 4.0, 3.9, 1.0, 0.1]
    parts = [path(a, b) for a, b in itertools.pairwise(places)]
    for part in parts:
        assert part.std().item() == pytest.approx(1.0, rel=0.02)
        assert part.mean().item() == pytest.approx(0.0, abs=0.03)
    assert abs((parts[0] * parts[1]).mean().item()) < 0.03
    moved = sum(part * math.sqrt(a - b) for part, (a, b) in zip(parts, itertools.pairwise(places), strict=True))
    torch.testing.assert_close(path(9.0, 0.1) * math.sqrt(8.9), moved)
    torch.testing.assert_close(path(4.0, 1.0), -path(1.0, 4.0))
    assert torch.equal(brownian_path(like, 0.1, 9.0, 3)(3.9, 1.0), parts[2])  # whatever was asked before
    assert torch.equal(path(1.0, 1.0 - 1e-9), torch.zeros_like(like))
    assert torch.equal(path(0.1, 0.0), torch.zeros_like(like))  # it stands still outside


def test_without_a_seed_torchsde_is_not_needed_and_with_one_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsde", None)
    x = torch.zeros(2, 3, 2, 2)
    for make in (DPMSolverSDEScheduler, CosineDPMSolverMultistepScheduler):
        scheduler = make()
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, x).prev_sample
        assert x.isfinite().all()
        with pytest.raises(ImportError, match=r"pip install langevin\[brownian\]"):
            scheduler.plan(4, noise_sampler_seed=1).step(x, 0, x)
    scheduler = CosineDPMSolverMultistepScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(ImportError, match="torchsde"):
        scheduler.step(x, scheduler.timesteps[0], x, torch.Generator().manual_seed(0))


def test_the_whole_step_s_noise_is_made_of_its_halves():
    """With a network that always says 0, x is a sum of noises: both calls' noise of unit variance, and the second's
    with the first's as that of one path."""
    run = DPMSolverSDEScheduler().plan(sigmas=[8.0, 2.0, 0.5])
    zero, z = torch.zeros(1, 1, 200, 200, dtype=torch.float64), []

    def noise(like):
        z.append(torch.randn(like.shape, dtype=like.dtype, generator=generator))
        return z[-1]

    generator = torch.Generator().manual_seed(1)
    first = run.step(zero, 0, zero, noise).prev_sample
    second = run.step(first / run.levels[1].sigma, 1, first, noise).prev_sample  # an ε that believes in x0 = 0
    ups = [math.sqrt(b**2 - (b**2 / 8.0) ** 2) for b in (4.0, 2.0)]
    torch.testing.assert_close(first / ups[0], z[0])
    torch.testing.assert_close(second / ups[1], math.sqrt(4 / 6) * z[0] + math.sqrt(2 / 6) * z[1])


def test_a_picture_of_a_batch_can_be_made_again_alone():
    def noise_of(generators):
        return lambda like: torch.cat(
            [torch.randn(1, *like.shape[1:], generator=g, dtype=like.dtype) for g in generators]
        )

    for make in (DPMSolverSDEScheduler, CosineDPMSolverMultistepScheduler):
        scheduler, x = make(), 10 * torch.randn(3, 2, 4, 4)

        def through(x, seeds, scheduler=scheduler, **options):
            run = scheduler.plan(5, **options)
            noise = noise_of([torch.Generator().manual_seed(seed) for seed in seeds])
            for i in range(len(run)):
                x = run.step(torch.tanh(run.scale_model_input(x, i)), i, x, noise).prev_sample
            return x

        torch.testing.assert_close(through(x, [4, 5, 6])[1:2], through(x[1:2], [5]))
        whole = through(x, [0, 0, 0], noise_sampler_seed=[4, 5, 6])
        torch.testing.assert_close(whole[1:2], through(x[1:2], [0], noise_sampler_seed=5))
        assert (whole[0] - through(x[:1], [0], noise_sampler_seed=5)).abs().max() > 1e-3


def test_a_generator_in_the_familiar_step_is_an_extra_of_ours():
    ours = DPMSolverSDEScheduler()
    assert list(inspect.signature(ours.step).parameters)[-1] == "generator"
    assert distance(familiar(ours, 6), planned(ours, 6)) < 1e-5
    with_seed = DPMSolverSDEScheduler(**SEEDED)  # which decides
    assert distance(familiar(with_seed, 6, seed=1), on_a_path(ours, 6, seed=5)) > 1e-3
    assert distance(familiar(with_seed, 6, seed=5), on_a_path(ours, 6, seed=5)) < 1e-6


@pytest.mark.parametrize(
    ("scheduler", "calls"),
    [
        (DPMSolverSDEScheduler(), 18),
        (DPMSolverSDEScheduler(**SEEDED), 0),
        (CosineDPMSolverMultistepScheduler(), 9),
        (CosineDPMSolverMultistepScheduler(final_sigmas_type="sigma_min"), 10),
    ],
)
def test_noise_is_drawn_only_when_needed(scheduler, calls):
    drawn = []

    def noise(like):
        drawn.append(like.shape)
        return torch.zeros_like(like)

    run, x = scheduler.plan(10), torch.ones(2, 3, 2, 2)
    for i in range(len(run)):
        x = run.step(x, i, x, noise).prev_sample
    assert drawn == [(2, 3, 2, 2)] * calls


def test_eight_threads_with_a_seed_each_give_what_one_gives():
    scheduler = DPMSolverSDEScheduler()

    def job(k):
        return on_a_path(scheduler, 6, start=2 * (k % 2), seed=k).path

    serial = [job(k) for k in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(serial, pool.map(job, range(16)), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- meaning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_perfect_prediction_of_one_point_is_reached_from_any_start(spacing):
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for scheduler in (DPMSolverSDEScheduler(), CosineDPMSolverMultistepScheduler()):
        scheduler = scheduler.with_spacing(spacing)
        order = scheduler.order
        for steps in (1, 2, 3, 7, 20):
            length = len(scheduler.plan(steps))
            assert length == order * (steps - 1) + 1
            for start in {0, order, length // (2 * order) * order, length - 1}:
                if start < length:
                    run = scheduler.plan(steps)
                    x = run.add_noise(point, torch.randn_like(point), start)
                    end = sample(run, x, lambda *_: point, run.prediction_type, start=start)
                    torch.testing.assert_close(end, point, rtol=0, atol=1e-8)


def test_epsilon_and_v_forms_agree():
    ends = []
    for form in FORMS[:2]:
        run = DPMSolverSDEScheduler(prediction_type=form, **SEEDED).plan(9)
        x = torch.linspace(-2, 2, 32, dtype=torch.float64).reshape(1, 2, 4, 4) * run.init_noise_sigma
        ends.append(sample(run, x, gaussian_belief(0.3, 0.8), form, noise=forbidden))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", [None, 11], ids=["drawn", "a path"])
def test_the_noise_gives_a_gaussian_s_mean_and_spread(seed):
    torch.manual_seed(0)
    runs = [
        (DPMSolverSDEScheduler(use_karras_sigmas=True), 30),
        (CosineDPMSolverMultistepScheduler(sigma_min=0.03, sigma_max=80.0), 30),
        (CosineDPMSolverMultistepScheduler(sigma_min=0.03, sigma_max=80.0, solver_type="heun"), 30),
    ]
    for scheduler, steps in runs:
        run = scheduler.plan(steps, noise_sampler_seed=seed)
        x = torch.randn(1, 1, 100, 100, dtype=torch.float64) * run.init_noise_sigma
        end = sample(run, x, gaussian_belief(0.4, 0.7), run.prediction_type)
        assert end.mean().item() == pytest.approx(0.4, abs=0.03), scheduler
        assert end.std().item() == pytest.approx(0.7, rel=0.05), scheduler


def test_nothing_is_nan_and_the_last_step_may_stay_at_sigma_min():
    grid = {
        "sigma_schedule": ("exponential", "karras"),
        "final_sigmas_type": ("zero", "sigma_min"),
        "solver_order": (1, 2),
        "solver_type": ("midpoint", "heun"),
        "lower_order_final": (True, False),
        "prediction_type": ("v_prediction", "epsilon"),
    }
    for values in itertools.product(*grid.values()):
        config = dict(zip(grid, values, strict=True))
        for steps, seed in itertools.product((1, 2, 7), (None, 1)):
            run = CosineDPMSolverMultistepScheduler(**config).plan(steps, noise_sampler_seed=seed)
            x = torch.linspace(-3, 3, 4).reshape(1, 1, 2, 2) * run.init_noise_sigma
            for i in range(len(run)):
                before, out = x, run.step(torch.tanh(run.scale_model_input(x, i)), i, x)
                x = out.prev_sample
                assert x.isfinite().all(), (config, steps, i)
                assert out.pred_original_sample.isfinite().all()
            if config["final_sigmas_type"] == "sigma_min" and steps > 1:
                torch.testing.assert_close(x, before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "config", [{"final_sigmas_type": "sigma_min"}, {"sigma_schedule": "karras", "rho": 5.0}], ids=str
)
def test_where_the_reference_gets_lost_ours_does_not(config):
    """It asks a path for an interval of a rounding error, which torchsde halves without end."""
    ours, theirs = both("CosineDPMSolverMultistepScheduler", **config)
    with pytest.raises(RecursionError):
        familiar(theirs, 7)
    assert finite(familiar(ours, 7))


def test_own_timesteps_and_sigmas_agree():
    cosine = CosineDPMSolverMultistepScheduler()
    chosen = [400.0, 90.0, 8.0, 0.7]
    told = cosine.precondition_noise(torch.tensor(chosen, dtype=torch.float64)).tolist()
    runs = [cosine.plan(sigmas=[*chosen, 0.0]), cosine.plan(timesteps=told)]
    for run in runs:
        assert run.sigmas == pytest.approx([*chosen, 0.0], rel=1e-9)
        assert run.timesteps == pytest.approx(told)
    cosine.set_timesteps(sigmas=[*chosen, 0.0])
    assert cosine.sigmas.tolist() == pytest.approx([*chosen, 0.0])


def test_as_published_a_single_step_begins_at_sigma_max():
    ours, theirs = both("CosineDPMSolverMultistepScheduler")
    theirs.set_timesteps(1)
    assert theirs.sigmas.tolist() == pytest.approx([0.3, 0.0])
    assert ours.plan(1).sigmas == pytest.approx([0.3, 0.0])
    assert ours.plan(1, as_published=True).sigmas == [500.0, 0.0]


@pytest.mark.parametrize("make", [DPMSolverSDEScheduler, CosineDPMSolverMultistepScheduler])
def test_a_step_never_looks_at_the_numbers(make):
    run, x = make().plan(6), torch.empty(1, 3, 4, 4, device="meta")
    for i in range(len(run)):
        run.add_noise(x, x, i)
        out = run.step(run.scale_model_input(x, i), i, x, torch.empty_like)
        assert out.pred_original_sample.shape == x.shape
        x = out.prev_sample


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_cosine_keeps_the_sample_s_precision_and_its_inputs(dtype):
    run, x, output = (
        CosineDPMSolverMultistepScheduler().plan(6),
        torch.randn(1, 3, 4, 4).to(dtype),
        torch.randn(1, 3, 4, 4),
    )
    copies = x.clone(), output.clone()
    for i in range(len(run)):
        out = run.step(output, i, x, torch.randn_like)
        assert out.prev_sample.dtype == out.pred_original_sample.dtype == dtype
        assert run.scale_model_input(x, i).dtype == dtype
    assert torch.equal(x, copies[0])
    assert torch.equal(output, copies[1])
