"""Reversed stochastic differential equations: variance exploding and variance preserving."""

from __future__ import annotations

import json

import pytest
import torch

from langevin import ScoreSdeVeScheduler, ScoreSdeVpScheduler
from langevin.schedulers.continuous.score_sde_ve import langevin_step
from tests.schedulers.scheduler_checks import STEPS, distance, starts
from tests.schedulers.score_sde_checks import VE, VP, both, planned_vp, score, through_plan, walk, walk_vp


@pytest.mark.parametrize("config", VE, ids=str)
def test_variance_exploding_trajectories_equal_the_reference(config):
    ours, theirs = both("ScoreSdeVeScheduler", **config)
    for steps in (*STEPS, 300):
        for start in starts(steps):
            want = walk(theirs, steps, steps, start)
            assert distance(walk(ours, steps, steps, start), want) < 1e-5
            if steps > 1:  # a single step of the reference is told σ_max, steps from σ_min, and begins with σ_max
                assert distance(through_plan(ours, steps, steps, start), want) < 1e-5


def test_the_paper_s_two_thousand_steps_equal_the_reference():
    ours, theirs = both("ScoreSdeVeScheduler", correct_steps=0)
    assert distance(through_plan(ours, 2000, seed=1), walk(theirs, 2000, seed=1)) < 1e-5


def test_variance_exploding_lists_equal_the_reference():
    for steps in (None, 1, 2, 7, 1000):
        ours, theirs = both("ScoreSdeVeScheduler", sigma_max=380.0)
        for scheduler in (ours, theirs):
            if steps:
                scheduler.set_timesteps(steps)
                scheduler.set_sigmas(steps)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=0)
        torch.testing.assert_close(ours.discrete_sigmas, theirs.discrete_sigmas, rtol=0, atol=0)
        torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=0)
        assert (ours.init_noise_sigma, len(ours)) == (theirs.init_noise_sigma, len(theirs))
        places = torch.arange(min(steps or 5, 5))
        adjacent = [scheduler.get_adjacent_sigma(places, places.float()) for scheduler in (ours, theirs)]
        torch.testing.assert_close(*adjacent, rtol=0, atol=0)
        x0, noise = torch.randn(len(places), 3, 4, 4), torch.randn(len(places), 3, 4, 4)
        torch.testing.assert_close(ours.add_noise(x0, noise, places), theirs.add_noise(x0, noise, places))
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(9, 0.01)
        scheduler.set_sigmas(9, 0.1, 5.0)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=0)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=0)
    assert ours.step_correct(x0, x0, return_dict=False)[0].shape == x0.shape
    assert len(ours.step_pred(x0, 0.5, x0, return_dict=False)) == 2


def test_variance_exploding_steps_take_a_time_per_image():
    ours, theirs = both("ScoreSdeVeScheduler")
    t, x, s = torch.tensor([1.0, 0.7, 1e-5]), torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    pair = [
        scheduler.step_pred(s, t, x, generator=torch.Generator().manual_seed(2)).prev_sample
        for scheduler in (ours, theirs)
    ]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def test_as_published_an_image_does_not_depend_on_its_batch():
    scheduler = ScoreSdeVeScheduler(sigma_max=20.0)
    x = torch.randn(3, 3, 4, 4) * torch.tensor([1.0, 5.0, 20.0]).view(3, 1, 1, 1)
    noises = torch.randn(100, 3, 3, 4, 4)

    def end(rows, **options):
        run, draws, z = scheduler.plan(10, **options), iter(noises[:, rows]), x[rows]
        for i, sigma in enumerate(run.timesteps):
            z = run.step(score(z, sigma), i, z, lambda like: next(draws)).prev_sample
        return z

    together, alone = end([0, 1, 2], as_published=True), end([1], as_published=True)
    torch.testing.assert_close(together[1:2], alone)
    assert (end([0, 1, 2])[1:2] - end([1])).abs().max() > 1e-2


def test_as_published_network_and_steps_count_with_the_same_sigma():
    run = ScoreSdeVeScheduler(sigma_min=0.1, sigma_max=10.0, correct_steps=2).plan(5, as_published=True)
    assert len(run) == 15
    sigmas = run.timesteps[::3]
    assert sigmas == pytest.approx([10.0, 10**0.5, 1.0, 10**-0.5, 0.1])
    for k, following in enumerate([*sigmas[1:], 0.0]):
        assert run.weights[3 * k : 3 * k + 2] == [None, None]
        assert run.weights[3 * k + 2].of_output == pytest.approx(sigmas[k] ** 2 - following**2)
        assert run.targets[3 * k] == run.levels[3 * k]
        assert run.targets[3 * k + 2].sigma == pytest.approx(following)


