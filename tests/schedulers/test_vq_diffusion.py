"""Discrete diffusion over codes."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from langevin import VQDiffusionScheduler
from langevin.schedulers.discrete.vq_diffusion import posterior
from tests.schedulers.scheduler_checks import STEPS, both, reference, starts
from tests.schedulers.vq_diffusion_checks import CONFIGS, PLACES, network, planned, walk


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_whole_trajectories_equal_the_reference(config):
    ours, theirs = both("VQDiffusionScheduler", **config)
    for steps in (*(steps for steps in STEPS if steps <= len(ours)), len(ours)):
        for start in starts(steps):
            want = walk(theirs, steps, steps, start)
            assert torch.equal(walk(ours, steps, steps, start), want)
            assert torch.equal(planned(ours, steps, steps, start), want)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=0)
    assert (ours.num_embed, ours.mask_class) == (theirs.num_embed, theirs.mask_class)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_posteriors_equal_the_reference(config):
    ours, theirs = both("VQDiffusionScheduler", **config)
    x = torch.randint(0, ours.num_embed, (2, PLACES), generator=torch.Generator().manual_seed(1))
    x[:, ::3] = ours.mask_class
    for t in (1, 2, 7, len(ours) // 2, len(ours) - 1):
        log_p = network(x, t, ours.mask_class)
        got, want = ours.q_posterior(log_p, x, t), theirs.q_posterior(log_p, x, t)
        torch.testing.assert_close(got.exp(), want.exp(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(got.exp().sum(1), torch.ones(2, PLACES), rtol=1e-3, atol=1e-3)


def matrix(transition) -> torch.Tensor:
    """The forward process's transition as a matrix, (to, from), the mask last (equation 7)."""
    codes = transition.codes
    whole = torch.full((codes + 1, codes + 1), transition.beta, dtype=torch.float64)
    whole[:codes, :codes] += transition.alpha * torch.eye(codes, dtype=torch.float64)
    whole[-1] = transition.gamma
    whole[:, -1] = 0.0
    whole[-1, -1] = 1.0
    return whole


