"""RePaint: the known part, and the jumps."""

from __future__ import annotations

import json
import math

import pytest
import torch

from langevin import DDIMScheduler, RePaintScheduler
from langevin.schedulers.timesteps.repaint import levels_of_jumps
from tests.schedulers.meaning_checks import gaussian_belief, told
from tests.schedulers.repaint_checks import CONFIGS, picture, walk
from tests.schedulers.scheduler_checks import both, distance, planned, reference

JUMPS = [(10, 10), (3, 2), (1, 4), (5, 1)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(config) or "default")
def test_whole_trajectories_equal_the_reference(config):
    ours, theirs = both("RePaintScheduler", **config)
    original, mask = picture()
    # Unbounded x0 of the first levels, passed ten times over, multiply fp32's rounding.
    dtype = torch.float64 if config.get("clip_sample") is False else torch.float32
    for steps, which in {1: JUMPS[:1], 2: JUMPS, 3: JUMPS, 7: JUMPS, 20: JUMPS[:2], 50: JUMPS[1:2]}.items():
        for jumps in which:
            want = walk(theirs, steps, jumps, steps, dtype)
            options = {"mask": mask, "original": original, "jump_length": jumps[0], "jump_n_sample": jumps[1]}
            for got in (
                walk(ours, steps, jumps, steps, dtype),
                planned(ours, steps, seed=steps, dtype=dtype, **options),
            ):
                assert distance(got, want) < 1e-5
                for mine, his in zip(got.originals, want.originals, strict=True):
                    torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-4 * max(1.0, his.abs().max().item()))


def test_eta_may_be_set_as_the_pipeline_does():
    pair = both("RePaintScheduler")
    for scheduler in pair:
        scheduler.eta = 0.7
    want = walk(pair[1], 12, (3, 3))
    assert distance(walk(pair[0], 12, (3, 3)), want) < 1e-5
    original, mask = picture()
    options = {"mask": mask, "original": original, "jump_length": 3, "jump_n_sample": 3}
    assert distance(planned(RePaintScheduler(), 12, eta=0.7, **options), want) < 1e-5


def test_lists_equal_the_reference():
    ours, theirs = both("RePaintScheduler", num_train_timesteps=300)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    for steps in (1, 2, 10, 11, 25, 250, 300, 400):
        for jumps in JUMPS:
            for scheduler in (ours, theirs):
                scheduler.set_timesteps(steps, *jumps)
            assert ours.timesteps.tolist() == theirs.timesteps.tolist()
            assert ours.num_inference_steps == theirs.num_inference_steps
    for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)
    assert ours.init_noise_sigma == theirs.init_noise_sigma


def test_the_path_of_levels_is_the_paper_s():
    assert levels_of_jumps(5, 2, 1) == [4, 3, 2, 1, 0]
    assert levels_of_jumps(5, 2, 2) == [4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0]
    assert len(levels_of_jumps(250, 10, 10)) == 4570  # the paper's setting


def test_without_mask_and_jumps_it_is_ddim():
    plain = planned(DDIMScheduler(), 10, eta=0.5)
    assert distance(planned(RePaintScheduler(), 10, eta=0.5, jump_n_sample=1), plain) < 1e-6


@pytest.mark.parametrize("steps", [20, 100, 1000])
def test_as_published_the_way_up_ends_where_the_next_call_begins(steps):
    """The coefficients of the step down and the way up lead from one call's level to the next call's."""
    for published in (True, False):
        run = RePaintScheduler().plan(steps, jump_length=4, jump_n_sample=3, as_published=published)
        worst = 0.0
        for i in range(len(run) - 1):
            alpha, sigma = run.targets[i]
            for of_x, of_noise in run.undo[i]:
                alpha, sigma = of_x * alpha, math.hypot(of_x * sigma, of_noise)
            worst = max(worst, abs(alpha - run.levels[i + 1].alpha))
        assert worst < 1e-6 if published or steps == 1000 else worst > 1e-3


def test_the_known_part_is_kept_and_the_unknown_follows_it():
    """Pairs of pixels that are equal in every picture: where one is known, the other comes out the same."""
    torch.manual_seed(0)
    original = torch.randn(1, 1, 300, 2, dtype=torch.float64) * 0.7 + 0.4
    original[..., 1] = original[..., 0]
    mask = torch.tensor([1.0, 0.0], dtype=torch.float64)
    scheduler = RePaintScheduler(clip_sample=False, eta=1.0)
    run = scheduler.plan(100, mask=mask, original=original, jump_length=5, jump_n_sample=5, as_published=True)

    def belief(run, i, x):
        """E[x0 | x] of two equal pixels: their mean is all there is to know."""
        alpha, sigma = run.levels[i]
        both = x.mean(-1, keepdim=True)
        gain = alpha * 0.49 / (alpha**2 * 0.49 + sigma**2 / 2)
        return (0.4 + gain * (both - alpha * 0.4)).expand_as(x)

    x = torch.randn_like(original)
    for i in range(len(run)):
        x = run.step(told("epsilon", belief(run, i, x), run, i, x), i, x, torch.randn_like).prev_sample
    torch.testing.assert_close(x[..., 0], original[..., 0])
    assert (x[..., 1] - original[..., 1]).std() < 0.2  # it would be 1 if the parts knew nothing of each other