def sample(run, x, output):
    for i in range(len(run)):
        x = run.step(output(run.levels[i], x), i, x, torch.randn_like).prev_sample
    return x


@pytest.mark.parametrize("corrections", [0, 1])
@pytest.mark.parametrize("as_published", [False, True])
def test_variance_exploding_gives_a_gaussian_s_mean_and_spread(corrections, as_published):
    torch.manual_seed(0)
    scheduler = ScoreSdeVeScheduler(sigma_max=30.0, snr=0.1, correct_steps=corrections)
    run = scheduler.plan(400, as_published=as_published)
    x = torch.randn(1, 1, 100, 200, dtype=torch.float64) * run.init_noise_sigma
    end = sample(run, x, lambda level, x: -(x - 0.4) / (0.7**2 + level.sigma**2))
    assert end.mean().item() == pytest.approx(0.4, abs=0.05)
    assert end.std().item() == pytest.approx(0.7, rel=0.06)


def test_variance_exploding_reaches_the_point_of_a_perfect_prediction():
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for steps in (1, 2, 7, 30):
        run = ScoreSdeVeScheduler(sigma_max=30.0).plan(steps, as_published=True)
        x = run.add_noise(point, torch.randn_like(point), 0)
        end = sample(run, x, lambda level, x: (point - x) / level.sigma**2)
        torch.testing.assert_close(end, point, rtol=0, atol=1e-8)
        out = run.step((point - x) / run.levels[0].sigma ** 2, 0, x, torch.randn_like)
        torch.testing.assert_close(out.pred_original_sample, point, rtol=0, atol=1e-8)


def test_corrections_alone_lead_to_the_distribution():
    """Langevin dynamics at one σ, begun outside it."""
    torch.manual_seed(0)
    x = torch.full((1, 1, 100, 100), 1.5, dtype=torch.float64)
    for _ in range(400):
        x = langevin_step(x, -(x - 0.4) / 0.7**2, torch.randn_like(x), 0.2)
    assert x.mean().item() == pytest.approx(0.4, abs=0.03)
    assert x.std().item() == pytest.approx(0.7, rel=0.05)


def test_spacings_and_own_sigmas():
    scheduler = ScoreSdeVeScheduler(correct_steps=0, sigma_max=80.0, sigma_min=0.002)
    spaced = scheduler.with_spacing("karras").plan(6)
    assert spaced.timesteps[0] == pytest.approx(80.0)
    assert spaced.timesteps[-1] == pytest.approx(0.002)
    own = scheduler.plan(sigmas=[*spaced.timesteps, 0.0])
    torch.testing.assert_close(torch.tensor(own.weights), torch.tensor(spaced.weights))
    with pytest.raises(ValueError, match="'leading'"):
        scheduler.with_spacing("leading").plan(5)
    for make, word in ((ScoreSdeVeScheduler, "give sigmas"), (ScoreSdeVpScheduler, "descending, at most 1")):
        with pytest.raises(ValueError, match=word):
            make().plan(timesteps=[5, 3])
        with pytest.raises(TypeError, match="mood"):
            make().plan(5, mood="good")


# -- variance preserving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", VP, ids=str)
def test_variance_preserving_trajectories_equal_the_reference(config):
    ours, theirs = both("ScoreSdeVpScheduler", **config)
    for steps in (*STEPS, 300):
        for start in starts(steps):
            want = walk_vp(theirs, steps, steps, start)
            assert distance(walk_vp(ours, steps, steps, start), want) < 1e-5
            assert distance(planned_vp(ours, steps, steps, start), want) < 1e-5
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=0)
    t, x = torch.tensor([1.0, 0.5, 0.01]), torch.randn(3, 3, 4, 4)
    pair = [scheduler.step_pred(x, x, t, torch.Generator().manual_seed(2)) for scheduler in (ours, theirs)]
    for mine, his in zip(*pair, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-5)
    assert len(ours) == len(theirs)


def test_variance_preserving_gives_a_gaussian_s_mean_and_spread():
    torch.manual_seed(0)
    run = ScoreSdeVpScheduler().plan(500)
    end = sample(
        run,
        torch.randn(1, 1, 100, 200, dtype=torch.float64),
        lambda level, x: (x - level.alpha * 0.4) * level.sigma / (level.sigma**2 + (level.alpha * 0.7) ** 2),
    )
    assert end.mean().item() == pytest.approx(0.4, abs=0.05)
    assert end.std().item() == pytest.approx(0.7, rel=0.06)


