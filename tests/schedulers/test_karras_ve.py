"""Karras's stochastic sampler."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from langevin import KarrasVeScheduler
from tests.schedulers.karras_ve_checks import CONFIGS, planned, walk
from tests.schedulers.scheduler_checks import STEPS, both, distance, finite, reference, starts


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_whole_trajectories_equal_the_reference(config):
    ours, theirs = both("KarrasVeScheduler", **config)
    for steps in STEPS[1:]:  # at a single one the reference divides by 0
        for start in starts(steps):
            want = walk(theirs, steps, start, seed=steps)
            assert finite(want)
            for got in (walk(ours, steps, start, seed=steps), planned(ours, steps, start, seed=steps)):
                assert distance(got, want) < 1e-5
                for mine, his in zip(got.originals, want.originals, strict=True):
                    torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-5 * max(1.0, his.abs().max().item()))


def test_lists_equal_the_reference():
    ours, theirs = both("KarrasVeScheduler", sigma_max=30.0)
    assert ours.timesteps is theirs.timesteps is ours.schedule is None
    assert ours.init_noise_sigma == theirs.init_noise_sigma == 30.0
    for steps in (2, 3, 18, 50):
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(steps)
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        torch.testing.assert_close(ours.schedule, theirs.schedule, rtol=1e-6, atol=0)
    x = torch.randn(2, 3, 4, 4)
    assert ours.scale_model_input(x, 3) is x
    assert len(ours.step(x, 2.0, 1.0, x, return_dict=False)) == 2
    assert len(ours.step_correct(x, 2.0, 1.0, x, x, x, return_dict=False)) == 2


def test_as_published_sigma_goes_from_max_to_min_and_noise_is_drawn_only_when_needed():
    scheduler = KarrasVeScheduler(sigma_min=0.02, sigma_max=100, s_min=0.1, s_max=1.0)
    run = scheduler.plan(18, as_published=True)
    assert len(run) == 35
    assert run.init_noise_sigma == pytest.approx(100)
    firsts = [level.sigma for level in run.levels[::2]]
    inside = [added > 0 for added in run.added]
    unraised = [s for s, raised in zip(firsts, inside, strict=True) if not raised]
    assert unraised[0] == pytest.approx(100)
    assert unraised[-1] == pytest.approx(0.02)
    assert run.targets[-1].sigma == 0.0
    for published in (True, False):
        drawn = []

        def noise(like, drawn=drawn):
            drawn.append(like.shape)
            return torch.zeros_like(like)

        run = scheduler.plan(18, as_published=published)
        x = run.begin(lambda: torch.ones(2, 3, 4, 4), noise, (2, 3, 4, 4), "cpu")
        for i in range(len(run)):
            x = run.step(x, i, x, noise).prev_sample
        assert len(drawn) == (sum(inside) if published else 18)


def believes(mean, deviation):
    """F = (x0 - x)/σ of a network that knows x0 ~ N(mean, deviation²)."""

    def output(run, i, x):
        sigma = run.levels[i].sigma
        x0 = mean + deviation**2 / (deviation**2 + sigma**2) * (x - mean)
        return (x0 - x) / sigma

    return output


def sample(run, x, believe, start=0, noise=torch.randn_like):
    for i in range(start, len(run)):
        x = run.step(believe(run, i, x), i, x, noise).prev_sample
    return x


def test_a_perfect_prediction_of_one_point_is_reached_from_any_start():
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for published, steps in itertools.product((True, False), (1, 2, 3, 7, 20)):
        for start in {0, 2 * (steps // 2), 2 * (steps - 1)}:
            run = KarrasVeScheduler().plan(steps, as_published=published)
            x = run.add_noise(point, torch.randn_like(point), start)
            end = sample(run, x, lambda run, i, x: (point - x) / run.levels[i].sigma, start)
            torch.testing.assert_close(end, point, rtol=0, atol=1e-8)


@pytest.mark.parametrize("churn", [0, 20])
def test_it_gives_a_gaussian_s_mean_and_spread(churn):
    torch.manual_seed(0)
    scheduler = KarrasVeScheduler(s_churn=churn, s_noise=1.0, sigma_max=40.0, s_max=100.0)
    for begin_with in ("begin", "init_noise_sigma"):
        run = scheduler.plan(60, as_published=True)
        z = torch.randn(1, 1, 100, 200, dtype=torch.float64)
        raised = run.begin(lambda z=z: z, torch.randn_like, z.shape, z.device)
        x = raised if begin_with == "begin" else z * run.init_noise_sigma
        end = sample(run, x, believes(0.4, 0.7))
        assert end.mean().item() == pytest.approx(0.4, abs=0.03)
        assert end.std().item() == pytest.approx(0.7, rel=0.04)


def test_without_churn_it_is_of_second_order():
    errors = []
    for steps in (25, 50, 100):
        run = KarrasVeScheduler(s_churn=0, sigma_max=50.0, sigma_min=0.01).plan(steps, as_published=True)
        spread = math.hypot(50.0, 0.7)
        x = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 8, 8) * spread
        exact = 0.4 + 0.7 * (x - 0.4) / spread
        errors.append((sample(run, x, believes(0.4, 0.7)) - exact).abs().max().item())
    assert min(math.log2(a / b) for a, b in itertools.pairwise(errors)) > 1.85, errors


def test_spacings_and_own_sigmas():
    scheduler = KarrasVeScheduler(s_churn=0, sigma_max=80.0, sigma_min=0.002)
    spaced = scheduler.with_spacing("karras", rho=7.0).plan(5)
    assert spaced.init_noise_sigma == spaced.levels[0].sigma == pytest.approx(80.0)
    firsts = [level.sigma for level in spaced.levels[::2]]
    assert firsts[-1] == pytest.approx(0.002)
    own = scheduler.plan(sigmas=[*firsts, 0.0])
    assert own.timesteps == pytest.approx(spaced.timesteps)
    assert len(scheduler.plan(sigmas=[3.0, 1.0])) == 2  # ends at σ = 1, so the last step has its second call
    with pytest.raises(ValueError, match="'leading'"):
        scheduler.with_spacing("leading").plan(5)
    with pytest.raises(ValueError, match="timesteps"):
        scheduler.plan(timesteps=[5, 3])
    with pytest.raises(TypeError, match="mood"):
        scheduler.plan(5, mood="good")


def test_what_the_reference_refuses_is_refused():
    x = torch.zeros(1, 3, 2, 2)
    for scheduler in both("KarrasVeScheduler"):
        with pytest.raises(NotImplementedError):
            scheduler.add_noise(x, x, 5)
        with pytest.raises((ValueError, TypeError)):
            scheduler.add_noise_to_input(x, 5.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_sample_keeps_its_precision_and_the_meta_device_works(dtype):
    for device in ("cpu", "meta"):
        run = KarrasVeScheduler(sigma_max=40.0, s_max=90.0).plan(4, as_published=True)
        ones = torch.ones(1, 3, 4, 4, dtype=dtype, device=device)
        x = run.begin(lambda ones=ones: ones, torch.zeros_like, ones.shape, device)
        for i in range(len(run)):
            out = run.step(x, i, x, torch.zeros_like)
            assert out.prev_sample.dtype == out.pred_original_sample.dtype == run.add_noise(x, x, i).dtype == dtype


def test_saved_here_loads_there_and_back(tmp_path):
    ours, theirs = both("KarrasVeScheduler", **CONFIGS[2])
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = [json.loads((tmp_path / who / "scheduler_config.json").read_text()) for who in ("ours", "theirs")]
    assert written[0] == written[1]
    for folder in ("ours", "theirs"):
        here, there = (make.from_pretrained(tmp_path / folder) for make in (KarrasVeScheduler, type(theirs)))
        assert distance(walk(here, 5), walk(there, 5)) < 1e-5
    assert [c.__name__ for c in ours.compatibles] == ["KarrasVeScheduler"]
    assert type(theirs) is reference().KarrasVeScheduler