def test_all_unknown_it_gives_a_gaussian_s_mean_and_spread():
    torch.manual_seed(0)
    run = RePaintScheduler(clip_sample=False, eta=1.0).plan(250, jump_length=10, jump_n_sample=2, as_published=True)
    x, believe = torch.randn(1, 1, 100, 100, dtype=torch.float64), gaussian_belief(0.4, 0.7)
    for i in range(len(run)):
        x = run.step(told("epsilon", believe(run, i, x), run, i, x), i, x, torch.randn_like).prev_sample
    assert x.mean().item() == pytest.approx(0.4, abs=0.04)
    assert x.std().item() == pytest.approx(0.7, rel=0.06)


@pytest.mark.parametrize("spacing", ["trailing", "karras", "linspace"])
def test_with_a_spacing_both_ways_up_end_where_the_next_call_begins(spacing):
    spaced = RePaintScheduler(eta=0.3).with_spacing(spacing)
    levels = DDIMScheduler().with_spacing(spacing).plan(20, as_published=True).levels
    for published in (True, False):
        run = spaced.plan(20, jump_length=4, jump_n_sample=3, as_published=published)
        assert sorted(set(run.levels)) == sorted(levels)
        for i in range(len(run) - 1):
            alpha, sigma = run.targets[i]
            assert len(run.undo[i]) <= (1 if published else 4)
            for of_x, of_noise in run.undo[i]:
                alpha, sigma = of_x * alpha, math.hypot(of_x * sigma, of_noise)
            assert (alpha, sigma) == pytest.approx(run.levels[i + 1], abs=1e-9)
    original, mask = picture()
    options = {"mask": mask, "original": original, "jump_length": 3, "jump_n_sample": 2}
    assert distance(planned(spaced, 12, **options), walk(spaced, 12, (3, 2))) < 1e-4
    own = [999, 700, 300, 20]
    run = RePaintScheduler().plan(timesteps=own, jump_length=2, jump_n_sample=2)
    assert run.timesteps == [999, 700, 300, 20, 300, 20]


def test_what_makes_no_sense_is_refused():
    x = torch.zeros(1, 3, 2, 2)
    for scheduler in both("RePaintScheduler"):
        with pytest.raises(NotImplementedError):
            scheduler.add_noise(x, x, 5)
        with pytest.raises((ValueError, TypeError)):
            scheduler.step(x, 5, x, x, x)
    for make in (RePaintScheduler, reference().RePaintScheduler):
        with pytest.raises(NotImplementedError, match="quartic"):
            make(beta_schedule="quartic")
    scheduler = RePaintScheduler()
    with pytest.raises(ValueError, match="mask and original"):
        scheduler.plan(5, mask=x)
    with pytest.raises(ValueError, match="jump_length=0"):
        scheduler.plan(5, jump_length=0)
    with pytest.raises(ValueError, match="descending"):
        scheduler.plan(timesteps=[3, 5])
    with pytest.raises(TypeError, match="mood"):
        scheduler.plan(5, mood="good")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_the_meta_device_and_inputs_that_stay(dtype):
    for device in ("cpu", "meta"):
        x = torch.ones(2, 3, 4, 4, dtype=dtype, device=device)
        run = RePaintScheduler(eta=0.5).plan(6, mask=x[:, :1], original=x, jump_length=2, jump_n_sample=2)
        for i in range(len(run)):
            out = run.step(x, i, x, torch.zeros_like)
            assert out.prev_sample.dtype == out.pred_original_sample.dtype == dtype
            assert out.prev_sample.shape == x.shape
            assert device == "meta" or torch.equal(x, torch.ones_like(x))


def test_saved_here_loads_there_and_back(tmp_path):
    ours, theirs = both("RePaintScheduler", eta=0.4, beta_schedule="scaled_linear")
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = [json.loads((tmp_path / who / "scheduler_config.json").read_text()) for who in ("ours", "theirs")]
    assert written[0] == written[1]
    for folder in ("ours", "theirs"):
        here, there = (make.from_pretrained(tmp_path / folder) for make in (RePaintScheduler, type(theirs)))
        assert distance(walk(here, 5, (2, 2)), walk(there, 5, (2, 2))) < 1e-5
    assert [c.__name__ for c in ours.compatibles] == ["RePaintScheduler"]
