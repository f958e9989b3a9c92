"""Flow matching: the reference's numbers, and what straight lines must do without it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import langevin
from langevin import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from tests.schedulers.scheduler_checks import (
    STEPS,
    both,
    distance,
    familiar,
    finite,
    planned,
    reference,
    same_as_reference,
    starts,
)

EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
DYNAMIC = {"use_dynamic_shifting": True}
CASES = [
    (EULER, {}, {}),
    (EULER, {"shift": 3.0}, {}),
    (EULER, {"shift": 0.5, "num_train_timesteps": 500}, {}),
    (EULER, {**DYNAMIC, "shift": 3.0}, {"mu": 0.8}),
    (EULER, {**DYNAMIC, "time_shift_type": "linear"}, {"mu": 2.5}),
    (EULER, {"shift": 3.0, "shift_terminal": 0.1}, {}),
    (EULER, {**DYNAMIC, "shift_terminal": 0.02}, {"mu": 1.15}),
    (EULER, {"shift": 3.0, "invert_sigmas": True}, {}),
    *((EULER, {f"use_{kind}_sigmas": True, "shift": 3.0}, {}) for kind in ("karras", "exponential", "beta")),
    (EULER, {**DYNAMIC, "use_karras_sigmas": True, "shift_terminal": 0.05, "invert_sigmas": True}, {"mu": 0.5}),
    (EULER, {"stochastic_sampling": True, "shift": 3.0}, {}),
    (EULER, {"stochastic_sampling": True, "invert_sigmas": True}, {}),
    (HEUN, {}, {}),
    (HEUN, {"shift": 3.0}, {}),
    (HEUN, {"shift": 0.7, "num_train_timesteps": 500}, {}),
]


def pair(name, **config):
    """Ours and the reference's, which has neither of the two things that every other of its schedulers has."""
    ours, theirs = both(name, **config)
    theirs.init_noise_sigma = 1.0
    theirs.scale_model_input = lambda x, t: x
    return ours, theirs


def own_rounding(theirs) -> float:
    """Its Heun divides by σ what it multiplied by σ, always in fp32."""
    return max(1e-5, 1e-7 / theirs.sigmas[-2].item()) if theirs.order == 2 else 1e-5


def label(value):
    return "-".join(f"{k}={v}" for k, v in value.items()) or "plain" if isinstance(value, dict) else None


# -- numbers of the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "config", "options"), CASES, ids=label)
def test_whole_trajectories_equal_the_reference(name, config, options):
    if config.get("use_beta_sigmas"):
        pytest.importorskip("scipy", reason="the reference needs scipy for beta sigmas")
    ours, theirs = pair(name, **config)
    for steps in STEPS:
        set_with = {"num_inference_steps": steps, **options}
        theirs.set_timesteps(**set_with)
        if not theirs.sigmas.isfinite().all():
            assert (steps, "shift_terminal" in config) == (1, True)  # it divides 0 by 0
            assert finite(planned(ours, set_with=set_with))
            continue
        for start in starts(steps, ours.order):
            tolerance = own_rounding(theirs)
            same_as_reference(ours, theirs, None, start, seed=steps, set_with=set_with, tolerance=tolerance)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    "churn", [{"s_churn": 4.0}, {"s_churn": 100.0, "s_tmin": 0.2, "s_tmax": 0.9, "s_noise": 1.01}], ids=label
)
def test_churned_trajectories_equal_the_reference(shift, churn):
    ours, theirs = pair(HEUN, shift=shift)
    for steps in STEPS:
        for start in starts(steps, 2):
            theirs.set_timesteps(steps)
            same_as_reference(ours, theirs, steps, start, seed=steps, tolerance=own_rounding(theirs), **churn)


