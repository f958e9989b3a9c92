"""The one denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from langevin.guiders.base import Guider
from langevin.guiders.step import Conditions, Denoiser, Step, Told, without_variance

if TYPE_CHECKING:
    from langevin.schedulers.run import Run


def denoise(
    x: Tensor,
    run: Run,
    denoiser: Denoiser,
    branches: dict[str, Conditions],
    guiders: Sequence[Guider] = (),
    *,
    noise: Callable[[Tensor], Tensor],
    told: Told | None = None,
    start: int = 0,
    stop: int | None = None,
    on_step: Callable[[Step, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Move x along a run, from the level of network call ``start`` to the end of call ``stop - 1``.

    Args:
        x: ``(batch, channels, …)`` at the noise level of call ``start``.
        run: from ``scheduler.plan(…)``; used up by this call.
        denoiser: see :mod:`langevin.denoiser`.
        branches: conditions by name; "positive" is always predicted, the others when a guider needs them.
        guiders: applied in order at each moment. They must be this call's own (``[g.begin() for g in guiders]``).
        noise: draws fresh noise shaped like its argument.
        told: conditions of every branch.
        on_step: called after each step with x; returns the x to go on with, or None to stop here.

    Returns:
        x at the level where the run was left.
    """
    told = Told() if told is None else told
    predicts_variance: bool | None = None
    i = start
    while i < (len(run) if stop is None else stop):  # an adaptive run grows on the way
        step = Step(i, len(run), run.timesteps[i], run, branches, denoiser, noise, start, told=told)
        for guider in guiders:
            x = guider.before(x, step)
        names = ["positive"]
        for guider in guiders:
            names += [name for name in guider.needs(step) if name not in names]
        for guider in guiders:
            step.attention = guider.attention(step) or step.attention

        shown = run.scale_model_input(x, i)
        if step.shown:  # single branches are shown something else
            said = step.ask(shown, names[::-1], step.attention)
        else:
            said = denoiser(shown, step, step.conditions(names[::-1]), step.attention)
        predictions = said
        if predicts_variance is not False:  # it does or it does not, for all of a run
            predictions, step.variance = without_variance(said, x)
            predicts_variance = predictions is not said
        prediction = predictions["positive"]
        for guider in guiders:
            prediction = guider.combine(prediction, predictions, x, step)

        if step.variance is not None and run.learns_variance:
            prediction = torch.cat([prediction, step.variance], dim=1)
        x = run.step(prediction, i, x, step.noise).prev_sample
        for guider in guiders:
            x = guider.after(x, step)
        if on_step is not None:
            moved = on_step(step, x)
            if moved is None:
                return x
            x = moved
        i += 1
    return x
