"""iPNDM: the reference's numbers, and what it must do without a reference."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import langevin
from langevin import IPNDMScheduler
from tests.schedulers.scheduler_checks import (
    STEPS,
    agrees_with_reference,
    both,
    distance,
    familiar,
    planned,
    reference,
    starts,
    widened,
)

# -- numbers of the reference ----------------------------------------------------------------------------------------


def test_whole_trajectories_equal_the_reference():
    agrees_with_reference("IPNDMScheduler", {})


@pytest.mark.parametrize("betas", [None, (1.0, 0.95, 0.8, 0.5, 0.3, 0.1, 0.01, 0.0), (0.999, 0.6, 0.2, 0.1)])
def test_whole_trajectories_equal_the_reference_in_double(betas):
    ours, theirs = both("IPNDMScheduler", trained_betas=betas)
    widened(theirs)
    for steps in STEPS if betas is None else (len(betas) - 1,):
        for start in starts(steps):
            want = familiar(theirs, steps, start, seed=steps, dtype=torch.float64)
            for through in (familiar, planned):
                got = through(ours, steps, start, seed=steps, dtype=torch.float64)
                assert distance(got, want) < 1e-6, (through.__name__, steps, start)


def test_lists_equal_the_reference():
    ours, theirs = both("IPNDMScheduler")
    for steps in (None, *STEPS, 999):
        if steps is not None:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
        for attribute in ("timesteps", "betas", "alphas"):
            torch.testing.assert_close(getattr(ours, attribute), getattr(theirs, attribute), rtol=0, atol=0)
        assert ours.init_noise_sigma == theirs.init_noise_sigma
    assert len(ours) == len(theirs) == 1000


def test_it_steps_before_set_timesteps_as_the_reference_does():
    ours, theirs = both("IPNDMScheduler", num_train_timesteps=20)
    x, output = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for scheduler in (ours, theirs):
        scheduler.set_begin_index(3)
    for t in theirs.timesteps[3:6]:
        torch.testing.assert_close(ours.step(output, t, x)[0], theirs.step(output, t, x)[0], rtol=1e-5, atol=1e-5)


def test_saved_here_loads_there_and_back(tmp_path):
    config = {"num_train_timesteps": 12, "trained_betas": [1.0, 0.7, 0.2, 0.0]}
    ours, theirs = both("IPNDMScheduler", **config)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        here = IPNDMScheduler.from_pretrained(tmp_path / folder)
        there = reference().IPNDMScheduler.from_pretrained(tmp_path / folder)
        for key, value in config.items():
            assert here.config[key] == there.config[key] == value
        assert distance(familiar(here, 3), familiar(there, 3)) < 1e-5
    assert [c.__name__ for c in ours.compatibles] == ["IPNDMScheduler"]


def test_an_unknown_timestep_is_refused_as_in_the_reference():
    for library in (reference(), langevin):
        scheduler = library.IPNDMScheduler()
        scheduler.set_timesteps(5)
        with pytest.raises((ValueError, IndexError)):
            scheduler.step(torch.zeros(1, 1), 17, torch.zeros(1, 1))


# -- without a reference ---------------------------------------------------------------------------------------------


def velocity(x0: torch.Tensor, run, i: int, x: torch.Tensor) -> torch.Tensor:
    """v of a network that believes in x0."""
    alpha, sigma = run.levels[i]
    return (alpha * x - x0) / sigma


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_a_perfect_prediction_of_one_point_is_reached(steps):
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 4)
    for start in {0, steps // 2, steps - 1}:
        run = IPNDMScheduler().plan(steps, as_published=True)
        x = run.add_noise(point, torch.randn_like(point), start)
        for i in range(start, steps):
            x = run.step(velocity(point, run, i, x), i, x).prev_sample
        torch.testing.assert_close(x, point, rtol=0, atol=1e-4)  # levels are those of fp32


def test_without_as_published_the_first_prediction_of_the_image_is_lost():
    run, right = IPNDMScheduler().plan(1), IPNDMScheduler().plan(1, as_published=True)
    x, v = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    assert torch.equal(run.step(v, 0, x).prev_sample, torch.zeros(1, 2, 4))
    out = right.step(v, 0, x)
    torch.testing.assert_close(out.prev_sample, -v)
    torch.testing.assert_close(out.pred_original_sample, -v)


def gaussian_error(steps: int, start: float, spacing: str | None = None) -> float:
    """Distance from the end of the probability-flow ODE of N(0, 0.7²), in even angles from ``start``, or spaced."""
    deviation = 0.7
    if spacing is None:
        run = IPNDMScheduler().plan(timesteps=[start * (steps - k) / steps for k in range(steps)])
    else:
        run = IPNDMScheduler().with_spacing(spacing).plan(steps)
    x = torch.ones(1, 1, dtype=torch.float64)
    alpha, sigma = run.levels[0]
    exact = deviation / math.hypot(sigma, alpha * deviation)
    for i in range(steps):
        alpha, sigma = run.levels[i]
        x0 = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * x
        x = run.step(velocity(x0, run, i, x), i, x).prev_sample
    return abs(x.item() - exact)


def test_error_falls_at_the_order_of_its_first_step():
    """Fourth order once it is under way; of lower order steps there are three, so that the whole is of second."""
    errors = [gaussian_error(steps, 0.6) for steps in (16, 32, 64)]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(measured) > 1.8, (errors, measured)


def test_own_timesteps_and_sigmas_agree():
    chosen = [0.9, 0.6, 0.5, 0.2]
    ours = planned(IPNDMScheduler(), set_with={"timesteps": chosen})
    other = planned(IPNDMScheduler(), set_with={"sigmas": [*(math.tan(t * math.pi / 2) for t in chosen), 0.0]})
    assert distance(ours, other) < 1e-5
    assert IPNDMScheduler().plan(timesteps=chosen).timesteps == pytest.approx(chosen, abs=1e-6)
    for refused in ([0.2, 0.5], [0.5, 0.5]):
        with pytest.raises(ValueError, match="descending"):
            IPNDMScheduler().plan(timesteps=refused)


def test_spacings_lay_time_or_sigma():
    times = IPNDMScheduler().with_spacing("trailing").plan(8).timesteps
    assert times == pytest.approx([1 - k / 8 for k in range(8)], abs=1e-6)
    plain, trailing = IPNDMScheduler(), IPNDMScheduler().with_spacing("trailing")
    assert plain.plan(timesteps=times).levels[1:] != plain.plan(8).levels[1:]
    for way in (familiar, planned):
        assert distance(way(trailing, 8), planned(plain, set_with={"timesteps": times})) < 1e-4
    run = plain.with_spacing("karras", sigma_max=50.0, sigma_min=0.1).plan(6)
    assert run.sigmas[0] == pytest.approx(50.0)
    assert run.sigmas[-2] == pytest.approx(0.1)
    roots = [sigma ** (1 / 7) for sigma in run.sigmas[:-1]]
    assert [a - b for a, b in itertools.pairwise(roots)] == pytest.approx([roots[0] - roots[1]] * 5)
    own = plain.with_spacing("karras").plan(6)
    quiet, noisy = plain.plan(1000).sigmas[-2], plain.plan(1000).sigmas[1]
    assert (own.sigmas[-2], own.sigmas[0]) == pytest.approx((quiet, noisy), rel=1e-3)
    assert distance(familiar(plain.with_spacing("karras"), 6), planned(plain.with_spacing("karras"), 6)) < 1e-4
    with pytest.raises(ValueError, match="descending"):
        plain.with_spacing("leading").plan(1001)
    assert gaussian_error(32, 0.6, "karras") < gaussian_error(16, 0.6, "karras")


def test_a_step_never_looks_at_the_numbers_and_keeps_precision():
    run = IPNDMScheduler().plan(6)
    x = torch.empty(1, 3, 4, device="meta", dtype=torch.float16)
    for i in range(len(run)):
        out = run.step(x, i, x)
        assert out.prev_sample.dtype == out.pred_original_sample.dtype == torch.float16
        x = out.prev_sample
