"""Runs of RePaint, as its pipeline makes them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from tests.schedulers.scheduler_checks import SHAPE, begin, network

CONFIGS = [
    {},
    {"eta": 1.0},
    {"eta": 0.5, "clip_sample": False, "beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    {"beta_schedule": "sigmoid", "trained_betas": None},
    {"trained_betas": np.linspace(0.0005, 0.015, 1000, dtype=np.float32)},
]


def picture():
    g = torch.Generator().manual_seed(7)
    mask = (torch.rand((SHAPE[0], 1, *SHAPE[2:]), generator=g) > 0.5).float()
    return torch.rand(SHAPE, generator=g) * 2 - 1, mask


def walk(scheduler, steps, jumps, seed=0, dtype=torch.float32):
    """As the pipeline of this sampler calls it."""
    original, mask = picture()
    x, generator = begin(SHAPE, 1.0, seed, dtype)
    scheduler.set_timesteps(steps, *jumps)
    path, originals, last = [x], [], scheduler.timesteps[0] + 1
    for t in scheduler.timesteps:
        if t < last:
            output = network(x, t)
            x, x0 = scheduler.step(output, t, x, original, mask, generator, return_dict=False)
            originals.append(x0)
            path.append(x)
        else:
            x = scheduler.undo_step(x, last, generator)
            path[-1] = x  # the run's calls are the steps down
        last = t
    return SimpleNamespace(path=path, originals=originals)