def test_variance_preserving_spacings_and_own_levels():
    scheduler = ScoreSdeVpScheduler()
    even, linspace = scheduler.plan(9), scheduler.with_spacing("linspace").plan(9)
    assert linspace.timesteps == pytest.approx(even.timesteps)
    karras = scheduler.with_spacing("karras", sigma_max=80.0, sigma_min=0.05).plan(9)
    assert (karras.sigmas[0], karras.sigmas[-2]) == pytest.approx((80.0, 0.05))
    own = scheduler.plan(sigmas=karras.sigmas)
    assert own.timesteps == pytest.approx(karras.timesteps)
    torch.testing.assert_close(torch.tensor(own.weights), torch.tensor(karras.weights))
    assert scheduler.plan(timesteps=[0.8, 0.5, 0.1]).timesteps == pytest.approx([0.8, 0.5, 0.1])
    half = scheduler.plan(sigmas=[20.0, 5.0, 1.0])
    assert half.targets[-1].ratio == pytest.approx(1.0)
    for spacing in ("karras", "trailing"):  # both ways through it
        spaced = scheduler.with_spacing(spacing)
        assert distance(planned_vp(spaced, 8), walk_vp(spaced, 8)) < 1e-4
        run = spaced.plan(8)
        x, t = torch.randn(3, 3, 4, 4), torch.tensor(run.timesteps)[[0, 2, 5]]  # a time per image
        each = spaced.step_pred(x, x, t)[1]
        for k in range(3):
            torch.testing.assert_close(each[k : k + 1], spaced.step_pred(x[k : k + 1], x[k : k + 1], t[k])[1])


def test_a_spaced_variance_preserving_run_gives_a_gaussian_s_mean_and_spread():
    torch.manual_seed(0)
    run = ScoreSdeVpScheduler().with_spacing("sgm_uniform").plan(400)
    end = sample(
        run,
        torch.randn(1, 1, 100, 200, dtype=torch.float64),
        lambda level, x: (x - level.alpha * 0.4) * level.sigma / (level.sigma**2 + (level.alpha * 0.7) ** 2),
    )
    assert end.mean().item() == pytest.approx(0.4, abs=0.05)
    assert end.std().item() == pytest.approx(0.7, rel=0.06)


def test_variance_preserving_levels_are_the_solution_of_the_forward_sde():
    """dα/dt = -β(t)/2·α, integrated in small steps; noise for training and a run's levels agree with it."""
    scheduler = ScoreSdeVpScheduler()
    alpha, n = 1.0, 20000
    for k in range(n // 2):
        alpha *= 1 - 0.5 * (0.1 + (k + 0.5) / n * 19.9) / n
    x0, noise = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert scheduler.add_noise(x0, noise, 0.5).mean().item() == pytest.approx(alpha, rel=1e-3)
    run = scheduler.plan(5)
    assert all(level.alpha**2 + level.sigma**2 == pytest.approx(1.0) for level in run.levels)
    made = scheduler.add_noise(x0, noise + 1, torch.tensor([run.timesteps[2]]))
    torch.testing.assert_close(made, run.add_noise(x0, noise + 1, 2))


def test_what_the_reference_refuses_is_refused():
    x = torch.zeros(1, 3, 2, 2)
    for scheduler in both("ScoreSdeVpScheduler"):
        with pytest.raises(ValueError, match="set_timesteps"):
            scheduler.step_pred(x, x, torch.tensor(0.5))


@pytest.mark.parametrize("make", [ScoreSdeVeScheduler, ScoreSdeVpScheduler])
def test_precision_the_meta_device_and_how_often_noise_is_drawn(make):
    for dtype, device in ((torch.float16, "cpu"), (torch.float64, "cpu"), (torch.float32, "meta")):
        drawn = []

        def noise(like, drawn=drawn):
            drawn.append(like.shape)
            return torch.ones_like(like)

        run = make().plan(5)
        x = torch.ones(2, 3, 4, 4, dtype=dtype, device=device)
        for i in range(len(run)):
            before = x.clone()
            out = run.step(x, i, x, noise)
            assert out.prev_sample.dtype == out.pred_original_sample.dtype == run.add_noise(x, x, i).dtype == dtype
            assert device == "meta" or torch.equal(x, before)
        assert drawn == [(2, 3, 4, 4)] * (len(run) - 1)  # none into the image itself


@pytest.mark.parametrize("name", ["ScoreSdeVeScheduler", "ScoreSdeVpScheduler"])
def test_saved_here_loads_there_and_back(name, tmp_path):
    ours, theirs = both(name, sampling_eps=0.002)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = [json.loads((tmp_path / who / "scheduler_config.json").read_text()) for who in ("ours", "theirs")]
    assert written[0] == written[1]
    through = walk if name == "ScoreSdeVeScheduler" else walk_vp
    for folder in ("ours", "theirs"):
        here, there = (type(scheduler).from_pretrained(tmp_path / folder) for scheduler in (ours, theirs))
        assert distance(through(here, 5), through(there, 5)) < 1e-5
    assert [c.__name__ for c in ours.compatibles] == [name]