def test_transitions_multiply_and_posteriors_are_bayes():
    """By matrices, from equations 7 and 11 alone, also where timesteps are skipped."""
    scheduler = VQDiffusionScheduler(**CONFIGS[2])
    for t, s in ((99, 98), (60, 20), (3, 0)):
        whole, before = scheduler.transition_to(t), scheduler.transition_to(s)
        step = whole.after(before)
        torch.testing.assert_close(matrix(step) @ matrix(before), matrix(whole), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(matrix(whole).sum(0), torch.ones(6, dtype=torch.float64))
        p0 = torch.rand(5, dtype=torch.float64).softmax(0)
        x = torch.arange(6).view(1, 6)
        log_p = p0.log().view(1, 5, 1).expand(1, 5, 6)
        p_codes, p_mask, factor = posterior(log_p, x, whole, before, step)
        got = torch.cat([p_codes, p_mask], 1) * factor.exp()
        for now in range(6):
            # Σ_x0 p(x0)·q(x_t | x_s)·q(x_s | x0)/q(x_t | x0)
            weight = p0 / matrix(whole)[now, :5]
            want = matrix(step)[now] * (matrix(before)[:, :5] @ weight)
            torch.testing.assert_close(got[0, :, now], want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("as_published", [False, True])
def test_certain_codes_are_reached(as_published):
    scheduler = VQDiffusionScheduler(num_vec_classes=17)
    truth = torch.randint(0, 16, (2, PLACES))
    output = torch.full((2, 16, PLACES), -70.0).scatter_(1, truth.unsqueeze(1), 0.0)
    for steps in (1, 2, 7, 100):
        run = scheduler.plan(steps, as_published=as_published)
        x = torch.full_like(truth, 16)
        for i in range(len(run)):
            out = run.step(output, i, x)
            x = out.prev_sample
            assert torch.equal(out.pred_original_sample, truth)
            assert torch.isin(x, torch.cat([truth.flatten(), torch.tensor([16])])).all() or i + 1 < len(run)
        assert torch.equal(x, truth)


def test_codes_have_their_distribution_in_the_end_and_on_the_way():
    """With the exact posterior of independent codes, x_t has the forward process's marginal at every level."""
    torch.manual_seed(0)
    scheduler = VQDiffusionScheduler(**CONFIGS[2], num_train_timesteps=50)
    p0 = torch.tensor([0.5, 0.3, 0.1, 0.1, 0.0]).clamp(min=1e-9)
    run = scheduler.plan(10, as_published=True)
    assert run.timesteps[0] == 49
    x = torch.multinomial(matrix(run.wholes[0])[:, :5].float() @ p0, 40000, replacement=True).view(4, 10000)
    for i in range(len(run)):
        # p(x0 | x_t) ∝ q(x_t | x0)·p(x0), given x_t
        bayes = (matrix(run.wholes[i])[:, :5].float() * p0).log().log_softmax(1)
        x = run.step(bayes[x].transpose(1, 2), i, x).prev_sample
        share = torch.bincount(x.flatten(), minlength=6) / x.numel()
        want = matrix(run.wholes[i + 1])[:, :5].float() @ p0 if i + 1 < len(run) else torch.cat([p0, torch.zeros(1)])
        torch.testing.assert_close(share, want, rtol=0, atol=0.015)


def test_noising_has_the_forward_process_s_distribution():
    torch.manual_seed(0)
    scheduler = VQDiffusionScheduler(**CONFIGS[2])
    x0 = torch.full((2, 20000), 3)
    noise = torch.rand(2, 6, 20000)
    noised = scheduler.add_noise(x0, noise, torch.tensor([80, 10]))
    for x, t in zip(noised, (80, 10), strict=True):
        want = matrix(scheduler.transition_to(t))[:, 3].float()
        torch.testing.assert_close(torch.bincount(x, minlength=6) / 20000, want, rtol=0, atol=0.015)
    run = scheduler.plan(100)
    assert torch.equal(run.add_noise(x0[:1], noise[:1], 19), noised[:1])
    assert run.add_noise(x0, noise, 100) is x0


@pytest.mark.parametrize("spacing", ["trailing", "simple", "linspace", "leading", "sgm_uniform"])
def test_timestep_spacings_in_both_apis(spacing):
    scheduler = VQDiffusionScheduler(num_vec_classes=17).with_spacing(spacing)
    for steps in (2, 7, 20):
        assert torch.equal(planned(scheduler, steps), walk(scheduler, steps))
    published = VQDiffusionScheduler(num_vec_classes=17)
    assert scheduler.plan(100).timesteps[-1] <= 1
    if spacing == "trailing":
        assert scheduler.plan(20).timesteps == published.plan(20, as_published=True).timesteps


def test_one_generator_per_picture_makes_each_alone_repeatable():
    scheduler = VQDiffusionScheduler(num_vec_classes=17)
    scheduler.set_timesteps(10)
    x = torch.full((3, PLACES), 16)
    output = network(x, 9, 16)
    batch = scheduler.step(output, 9, x, generator=[torch.Generator().manual_seed(k) for k in range(3)]).prev_sample
    for k in range(3):
        alone = scheduler.step(output[k : k + 1], 9, x[k : k + 1], generator=torch.Generator().manual_seed(k))
        assert torch.equal(batch[k : k + 1], alone.prev_sample)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        scheduler.step(output, 9, x, generator=[torch.Generator()] * 2)


def test_what_makes_no_sense_is_refused():
    scheduler = VQDiffusionScheduler(num_vec_classes=17)
    for make in (VQDiffusionScheduler, reference().VQDiffusionScheduler):
        with pytest.raises(TypeError):
            make()
    with pytest.raises(ValueError, match="101"):
        scheduler.plan(101)
    with pytest.raises(ValueError, match="descending"):
        scheduler.plan(timesteps=[3, 5])
    with pytest.raises(ValueError, match="num_inference_steps or timesteps"):
        scheduler.plan(sigmas=[3.0, 0.0])
    with pytest.raises(TypeError, match="mood"):
        scheduler.plan(5, mood="good")


def test_precisions_and_the_meta_device():
    for dtype, device in itertools.product((torch.float16, torch.float32, torch.float64), ("cpu", "meta")):
        run = VQDiffusionScheduler(num_vec_classes=17).plan(5, as_published=True)
        x = torch.full((1, PLACES), 16, device=device)
        output = torch.randn(1, 16, PLACES, device=device, dtype=dtype)
        for i in range(len(run)):
            before = x.clone(), output.clone()
            out = run.step(output, i, x, torch.zeros_like)
            assert device == "meta" or (torch.equal(x, before[0]) and torch.equal(output, before[1]))
            x = out.prev_sample
            assert x.dtype == out.pred_original_sample.dtype == torch.int64
            assert x.shape == (1, PLACES)


def test_saved_here_loads_there_and_back(tmp_path):
    ours, theirs = both("VQDiffusionScheduler", **CONFIGS[1])
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = [json.loads((tmp_path / who / "scheduler_config.json").read_text()) for who in ("ours", "theirs")]
    assert written[0] == written[1]
    for folder in ("ours", "theirs"):
        here, there = (make.from_pretrained(tmp_path / folder) for make in (VQDiffusionScheduler, type(theirs)))
        assert torch.equal(walk(here, 5), walk(there, 5))
    assert [c.__name__ for c in ours.compatibles] == ["VQDiffusionScheduler"]
