"""Runs of Karras's stochastic sampler, as its pipeline makes them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch

from tests.schedulers.scheduler_checks import SHAPE, begin, network

CONFIGS = [
    {},
    {"sigma_min": 0.05, "sigma_max": 9.0},
    {"sigma_max": 5.0, "s_churn": 30, "s_min": 0.3, "s_max": 100.0, "s_noise": 1.0},  # raised from the first step on
    {"s_churn": 0},
]


def score(x, sigma):
    """A network of small slope: the default first step, from σ = 10000, multiplies every rounding error by 5000."""
    return -0.2 * network(x / (1 + float(sigma)), math.log(float(sigma) + 1e-3) * 50, x.shape[1])


def walk(scheduler, steps, start=0, seed=0):
    """As the pipeline of this sampler calls it; ``start`` counts steps."""
    scheduler.set_timesteps(steps)
    # In fp64: the reference multiplies the network's output by σ, adds x, subtracts x and divides by σ.
    x, generator = begin(SHAPE, scheduler.init_noise_sigma, seed, torch.float64)
    path, originals = [], []
    for t in scheduler.timesteps[start:]:
        sigma = scheduler.schedule[t]
        following = scheduler.schedule[t - 1] if t > 0 else 0
        raised, hat = scheduler.add_noise_to_input(x, sigma, generator=generator)
        path.append(raised)
        out = scheduler.step(score(raised, hat), hat, following, raised)
        originals.append(out.pred_original_sample)
        if following != 0:
            path.append(out.prev_sample)
            again = score(out.prev_sample, following)
            out = scheduler.step_correct(again, hat, following, raised, out.prev_sample, out["derivative"])
            originals.append(out.pred_original_sample)
        x = out.prev_sample
    return SimpleNamespace(path=[*path, x], originals=originals)


def planned(scheduler, steps, start=0, seed=0, **options):
    run = scheduler.plan(steps, **options)
    x, generator = begin(SHAPE, 1.0, seed, torch.float64)

    def noise(like):
        return torch.randn(like.shape, generator=generator)

    # Begun late, x is that of the first step, raised as the step it begins with says: so the reference's loop has it.
    x = run.begin(lambda: x, noise, x.shape, x.device) if start == 0 else run.start * x + run.added[start] * noise(x)
    path, originals = [x], []
    for i in range(2 * start, len(run)):
        out = run.step(score(x, run.timesteps[i]), i, x, noise)
        x = out.prev_sample
        path.append(x)
        originals.append(out.pred_original_sample)
    return SimpleNamespace(path=path, originals=originals)
