"""Runs over codes, as their pipeline makes them."""

from __future__ import annotations

import torch

from langevin.schedulers.discrete.vq_diffusion import draw_uniform

CONFIGS = [
    {"num_vec_classes": 17},
    {"num_vec_classes": 300, "num_train_timesteps": 40},
    {"num_vec_classes": 6, "alpha_cum_end": 0.1, "gamma_cum_end": 0.5},  # much of β
]
PLACES = 50


def network(x, t, codes):
    """Log probabilities of the clean codes, from all the codes of a picture, the mask among them."""
    phase = 0.7 * x.float().unsqueeze(1) + 0.3 * x.float().roll(1, -1).unsqueeze(1) + 0.01 * float(t)
    return (3 * torch.sin(phase * torch.linspace(0.1, 2.0, codes).view(1, -1, 1))).log_softmax(1)


def walk(scheduler, steps, seed=0, start=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((2, PLACES), scheduler.mask_class)
    scheduler.set_timesteps(steps)
    path = [x]
    for t in scheduler.timesteps[start:]:
        output = network(x, t, scheduler.mask_class)
        (x,) = scheduler.step(output, timestep=t, sample=x, generator=generator, return_dict=False)
        path.append(x)
    return torch.stack(path)


def planned(scheduler, steps, seed=0, start=0, **options):
    generator = torch.Generator().manual_seed(seed)
    run = scheduler.plan(steps, **options)
    x = torch.full((2, PLACES), scheduler.mask_class)
    path = [x]
    for i in range(start, len(run)):
        output = network(x, run.timesteps[i], scheduler.mask_class)
        x = run.step(output, i, x, lambda like: draw_uniform(like, generator)).prev_sample
        path.append(x)
    return torch.stack(path)