@pytest.mark.parametrize(("name", "config", "options"), CASES, ids=label)
def test_lists_equal_the_reference(name, config, options):
    if config.get("use_beta_sigmas"):
        pytest.importorskip("scipy", reason="the reference needs scipy for beta sigmas")
    ours, theirs = pair(name, **config)
    for steps in (None, *STEPS, 999):
        if steps is not None:
            if steps == 1 and "shift_terminal" in config:
                continue
            ours.set_timesteps(steps, **options)
            theirs.set_timesteps(steps, **options)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=2e-4)
        torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-6)
    assert ours.sigma_max == pytest.approx(theirs.sigma_max)
    assert ours.sigma_min == pytest.approx(theirs.sigma_min)
    assert len(ours) == len(theirs)


CHOSEN = [0.98, 0.8, 0.55, 0.3, 0.1]


@pytest.mark.parametrize(
    "config",
    [{}, {"shift": 3.0}, DYNAMIC, {"shift": 3.0, "use_karras_sigmas": True}, {"shift_terminal": 0.1},
     {"invert_sigmas": True, "shift": 2.0}],
    ids=label,
)  # fmt: skip
@pytest.mark.parametrize(
    "given",
    [{"sigmas": CHOSEN}, {"timesteps": [900.0, 512.0, 300.0, 7.0]}, {"num_inference_steps": 5, "sigmas": CHOSEN},
     {"sigmas": CHOSEN, "timesteps": [990.0, 900.0, 400.0, 300.0, 3.0]}],
    ids=lambda given: "+".join(given),
)  # fmt: skip
def test_chosen_sigmas_and_timesteps_equal_the_reference(config, given):
    ours, theirs = pair(EULER, **config)
    given = {**given, **({"mu": 0.8} if config is DYNAMIC else {})}
    for start in (0, 2):
        same_as_reference(ours, theirs, None, start, ways=(familiar,), set_with=given)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-6)


def test_plan_is_told_where_to_end():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    want = familiar(scheduler, set_with={"sigmas": CHOSEN})
    assert distance(planned(scheduler, set_with={"sigmas": [*CHOSEN, 0.0]}), want) < 1e-6
    assert scheduler.plan(sigmas=[0.9, 0.4], as_published=True).sigmas == [0.9, 0.4]


@pytest.mark.parametrize("config", [{}, {"shift": 3.0}, {"invert_sigmas": True}], ids=label)
def test_noise_for_training_and_image_to_image_equals_the_reference(config):
    ours, theirs = pair(EULER, **config)
    x0, noise = torch.randn(3, 3, 5, 5), torch.randn(3, 3, 5, 5)
    for steps in (None, 7):
        if steps:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
        t = theirs.timesteps[[0, 3, 6]]
        torch.testing.assert_close(
            ours.scale_noise(x0, t, noise), theirs.scale_noise(x0, t, noise), rtol=1e-5, atol=1e-6
        )
    for scheduler in (ours, theirs):
        scheduler.set_begin_index(2)
    torch.testing.assert_close(ours.scale_noise(x0, t, noise), theirs.scale_noise(x0, t, noise), rtol=1e-5, atol=1e-6)
    for scheduler in (ours, theirs):
        scheduler.step(x0, scheduler.timesteps[2], x0)
        assert (scheduler.begin_index, scheduler.step_index) == (2, 3)
    torch.testing.assert_close(ours.scale_noise(x0, t, noise), theirs.scale_noise(x0, t, noise), rtol=1e-5, atol=1e-6)


