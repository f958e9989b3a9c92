"""Runs of the score SDEs, as their pipelines make them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch

import langevin
from tests.schedulers.scheduler_checks import SHAPE, begin, network, reference

VE = [
    {},
    {"snr": 0.3, "sigma_min": 0.05, "sigma_max": 20.0, "correct_steps": 2},
    {"correct_steps": 0, "sampling_eps": 1e-3, "sigma_max": 50.0},
]


def both(name, **config):
    """(ours, the reference's), which has one of these two among the deprecated."""
    from diffusers.schedulers import deprecated

    theirs = getattr(deprecated if name == "ScoreSdeVpScheduler" else reference(), name)
    return getattr(langevin, name)(**config), theirs(**config)


def score(x, sigma):
    return -network(x / (1 + float(sigma)), math.log(float(sigma)) * 50, x.shape[1]) / (1 + float(sigma))


def walk(scheduler, steps, seed=0, start=0):
    """As the pipeline of this sampler calls it."""
    x, generator = begin(SHAPE, scheduler.init_noise_sigma, seed, torch.float32)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    path = [x]
    for t, sigma in list(zip(scheduler.timesteps, scheduler.sigmas, strict=True))[start:]:
        for _ in range(scheduler.config.correct_steps):
            x = scheduler.step_correct(score(x, sigma), x, generator=generator).prev_sample
            path.append(x)
        out = scheduler.step_pred(score(x, sigma), t, x, generator=generator)
        x = out.prev_sample
        path.append(x)
    return SimpleNamespace(path=[*path[:-1], out.prev_sample_mean])


def through_plan(scheduler, steps, seed=0, start=0, **options):
    run = scheduler.plan(steps, **options)
    x, generator = begin(SHAPE, run.init_noise_sigma, seed, torch.float32)
    path = [x]
    for i in range(start * (scheduler.config.correct_steps + 1), len(run)):
        x = run.step(
            score(x, run.timesteps[i]), i, x, lambda like: torch.randn(like.shape, generator=generator)
        ).prev_sample
        path.append(x)
    return SimpleNamespace(path=path)


VP = [{}, {"beta_min": 0.2, "beta_max": 12.0, "sampling_eps": 1e-2}]


def walk_vp(scheduler, steps, seed=0, start=0):
    x, generator = begin(SHAPE, 1.0, seed, torch.float32)
    scheduler.set_timesteps(steps)
    path = [x]
    for t in scheduler.timesteps[start:]:
        x, mean = scheduler.step_pred(network(x, 1000 * t), x, t, generator=generator)
        path.append(x)
    return SimpleNamespace(path=[*path[:-1], mean])


def planned_vp(scheduler, steps, seed=0, start=0):
    run = scheduler.plan(steps)
    x, generator = begin(SHAPE, run.init_noise_sigma, seed, torch.float32)
    path = [x]
    for i in range(start, len(run)):
        z = torch.randn(x.shape, generator=generator)
        x = run.step(network(x, 1000 * run.timesteps[i]), i, x, lambda like, z=z: z).prev_sample
        path.append(x)
    return SimpleNamespace(path=path)
