"""Trajectories through a cheap made-up network, for comparing schedulers with each other and with the reference."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from types import SimpleNamespace

import torch

import langevin
from langevin.schedulers import catalogue, spacing

STEPS = (1, 2, 3, 7, 20, 50)
SHAPE = (2, 4, 4, 4)
EVERY = catalogue.names()
NAMES = sorted(set(catalogue.interchangeable()) - {"DPMAdaptiveScheduler"})  # whose run grows: test_further_solvers.py
"""The schedulers that take each other's place, from noise to image: what every one of them must do is tested on all."""
ALSO_THERE = [name for name in NAMES if name in dir(import_module("diffusers"))]
"""Those of them that the reference has."""
GOES_BACK = ["HeunPP2Scheduler", "KDPM2AncestralDiscreteScheduler"]
"""Those whose calls' σ go up and down: they ask the network two levels ahead, or ahead as exactly as the reference."""
SEED = {"DPMSolverSDEScheduler": {"noise_sampler_seed": 3}}
"""What makes noise repeatable that the reference draws from no generator."""


FLOW_FORMS = ("v_prediction", "epsilon", "sample")
"""What a network may predict on straight lines, besides the flow."""
SPACINGS = [name for name in spacing.SPACINGS if name != "lu"]  # which is "exponential"


def network(x: torch.Tensor, t, channels: int = 4) -> torch.Tensor:
    """Smooth, of moderate slope, different at every place and timestep, so that rounding errors do not grow."""
    base = 0.5 * torch.tanh(0.8 * x + 0.001 * float(t) - 0.3) + 0.2 * x.roll(1, -1).sin()
    return base if channels == x.shape[1] else torch.cat([base, 0.4 * x.roll(2, -1).sin() + 0.5], 1)


def begin(shape, scale: float, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * float(scale)).to(dtype), generator


def familiar(scheduler, steps=None, start=0, seed=0, channels=4, set_with=None, dtype=torch.float32, **options):
    """A pass through ``set_timesteps`` and ``step``; works on the reference's schedulers and on ours."""
    scheduler.set_timesteps(**(set_with or {"num_inference_steps": steps}))
    x, generator = begin(SHAPE, scheduler.init_noise_sigma, seed, dtype)
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator
    path, originals = [x], []
    for t in scheduler.timesteps[start:]:
        output = network(scheduler.scale_model_input(x, t), t, channels)
        x, *original = scheduler.step(output, t, x, return_dict=False, **options)
        path.append(x)
        originals += original
    return SimpleNamespace(path=path, originals=originals)


def planned(scheduler, steps=None, start=0, seed=0, channels=4, set_with=None, dtype=torch.float32, **options):
    """The same through ``plan``."""
    run = scheduler.plan(steps, **options) if set_with is None else scheduler.plan(**set_with, **options)
    x, generator = begin(SHAPE, run.init_noise_sigma, seed, dtype)

    def noise(like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    path, originals = [x], []
    for i in range(start, len(run)):
        output = network(run.scale_model_input(x, i), run.timesteps[i], channels)
        out = run.step(output, i, x, noise)
        x = out.prev_sample
        path.append(x)
        originals.append(out.pred_original_sample)
    return SimpleNamespace(path=path, originals=originals)


def finite(trajectory: SimpleNamespace) -> bool:
    return all(x.isfinite().all() for x in trajectory.path)


def distance(ours: SimpleNamespace, theirs: SimpleNamespace) -> float:
    """Greatest difference anywhere on the way, relative to the greatest number met so far (at least 1)."""
    assert len(ours.path) == len(theirs.path)
    assert finite(ours), "ours has numbers that are not finite"
    if not finite(theirs):  # where the reference takes the root of a rounding error below zero
        return 0.0
    worst, scale = 0.0, 1.0
    for a, b in zip(ours.path, theirs.path, strict=True):
        scale = max(scale, b.abs().max().item())
        worst = max(worst, (a - b).abs().max().item() / scale)
    return worst


@cache
def reference():
    import logging

    import diffusers

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return diffusers


def both(name: str, **config):
    """(ours, the reference's) of the same class and config."""
    return getattr(langevin, name)(**config), getattr(reference(), name)(**config)


def starts(steps: int, order: int = 1) -> list[int]:
    """Calls to begin at; solvers of two calls a step begin at every second."""
    return [order * k for k in sorted({0, 1, steps // 2, steps - 1} & set(range(steps)))]


def same_as_reference(
    ours, theirs, steps, start=0, *, ways=(familiar, planned), tolerance=1e-5, originals=1e-4, **options
) -> None:
    """Both ways through ours give the reference's trajectory, to ``tolerance``, and its predicted ``originals``.

    ``options`` are those of ``familiar``: seed, channels, set_with, dtype, and what the solver takes.
    """
    try:
        want = familiar(theirs, steps, start, **options)
    except (IndexError, AssertionError):
        # A run of the reference that begins with two equal timesteps takes the second, and runs past its end.
        calls = theirs.timesteps.tolist()
        assert calls.count(calls[start]) > 1
        return
    for through in ways:
        got = through(ours, steps, start, **options)
        assert distance(got, want) < tolerance, (through.__name__, steps, start)
        if tolerance > 1e-3 or not finite(want):
            continue
        for mine, his in zip(got.originals, want.originals, strict=False):
            torch.testing.assert_close(mine, his, rtol=1e-4, atol=originals * max(1.0, his.abs().max().item()))


def in_double(theirs):
    """The reference's scheduler with its σ in fp64, so that the coefficients it computes from them at every step are
    not rounded: in fp32, differences of high powers of λ cancel to 1e-5 and worse."""
    set_timesteps = theirs.set_timesteps

    def then_widen(*args, **options):
        set_timesteps(*args, **options)
        theirs.sigmas = theirs.sigmas.double()

    theirs.set_timesteps = then_widen
    return theirs


def agrees_with_reference(name: str, config: dict, tolerance: float = 1e-5, exactly: bool = False, **options) -> None:
    """``same_as_reference`` over numbers of steps and calls to begin at; ``exactly``: with ``in_double``."""
    ours, theirs = both(name, **config)
    if exactly:
        theirs = in_double(theirs)
    for steps in STEPS:
        theirs.set_timesteps(steps)
        calls = theirs.timesteps.tolist()
        for start in [start for start in starts(steps, ours.order) if start < len(calls)]:
            ways = unambiguous(calls, start)
            same_as_reference(ours, theirs, steps, start, ways=ways, tolerance=tolerance, seed=steps, **options)


def unambiguous(calls: list[float], start: int) -> tuple:
    """The ways that begin at this call. Of equal timesteps the familiar API takes the second, and ours not the second
    of the whole run."""
    if calls.count(calls[start]) == 1 or (calls[start] != calls[0] and start == calls.index(calls[start]) + 1):
        return familiar, planned
    return (planned,) if calls[start] == calls[0] else (familiar,)


def widened(theirs):
    """The reference's with its tables as fp64: it divides by α, which is small at the noisy end."""
    set_timesteps = theirs.set_timesteps

    def then_widen(*args, **options):
        set_timesteps(*args, **options)
        theirs.betas, theirs.alphas = theirs.betas.double(), theirs.alphas.double()

    theirs.set_timesteps = then_widen
    return theirs