def test_heuns_noise_begins_the_run_as_the_reference_does():
    x0, noise = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    ends = []
    for scheduler in pair(HEUN, shift=2.0):
        scheduler.set_timesteps(6)
        t = scheduler.timesteps[4]
        x = scheduler.scale_noise(x0, t, noise)
        assert scheduler.step_index == 4
        ends.append([x])
        for t in scheduler.timesteps[4:]:
            assert scheduler.state_in_first_order == (scheduler.step_index % 2 == 0)
            x = scheduler.step(x.tanh(), t, x).prev_sample
            ends[-1].append(x)
    for mine, his in zip(*ends, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stochastic", [False, True])
def test_steps_per_token_equal_the_reference(stochastic):
    x, output = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    own = torch.tensor([[1000.0, 700.0, 333.3, 12.0, 0.0, 500.0], [0.0, 0.0, 999.0, 250.0, 1.0, 80.0]])
    ends = []
    for scheduler in pair(EULER, stochastic_sampling=stochastic, shift=2.0):
        scheduler.set_timesteps(7)
        own[0, 5] = scheduler.timesteps[3] + 4e-4  # as good as at that level: the next lower one is meant
        generator = torch.Generator().manual_seed(4)
        path = [x]
        for t in scheduler.timesteps[:3]:
            here = scheduler.step(output, t, path[-1], generator=generator, per_token_timesteps=own)
            path.append(here.prev_sample)
        ends.append(path)
    for mine, his in zip(*ends, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-5)


def test_shifts_equal_the_reference():
    t = np.array([1.0, 0.7, 0.2, 0.01])
    for kind in ("exponential", "linear"):
        ours, theirs = pair(EULER, time_shift_type=kind, shift_terminal=0.1)
        for exponent in (1.0, 1.5):
            assert ours.time_shift(0.8, exponent, t) == pytest.approx(theirs.time_shift(0.8, exponent, t))
        for values in (t, torch.tensor(t)):
            mine, his = ours.stretch_shift_to_terminal(values), theirs.stretch_shift_to_terminal(values)
            torch.testing.assert_close(torch.as_tensor(mine), torch.as_tensor(his))
        for scheduler in (ours, theirs):
            scheduler.set_shift(4.0)
            scheduler.set_timesteps(5)
            assert scheduler.shift == 4.0
        torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "config"),
    [(EULER, {}), (EULER, {"shift": 3.0, "shift_terminal": 0.1}), (HEUN, {}), (HEUN, {"shift": 2.0})],
)
def test_saved_here_loads_there_and_back(name, config, tmp_path):
    for scheduler, folder in zip(both(name, **config), ("ours", "theirs"), strict=True):
        scheduler.save_pretrained(tmp_path / folder)
        make, remake = (type(s) for s in both(name))
        loaded = make.from_pretrained(tmp_path / folder), remake.from_pretrained(tmp_path / folder)
        swapped = make.from_config(loaded[0].config), remake.from_config(loaded[1].config)
        for here, there in (loaded, swapped):
            there.init_noise_sigma, there.scale_model_input = 1.0, lambda x, t: x
            same_as_reference(here, there, 7)


def test_ends_that_another_scheduler_left_in_the_config_hold_as_in_the_reference():
    config = {"sigma_min": 0.05, "sigma_max": 0.9, "use_karras_sigmas": True, "prediction_type": "epsilon"}
    ours, theirs = (type(s).from_config(config) for s in both(EULER))
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "given", "word"),
    [
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, {"num_inference_steps": 3}, "use_karras_sigmas"),
        ({"time_shift_type": "cubic"}, {"num_inference_steps": 3}, "cubic"),
        (DYNAMIC, {"num_inference_steps": 3}, "mu"),
        ({}, {"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "same"),
        ({}, {"num_inference_steps": 3, "timesteps": [900.0]}, "same"),
        ({}, {"timesteps": [900.0], "sigmas": [1.0, 0.5]}, "same"),
        ({}, {}, "one of"),
    ],
    ids=str,
)
def test_what_the_reference_refuses_is_refused(config, given, word):
    for library, errors in ((reference(), (ValueError, TypeError)), (langevin, ValueError)):
        with pytest.raises(errors) as caught:
            getattr(library, EULER)(**config).set_timesteps(**given)
    assert word in str(caught.value)


def test_whole_timesteps_and_steps_without_a_run_are_refused():
    x = torch.zeros(1, 3, 2, 2)
    for name in (EULER, HEUN):
        for scheduler in pair(name):
            scheduler.set_timesteps(5)
            for t in (0, torch.tensor(3)):
                with pytest.raises(ValueError, match=r"integer|whole"):
                    scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="set_timesteps"):
        FlowMatchHeunDiscreteScheduler().step(x, 1000.0, x)


# -- without the reference -------------------------------------------------------------------------------------------


