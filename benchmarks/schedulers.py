"""Time of one scheduler step, langevin and diffusers side by side, turn by turn.

    python benchmarks/schedulers.py [NAME ...]

One CPU core, a (1, 4, 64, 64) latent (VQ-Diffusion: 1024 places, 2886 codes), CPU time, median of 15 runs of 50 steps.
Drawing noise costs the same in both, the generator's time; so each line has the time with it, and then the time of the
arithmetic alone, where both are handed the same noise.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import statistics
import sys
import time
from unittest import mock

import diffusers
import torch
from diffusers.schedulers import deprecated

import langevin

CASES = [
    ("DDIMScheduler", {"clip_sample": False}, {}),
    ("DDIMScheduler", {}, {}),
    ("DDIMScheduler", {"clip_sample": False}, {"eta": 1.0}),
    ("DDPMScheduler", {}, {}),
    ("DDPMScheduler", {"clip_sample": False}, {}),
    ("PNDMScheduler", {"skip_prk_steps": True}, {}),
    ("PNDMScheduler", {}, {}),
    ("LMSDiscreteScheduler", {}, {}),
    ("EulerDiscreteScheduler", {}, {}),
    ("EulerDiscreteScheduler", {}, {"s_churn": 5.0}),
    ("EulerAncestralDiscreteScheduler", {}, {}),
    ("HeunDiscreteScheduler", {}, {}),
    ("KDPM2DiscreteScheduler", {}, {}),
    ("KDPM2AncestralDiscreteScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("DPMSolverSinglestepScheduler", {}, {}),
    ("DEISMultistepScheduler", {}, {}),
    ("UniPCMultistepScheduler", {}, {}),
    ("SASolverScheduler", {}, {}),
    ("IPNDMScheduler", {}, {}),
    ("DDIMInverseScheduler", {}, {}),
    ("DPMSolverMultistepInverseScheduler", {}, {}),
    ("EDMEulerScheduler", {}, {}),
    ("EDMDPMSolverMultistepScheduler", {}, {}),
    ("FlowMatchEulerDiscreteScheduler", {}, {}),
    ("FlowMatchHeunDiscreteScheduler", {}, {}),
    ("LCMScheduler", {}, {}),
    ("TCDScheduler", {}, {}),
    ("CMStochasticIterativeScheduler", {}, {}),
    ("UnCLIPScheduler", {"clip_sample": False}, {}),
    ("RePaintScheduler", {}, {}),
    ("ScoreSdeVeScheduler", {"sigma_max": 50.0}, {}),
    ("ScoreSdeVpScheduler", {}, {}),
    ("VQDiffusionScheduler", {"num_vec_classes": 2887}, {}),
]
"""(class, config, what ``plan`` and ``step`` take). Not here: those whose steps are others' (parallel ones), or which
wait for a Brownian path."""
STEPS = {"LCMScheduler": 4, "TCDScheduler": 4, "CMStochasticIterativeScheduler": 40, "VQDiffusionScheduler": 5}
"""Steps of a run, where they are not 50."""
MASK = torch.ones(1, 1, 64, 64)


def timed(calls) -> float:
    """Microseconds a call. CPU time, so that what else the machine does has no say."""
    begin, count = time.thread_time(), 0
    for call in calls:
        call()
        count += 1
    return 1e6 * (time.thread_time() - begin) / count


def familiar(scheduler, x, output, options) -> float:
    """By the methods that both libraries have."""
    name = type(scheduler).__name__
    steps, g = STEPS.get(name, 50), torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    if name == "ScoreSdeVeScheduler":
        scheduler.set_sigmas(steps)
        return timed(
            call
            for t in scheduler.timesteps
            for call in (
                lambda: scheduler.step_correct(output, x, generator=g).prev_sample,
                lambda t=t: scheduler.step_pred(output, t, x, generator=g).prev_sample,
            )
        )
    if name == "ScoreSdeVpScheduler":
        return timed(lambda t=t: scheduler.step_pred(output, x, t, generator=g) for t in scheduler.timesteps)
    if name == "RePaintScheduler":
        scheduler.set_timesteps(steps, jump_n_sample=1)
        options = {"original_image": x, "mask": MASK, "generator": g}
    elif "generator" in inspect.signature(scheduler.step).parameters:
        options = {**options, "generator": g}

    def step(t):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        return scheduler.step(output, t, x, **options).prev_sample

    return timed(lambda t=t: step(t) for t in scheduler.timesteps)


def planned(scheduler, x, output, options, noise) -> float:
    """By langevin's own way."""
    name = type(scheduler).__name__
    if name == "RePaintScheduler":
        options = {"original": x, "mask": MASK, "jump_n_sample": 1}
    run = scheduler.plan(STEPS.get(name, 50), **options)

    def step(i):
        run.scale_model_input(x, i)
        return run.step(output, i, x, noise).prev_sample

    return timed(lambda i=i: step(i) for i in range(len(run)))


def hand_over(noise):
    """A function that gives ``noise`` for a tensor like it, or for its shape, whatever else it is given."""

    def hand(like, *args, **options):
        shape = tuple(getattr(like, "shape", like))
        return noise if noise.shape == shape else noise[:, : shape[1]]  # VQ-Diffusion's last step has no mask

    return hand


@contextlib.contextmanager
def handed(scheduler, noise):
    """Neither library draws: what they would draw is ``noise``."""

    hand = hand_over(noise)
    modules = {inspect.getmodule(cls) for cls in type(scheduler).__mro__}
    modules.add(importlib.import_module("langevin.schedulers.familiar"))
    with contextlib.ExitStack() as stack:
        for module in modules:
            for name in ("randn_tensor", "draw", "draw_uniform"):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, hand))
        for name in ("rand", "randn"):
            stack.enter_context(mock.patch.object(torch, name, hand))
        yield


def main() -> None:
    torch.set_num_threads(1)
    latent = [torch.randn(1, 4, 64, 64) for _ in range(3)]
    codes = [torch.full((1, 1024), 2886), torch.randn(1, 2886, 1024).log_softmax(1), torch.rand(1, 2887, 1024)]
    g = torch.Generator().manual_seed(0)
    print("us a step: reference, plan (ratio), familiar (ratio); without drawing: the same")
    for name, config, options in CASES:
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        theirs = getattr(deprecated if name == "ScoreSdeVpScheduler" else diffusers, name)(**config)
        ours = getattr(langevin, name)(**config)
        discrete = name == "VQDiffusionScheduler"
        x, output, given = codes if discrete else latent
        law = torch.rand if discrete else torch.randn

        def drawn(like, law=law):
            return law(like.shape, generator=g)

        times = []
        for _ in range(15):
            row = [familiar(theirs, x, output, options), planned(ours, x, output, options, drawn)]
            row.append(familiar(ours, x, output, options))
            for scheduler in (theirs, ours):
                with handed(scheduler, given):
                    row.append(familiar(scheduler, x, output, options))
            row.insert(4, planned(ours, x, output, options, hand_over(given)))
            times.append(row)
        parts = [statistics.median(column) for column in zip(*times, strict=True)]
        line = f"{name:34s} {config | options!s:38.38s}"
        for k in (0, 3):
            reference, *others = parts[k : k + 3]
            line += f" {reference:8.1f}" + "".join(f" {t:7.1f} ({t / reference:.2f})" for t in others)
        print(line, flush=True)


if __name__ == "__main__":
    main()
