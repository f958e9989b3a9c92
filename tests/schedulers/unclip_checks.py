"""Runs of unCLIP's scheduler, as its pipelines make them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tests.schedulers.scheduler_checks import begin, network

SHAPE = (2, 4, 4, 4)
CONFIGS = [
    {},
    {"clip_sample": False},
    {"clip_sample_range": 5.0, "prediction_type": "sample"},
    {"prediction_type": "sample", "clip_sample": False, "num_train_timesteps": 300},
    {"variance_type": "learned_range"},
    {"variance_type": "learned_range", "clip_sample": False, "prediction_type": "sample"},
]


def walk(scheduler, steps, start=0, seed=0, consecutive=False):
    """As unCLIP's pipeline calls it: each step is told where to go. ``consecutive``: to t - 1, as it would go alone."""
    scheduler.set_timesteps(steps)
    channels = 8 if scheduler.config.variance_type == "learned_range" else 4
    x, generator = begin(SHAPE, scheduler.init_noise_sigma, seed, torch.float32)
    path, originals = [x], []
    calls = scheduler.timesteps[start:]
    for t, following in zip(calls, [*calls[1:], None], strict=True):
        output = network(x, t, channels)
        goal = None if consecutive else following
        x, x0 = scheduler.step(output, t, x, prev_timestep=goal, generator=generator, return_dict=False)
        path.append(x)
        originals.append(x0)
    return SimpleNamespace(path=path, originals=originals)