def sample(run, x, believe, start=0, noise=torch.randn_like):
    """With the network that believes in x0 = believe(level, x): its output is (x - x0)/σ."""
    for i in range(start, len(run)):
        level = run.levels[i]
        x0 = believe(level, x)
        flow = (x - level.alpha * x0) / max(level.sigma, 1e-12) - x0
        x = run.step(-flow if run.inverted else flow, i, x, noise).prev_sample
    return x


def gaussian(mean=0.4, deviation=0.7):
    def x0(level, x):
        alpha, sigma = level
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return x0


DETERMINISTIC = [
    *(
        FlowMatchEulerDiscreteScheduler(**config)
        for config in (
            {},
            {"shift": 3.0},
            {"invert_sigmas": True, "shift": 2.0},
            {"shift_terminal": 0.1},
            {"use_karras_sigmas": True},
            {"stochastic_sampling": True},
            {"stochastic_sampling": True, "invert_sigmas": True},
        )
    ),
    FlowMatchHeunDiscreteScheduler(shift=3.0),
    *(FlowMatchEulerDiscreteScheduler(shift=2.0).with_spacing(kind) for kind in ("exponential", "trailing", "uniform")),
]


@pytest.mark.parametrize("scheduler", DETERMINISTIC, ids=lambda s: type(s).__name__)
def test_a_perfect_prediction_of_one_point_is_reached_from_any_start(scheduler):
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    churns = [{}, {"s_churn": 3.0}] if "s_churn" in scheduler.run_options else [{}]
    for steps, churn in itertools.product(STEPS, churns):
        for start in starts(steps, scheduler.order):
            run = scheduler.plan(steps, as_published=True, **churn)
            x = run.add_noise(point, torch.randn_like(point), start)
            torch.testing.assert_close(sample(run, x, lambda *_: point, start), point, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("scheduler", "order"),
    [
        (FlowMatchEulerDiscreteScheduler(), 1.0),
        (FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=True), 1.0),
        (FlowMatchHeunDiscreteScheduler(), 2.0),
        (FlowMatchHeunDiscreteScheduler(shift=3.0), 2.0),
    ],
)
def test_error_falls_as_fast_as_the_solver_promises(scheduler, order):
    errors = []
    for steps in (25, 50, 100):
        run = scheduler.plan(steps, as_published=True)
        x = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
        errors.append((sample(run, x, gaussian()) - (0.4 + 0.7 * x)).abs().max().item())
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(measured) > order - 0.15, (errors, measured)


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), {}),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, invert_sigmas=True), {}),
        (FlowMatchHeunDiscreteScheduler(shift=2.0), {"s_churn": 10.0}),
    ],
    ids=["stochastic", "stochastic inverted", "churn"],
)
def test_stochastic_runs_give_a_gaussians_mean(scheduler, options):
    torch.manual_seed(0)
    run = scheduler.plan(100, as_published=True, **options)
    x = torch.randn(1, 1, 100, 200, dtype=torch.float64)
    end = sample(run, x, gaussian())
    assert end.mean().item() == pytest.approx(0.4, abs=0.03)
    if options:  # going to x0 and back, as a consistency model does, keeps the mean of a Gaussian, not its spread
        assert end.std().item() == pytest.approx(0.7, rel=0.05)


def test_levels_are_shifted_exactly_once_if_asked():
    for make in (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler):
        even = np.linspace(1, 0.001, 5)
        visited = list(dict.fromkeys(make(shift=3.0).plan(5, as_published=True).sigmas))
        assert visited == pytest.approx([*(3 * even / (1 + 2 * even)), 0.0])
        assert make(shift=3.0).plan(1).sigmas == [1.0, 0.0]
        assert make(shift=1.0).plan(5).sigmas == make(shift=1.0).plan(5, as_published=True).sigmas


