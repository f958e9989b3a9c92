"""Which schedulers there are, and which of them take each other's place."""

from __future__ import annotations

import re

COMPATIBLES = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverSDEScheduler",
    "EDMEulerScheduler",
    # langevin's own
    "DPMAdaptiveScheduler",
    "DPMFastScheduler",
    "DPMSolver2SAncestralScheduler",
    "DPMSolver3MSDEScheduler",
    "ERSDEScheduler",
    "GradientEstimationScheduler",
    "HeunPP2Scheduler",
    "RESMultistepScheduler",
    "RestartScheduler",
]
"""Those whose configs can be made into each other with ``from_config``."""


def short_name(name: str) -> str:
    """ "EulerDiscreteScheduler" -> "euler"."""
    return re.sub(r"(Discrete|Multistep)?Scheduler$", "", name).lower()


def names() -> list[str]:
    """Every public scheduler class, in the order of the short names."""
    import langevin

    return sorted((name for name in langevin.__all__ if name.endswith("Scheduler")), key=short_name)


def interchangeable() -> list[str]:
    """The classes that take each other's place, from noise to image, on the usual models.

    They have a config that the others can be made from, go down, and take one level at a time. So neither the
    inversions nor the parallel ones are among them, nor those of networks that are told or give something else.
    """
    import langevin

    special = ("InverseScheduler", "ParallelScheduler")
    return [name for name in names() if getattr(langevin, name)._compatibles and not name.endswith(special)]
