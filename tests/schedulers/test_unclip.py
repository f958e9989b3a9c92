"""unCLIP's DDPM."""

from __future__ import annotations

import json
import math

import pytest
import torch

from langevin import DDPMScheduler, UnCLIPScheduler
from tests.schedulers.meaning_checks import FORMS, gaussian_belief, sample, told
from tests.schedulers.scheduler_checks import STEPS, both, distance, network, planned, reference, starts
from tests.schedulers.unclip_checks import CONFIGS, SHAPE, walk


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_whole_trajectories_equal_the_reference(config):
    ours, theirs = both("UnCLIPScheduler", **config)
    channels = 8 if "variance_type" in config else 4
    for steps in STEPS[1:]:  # at a single one the reference divides by 0
        for start in starts(steps):
            want = walk(theirs, steps, start, seed=steps)
            got = walk(ours, steps, start, seed=steps)
            assert distance(got, want) < 1e-5
            assert distance(planned(ours, steps, start, seed=steps, channels=channels), want) < 1e-5
            for mine, his in zip(got.originals, want.originals, strict=True):
                scale = max(1.0, his.abs().max().item())
                torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("config", CONFIGS[:2] + CONFIGS[4:5], ids=str)
def test_steps_to_the_timestep_before_equal_the_reference(config):
    ours, theirs = both("UnCLIPScheduler", num_train_timesteps=60, **config)
    want = walk(theirs, 60, seed=3, consecutive=True)
    assert distance(walk(ours, 60, seed=3, consecutive=True), want) < 1e-5
    channels = 8 if "variance_type" in config else 4
    assert distance(planned(ours, 60, seed=3, channels=channels), want) < 1e-5
    ours, theirs = both("UnCLIPScheduler", **config)
    x = torch.randn(SHAPE)
    for t, goal in ((999, None), (500, 499), (1, None), (1, 0), (0, None), (3, -1), (700, 2)):
        if channels == 8 and goal == -1:
            continue  # log 0 there; here it is DDPM's least variance
        pair = [
            scheduler.step(
                network(x, t, channels), t, x, prev_timestep=goal, generator=torch.Generator().manual_seed(4)
            )
            for scheduler in (ours, theirs)
        ]
        scale = max(1.0, pair[1].prev_sample.abs().max().item())
        torch.testing.assert_close(pair[0].prev_sample, pair[1].prev_sample, rtol=1e-5, atol=1e-5 * scale)


def test_lists_equal_the_reference():
    ours, theirs = both("UnCLIPScheduler")
    for name in ("betas", "alphas", "alphas_cumprod"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)
    for steps in (None, 2, 3, 7, 25, 333, 999, 1000):
        for scheduler in (ours, theirs):
            if steps:
                scheduler.set_timesteps(steps)
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert ours.init_noise_sigma == theirs.init_noise_sigma == 1.0
    x0, noise, t = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([5, 900])
    torch.testing.assert_close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t))


def test_what_the_reference_refuses_is_refused():
    x = torch.zeros(1, 3, 2, 2)
    for make in (UnCLIPScheduler, reference().UnCLIPScheduler):
        with pytest.raises(ValueError, match="squaredcos_cap_v2"):
            make(beta_schedule="linear")
        for wrong in ({"prediction_type": "v_prediction"}, {"variance_type": "fixed_small"}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                make(**wrong).step(x, 500, x)
    with pytest.raises(ValueError, match="v_prediction"):
        UnCLIPScheduler(prediction_type="v_prediction").plan(5)
    with pytest.raises(ValueError, match="twice the sample's channels"):
        UnCLIPScheduler(variance_type="learned_range").step(x, 500, x)


def test_a_single_step_begins_at_the_noisiest_timestep():
    run = UnCLIPScheduler().plan(1)
    assert run.timesteps == [999]
    assert run.targets == [(1.0, 0.0)]


@pytest.mark.parametrize("form", ["epsilon", "sample"])
def test_a_perfect_prediction_of_one_point_is_reached(form):
    assert form in FORMS
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for steps in (1, 2, 3, 20):
        run = UnCLIPScheduler(prediction_type=form, clip_sample=False).plan(steps)
        end = sample(run, torch.randn_like(point), lambda *_: point, form)
        torch.testing.assert_close(end, point, rtol=0, atol=1e-3)  # β_0 and 1 - ᾱ_0 are rounded apart by 5e-4


def test_it_gives_a_gaussian_s_mean_and_spread():
    torch.manual_seed(0)
    run = UnCLIPScheduler(clip_sample=False).plan(250)
    end = sample(run, torch.randn(1, 1, 100, 200, dtype=torch.float64), gaussian_belief(0.4, 0.7))
    assert end.mean().item() == pytest.approx(0.4, abs=0.03)
    assert end.std().item() == pytest.approx(0.7, rel=0.05)


def test_it_is_ddpm_on_the_same_noise_schedule_and_timesteps():
    config = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace", "variance_type": "fixed_small_log"}
    assert distance(planned(UnCLIPScheduler(), 20), planned(DDPMScheduler(**config), 20)) < 1e-3  # β is rounded
    run = UnCLIPScheduler(variance_type="learned_range").plan(4)
    x, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    quiet = run.step(torch.cat([zero, zero], 1), 1, x, torch.zeros_like).prev_sample
    spread = run.step(torch.cat([zero, zero], 1), 1, x, torch.ones_like).prev_sample - quiet
    alpha_bar = run.levels[1].alpha ** 2, run.targets[1].alpha ** 2
    beta = 1 - alpha_bar[0] / alpha_bar[1]
    tilde = (1 - alpha_bar[1]) / (1 - alpha_bar[0]) * beta
    assert spread.item() ** 2 == pytest.approx(math.sqrt(beta * tilde), rel=1e-4)
    assert told("epsilon", zero, run, 1, x).isfinite().all()


def test_a_prior_s_vectors_and_the_meta_device_work():
    run = UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0).plan(5)
    x = torch.empty(2, 768, device="meta", dtype=torch.float16)
    for i in range(len(run)):
        out = run.step(x, i, x, torch.empty_like)
        assert out.prev_sample.shape == out.pred_original_sample.shape == x.shape
        assert out.prev_sample.dtype == x.dtype


def test_saved_here_loads_there_and_back(tmp_path):
    ours, theirs = both("UnCLIPScheduler", variance_type="learned_range", clip_sample_range=2.0)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = [json.loads((tmp_path / who / "scheduler_config.json").read_text()) for who in ("ours", "theirs")]
    assert written[0] == written[1]
    for folder in ("ours", "theirs"):
        here, there = (make.from_pretrained(tmp_path / folder) for make in (UnCLIPScheduler, type(theirs)))
        assert distance(walk(here, 5), walk(there, 5)) < 1e-5
    assert [c.__name__ for c in ours.compatibles] == [c.__name__ for c in theirs.compatibles] == ["UnCLIPScheduler"]
