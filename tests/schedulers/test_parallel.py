"""DDIM and DDPM with a timestep per image."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

import langevin
from langevin import DDIMParallelScheduler, DDIMScheduler, DDPMParallelScheduler
from tests.schedulers.scheduler_checks import (
    agrees_with_reference,
    both,
    distance,
    familiar,
    network,
    planned,
    reference,
)

NAMES = ["DDIMParallelScheduler", "DDPMParallelScheduler"]
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CONFIGS = [
    {},
    {**LATENT, "clip_sample": False},
    {"clip_sample": False, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    {"clip_sample_range": 0.4, "prediction_type": "sample"},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "linspace", "prediction_type": "v_prediction"},
    {"num_train_timesteps": 500, "beta_schedule": "squaredcos_cap_v2", "steps_offset": 1},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_whole_trajectories_equal_the_reference(name, config):
    agrees_with_reference(name, config)


def each(scheduler, timesteps, x, channels=3, **options):
    """One step of every image at its own timestep, through the made-up network."""
    output = torch.cat([network(x[k : k + 1], t, channels) for k, t in enumerate(timesteps)])
    return scheduler.batch_step_no_noise(output, timesteps, x, **options)


BATCHED = [*itertools.product(NAMES, CONFIGS), (NAMES[0], {"set_alpha_to_one": False})]


@pytest.mark.parametrize(("name", "config"), BATCHED, ids=str)
def test_batched_steps_equal_the_reference(name, config):
    ours, theirs = both(name, **config)
    last = ours.config.num_train_timesteps - 1
    timesteps = torch.tensor([last, last // 2, 401, 3, 0])
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for steps in (None, 1, 7, 50):
        if steps is None and name == "DDIMParallelScheduler":
            continue
        for scheduler in (ours, theirs):
            if steps:
                scheduler.set_timesteps(steps)
        for options in ({}, {"use_clipped_model_output": True}) if name == "DDIMParallelScheduler" else ({},):
            got, want = (each(scheduler, timesteps, x, **options) for scheduler in (ours, theirs))
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * max(1.0, want.abs().max().item()))


def test_batched_steps_with_learned_variance_equal_the_reference():
    for kind in ("learned", "learned_range"):
        ours, theirs = both("DDPMParallelScheduler", variance_type=kind)
        timesteps, x = torch.tensor([900, 500, 20]), torch.randn(3, 3, 4, 4)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(50)
        got, want = (each(scheduler, timesteps, x, channels=6) for scheduler in (ours, theirs))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", [{}, {"clip_sample": False}, {"thresholding": True}], ids=str)
def test_all_levels_at_once_are_the_steps_one_by_one(name, spacing, config):
    scheduler = getattr(langevin, name)(timestep_spacing=spacing, **config)
    scheduler.set_timesteps(7)
    x = torch.randn(7, 3, 4, 4)
    at_once = each(scheduler, scheduler.timesteps, x, as_published=True)
    for k, t in enumerate(scheduler.timesteps):
        one = x[k : k + 1]
        run = scheduler.plan(7)
        alone = run.step(network(one, t, 3), k, one, torch.zeros_like).prev_sample
        torch.testing.assert_close(at_once[k : k + 1], alone, rtol=1e-5, atol=1e-6)


def test_picard_iteration_ends_at_the_sequential_trajectory():
    """Algorithm 1 of the paper: refine all levels at once, until nothing changes; after n rounds nothing can."""
    scheduler = DDIMParallelScheduler(clip_sample=False)
    scheduler.set_timesteps(8)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    path = x.repeat(9, 1, 1, 1)
    for _ in range(8):
        drift = each(scheduler, scheduler.timesteps, path[:-1]) - path[:-1]
        path = torch.cat([path[:1], path[:1] + drift.cumsum(0)])
    one = x
    run = DDIMScheduler(clip_sample=False).plan(8)
    for i, t in enumerate(run.timesteps):
        one = run.step(network(one, t, 3), i, one).prev_sample
    torch.testing.assert_close(path[-1:], one, rtol=1e-9, atol=1e-9)


def test_the_last_level_is_the_config_s_where_asked():
    scheduler = DDIMParallelScheduler(set_alpha_to_one=False, clip_sample=False)
    scheduler.set_timesteps(10)
    x, t = torch.randn(1, 3, 4, 4), torch.tensor([0])
    ends = [each(scheduler, t, x, as_published=published) for published in (False, True)]
    torch.testing.assert_close(ends[1], scheduler.step(network(x, 0), 0, x).prev_sample)
    assert (ends[0] - ends[1]).abs().max() > 1e-4


def test_what_the_reference_refuses_is_refused():
    x, t = torch.zeros(2, 3, 4, 4), torch.tensor([900, 0])
    for scheduler in both("DDIMParallelScheduler"):
        with pytest.raises(ValueError, match="set_timesteps"):
            scheduler.batch_step_no_noise(x, t, x)
        scheduler.set_timesteps(10)
        with pytest.raises((AssertionError, ValueError)):
            scheduler.batch_step_no_noise(x, t, x, eta=0.5)


def test_precision_is_kept_and_inputs_are_not_changed():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for scheduler in (DDPMParallelScheduler(), DDPMParallelScheduler(clip_sample=False)):
            x = torch.randn(2, 3, 4, 4).to(dtype)
            before = x.clone()
            moved = scheduler.batch_step_no_noise(x, torch.tensor([900, 30]), x)
            assert moved.dtype == dtype
            assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_saved_here_loads_there_and_back(name, tmp_path):
    ours, theirs = both(name, **LATENT)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = [json.loads((tmp_path / who / "scheduler_config.json").read_text()) for who in ("ours", "theirs")]
    assert written[0] == written[1]
    for folder in ("ours", "theirs"):
        here = getattr(langevin, name).from_pretrained(tmp_path / folder)
        there = getattr(reference(), name).from_pretrained(tmp_path / folder)
        assert distance(familiar(here, 5), familiar(there, 5)) < 1e-5


def test_swapping_gives_what_the_reference_gives():
    for here, there in (("DDIMScheduler", NAMES[0]), (NAMES[1], "EulerDiscreteScheduler"), ("PNDMScheduler", NAMES[1])):
        sources = both(here, **LATENT)
        ours = getattr(langevin, there).from_config(sources[0].config)
        theirs = getattr(reference(), there).from_config(sources[1].config)
        assert distance(planned(ours, 6), familiar(theirs, 6)) < 1e-5
        assert "DDIMScheduler" in {c.__name__ for c in getattr(langevin, NAMES[0])().compatibles}
