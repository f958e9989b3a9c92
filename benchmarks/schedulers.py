"""Time of one scheduler step, langevin and diffusers side by side, turn by turn.

    python benchmarks/schedulers.py

One CPU core, a (1, 4, 64, 64) latent, median of 15 runs of 50 steps. Steps that add noise are also given without the
drawing of it, which costs the same in both.
"""

from __future__ import annotations

import inspect
import statistics
import time

import diffusers
import torch

import langevin

CASES = [
    ("DDIMScheduler", {"clip_sample": False}, {}),
    ("DDIMScheduler", {}, {}),
    ("DDIMScheduler", {"clip_sample": False}, {"eta": 1.0}),
    ("DDPMScheduler", {}, {}),
    ("DDPMScheduler", {"clip_sample": False}, {}),
    ("PNDMScheduler", {"skip_prk_steps": True}, {}),
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
]
"""(class, config, what ``plan`` and ``step`` take). The others of the reference have another kind of ``step``."""
STEPS = {"LCMScheduler": 4, "TCDScheduler": 4, "CMStochasticIterativeScheduler": 40}
"""Steps of a run, where they are not 50."""


def familiar(scheduler, x, output, options) -> float:
    scheduler.set_timesteps(STEPS.get(type(scheduler).__name__, 50))
    if "generator" in inspect.signature(scheduler.step).parameters:
        options = {**options, "generator": torch.Generator().manual_seed(0)}
    begin = time.perf_counter()
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        _ = scheduler.step(output, t, x, **options).prev_sample
    return (time.perf_counter() - begin) / len(scheduler.timesteps)


def planned(scheduler, x, output, options, noise) -> float:
    run = scheduler.plan(STEPS.get(type(scheduler).__name__, 50), **options)
    begin = time.perf_counter()
    for i in range(len(run)):
        run.scale_model_input(x, i)
        _ = run.step(output, i, x, noise).prev_sample
    return (time.perf_counter() - begin) / len(run)


def main() -> None:
    torch.set_num_threads(1)
    x, output, given = (torch.randn(1, 4, 64, 64) for _ in range(3))
    generator = torch.Generator().manual_seed(0)

    def drawn(like):
        return torch.randn(like.shape, generator=generator)

    print("us a step: reference, plan (ratio), plan with noise given, set_timesteps/step (ratio)")
    for name, config, options in CASES:
        ours, theirs = (getattr(library, name)(**config) for library in (langevin, diffusers))
        ways = [
            lambda: familiar(theirs, x, output, options),  # noqa: B023
            lambda: planned(ours, x, output, options, drawn),  # noqa: B023
            lambda: planned(ours, x, output, options, lambda like: given),  # noqa: B023
            lambda: familiar(ours, x, output, options),  # noqa: B023
        ]
        times = [[way() for way in ways] for _ in range(15)]
        ref, plan, without, old = (1e6 * statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{name:32s} {config | options!s:32s} {ref:7.1f} {plan:7.1f} ({plan / ref:.2f}) {without:7.1f} "
            f"{old:7.1f} ({old / ref:.2f})"
        )


if __name__ == "__main__":
    main()
