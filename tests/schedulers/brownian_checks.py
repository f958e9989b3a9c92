"""Runs whose noise is that of a seeded Brownian path."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tests.schedulers.scheduler_checks import SHAPE, begin, network


def forbidden(like):
    raise AssertionError("noise was drawn where a path has it")


def on_a_path(scheduler, steps, start=0, *, seed, dtype=torch.float32, shape=SHAPE, **options):
    """``planned`` with noise from the Brownian path of a seed; so is the start's."""
    run = scheduler.plan(steps, noise_sampler_seed=seed, **options)
    x, _ = begin(shape, run.init_noise_sigma, seed if isinstance(seed, int) else seed[0], dtype)
    path = [x]
    for i in range(start, len(run)):
        x = run.step(network(run.scale_model_input(x, i), run.timesteps[i]), i, x, forbidden).prev_sample
        path.append(x)
    return SimpleNamespace(path=path)