def test_chosen_timesteps_and_sigmas_agree_if_asked():
    for config in ({"shift": 3.0}, {"shift": 3.0, "shift_terminal": 0.1}, {"use_karras_sigmas": True}):
        scheduler = FlowMatchEulerDiscreteScheduler(**config)
        by_sigma = scheduler.plan(sigmas=[*CHOSEN, 0.0], as_published=True)
        by_time = scheduler.plan(timesteps=[1000 * sigma for sigma in CHOSEN], as_published=True)
        assert by_sigma.sigmas == pytest.approx([*CHOSEN, 0.0])
        assert (by_time.sigmas, by_time.timesteps) == (
            pytest.approx(by_sigma.sigmas),
            pytest.approx(by_sigma.timesteps),
        )


def test_the_shift_grows_with_the_image():
    scheduler = FlowMatchEulerDiscreteScheduler(base_shift=0.5, max_shift=1.15)
    assert scheduler.mu_for(256) == pytest.approx(0.5)
    assert scheduler.mu_for(4096) == pytest.approx(1.15)
    assert scheduler.mu_for((256 + 4096) // 2) == pytest.approx((0.5 + 1.15) / 2)


def test_the_last_level_is_where_it_is_stretched_to():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1)
    for steps in (2, 9):
        assert scheduler.plan(steps).sigmas[-2] == pytest.approx(0.1)
    assert scheduler.plan(1).sigmas == [1.0, 0.0]


def test_tokens_move_to_the_next_level_below_their_own_and_stay_when_clean():
    run = FlowMatchEulerDiscreteScheduler().plan(4, as_published=True)
    point, noise = torch.randn(1, 3, 2, dtype=torch.float64), torch.randn(1, 3, 2, dtype=torch.float64)
    own = torch.tensor([[0.9, 0.0, run.sigmas[2]]], dtype=torch.float64)
    at = own.unsqueeze(-1)
    out = run.step_tokens(noise - point, own, (1 - at) * point + at * noise)
    reached = torch.tensor([run.sigmas[1], 0.0, run.sigmas[3]], dtype=torch.float64).view(1, 3, 1)
    torch.testing.assert_close(out.prev_sample, (1 - reached) * point + reached * noise)
    torch.testing.assert_close(out.pred_original_sample, point)


def test_inverted_levels_hold_what_they_say():
    run = FlowMatchEulerDiscreteScheduler(invert_sigmas=True).plan(4)
    x0, noise = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(run.add_noise(x0, noise, 0), noise)
    assert run.sigmas[-1] == 1.0
    assert (run.levels[1].alpha, run.targets[-1].alpha) == (run.sigmas[1], 1.0)


@pytest.mark.parametrize(
    ("scheduler", "options", "calls"),
    [
        (FlowMatchEulerDiscreteScheduler(), {}, 0),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), {}, 5),
        (FlowMatchHeunDiscreteScheduler(), {}, 0),
        (FlowMatchHeunDiscreteScheduler(), {"s_churn": 1.0}, 11),
        (FlowMatchHeunDiscreteScheduler(), {"s_churn": 1.0, "as_published": True}, 5),
    ],
)
def test_a_step_never_looks_at_the_numbers_and_draws_only_what_it_needs(scheduler, options, calls):
    drawn = []

    def noise(like):
        drawn.append(like.shape)
        return torch.empty_like(like)

    run = scheduler.plan(6, **options)
    x = torch.empty(2, 3, 4, device="meta")
    for i in range(len(run)):
        run.add_noise(x, x, i)
        out = run.step(run.scale_model_input(x, i), i, x, noise)
        assert out.pred_original_sample.shape == x.shape
        x = out.prev_sample
    assert drawn == [(2, 3, 4)] * calls
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        assert run.step_tokens(x, torch.empty(2, 3, device="meta"), x, noise).prev_sample.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nothing_is_nan_and_samples_keep_their_precision(dtype):
    for name, config, options in CASES:
        for steps in (1, 2, 6):
            run = getattr(langevin, name)(**config).plan(steps, **options)
            x = torch.linspace(-3, 3, 12).reshape(1, 3, 4).to(dtype)
            for i in range(len(run)):
                out = run.step(torch.tanh(x), i, x)
                x = out.prev_sample
                for tensor in (x, out.pred_original_sample, run.add_noise(x, x, i)):
                    assert tensor.isfinite().all(), (config, steps, i)
                    assert tensor.dtype == dtype
