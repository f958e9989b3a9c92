"""RePaint: Lugmayr, Danelljan, Romero, Yu, Timofte & Van Gool 2022, "RePaint: Inpainting using Denoising Diffusion
Probabilistic Models", arXiv:2201.09865.

After every step the known part of the picture is put in at the level reached; and again and again the run goes back
up some levels, so that the unknown part has time to come to terms with it (section 4.2, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, combine, draw
from langevin.schedulers.familiar import as_tensor
from langevin.schedulers.noise import Level, rise
from langevin.schedulers.run import StepOutput
from langevin.schedulers.timesteps import deviations
from langevin.schedulers.timesteps.base import TimestepScheduler
from langevin.schedulers.timesteps.ddim import DDIMRun

_CLEAN = Level(1.0, 0.0)


def levels_of_jumps(steps: int, jump_length: int, jump_n_sample: int) -> list[int]:
    """The levels of a run in turn, counted from 0, the quietest: down from n-1 to 0, but at every multiple of
    ``jump_length`` up by as many, ``jump_n_sample`` - 1 times (appendix B, figure 9)."""
    left = dict.fromkeys(range(0, steps - jump_length, jump_length), jump_n_sample - 1)
    path, level = [], steps
    while level >= 1:
        level -= 1
        path.append(level)
        if left.get(level, 0) > 0:
            left[level] -= 1
            path += range(level + 1, level + jump_length + 1)
            level += jump_length
    return path


class RePaintRun(DDIMRun):
    """DDIM's steps down, each followed by the known part and, where the path turns, by the way back up.

    Calls are the steps down alone: on the way up nobody asks the network.
    """

    def __init__(self, *args, undo: list[list[tuple[float, float]]], original: Any, mask: Any, **options: Any):
        """``undo``: the way up after each call, what multiplies x and what the noise."""
        self.undo = undo
        self.original = original
        self.mask = mask
        super().__init__(*args, **options)

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        noise = noise or draw
        z = noise(prediction) if self.targets[i].sigma or i + 1 < len(self) else None
        moved = self.step_down(prediction, i, x, z)
        previous = moved.prev_sample
        for of_x, of_noise in self.undo[i]:  # line 10
            previous = cast(combine((of_x, previous), (of_noise, noise(previous))), x.dtype)
        moved.prev_sample = previous
        return moved

    def step_down(self, prediction: torch.Tensor, i: int, x: torch.Tensor, z: torch.Tensor | None) -> StepOutput:
        """Lines 4 to 8 of algorithm 1, with the same noise for the known and the unknown part."""
        z = torch.zeros_like(x) if z is None else z
        moved = super().step(prediction, i, x, lambda like: z)
        if self.mask is not None:
            alpha, sigma = self.targets[i]
            known = combine((alpha, self.original), (sigma, z))  # line 5, with equation 8a's deviation
            painted, mask = (cast(part, known.dtype) for part in (moved.prev_sample, self.mask))
            moved.prev_sample = cast(painted.lerp(known, mask), x.dtype)
        return moved


class RePaintScheduler(TimestepScheduler):
    """Inpainting with a network that knows nothing of inpainting. Predictions are ε.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the noise schedule; see
            :meth:`NoiseSchedule.from_config`.
        eta: 0 for DDIM's steps, 1 for DDPM's; ``scheduler.eta`` may be changed.
        clip_sample: bound the predicted image to [-1, 1].

    Run options:
        mask: 1 where the picture is known, 0 where it is to be painted; shaped like x, or so that it spreads over x.
        original: the picture, shaped like x. Given with ``mask`` or not at all.
        jump_length, jump_n_sample: how far a run goes back up, and how often it passes there; 10 and 10.
        eta: instead of the config's.
        as_published: the way up leads to the very level that the network is told next. Without it, to one that is
            T//steps - 1 timesteps noisier, as in the reference implementation. With ``with_spacing``, timesteps or
            sigmas of one's own it is the very level in any case, and ``as_published`` goes there at once instead of
            level by level.

        >>> run = RePaintScheduler().plan(250, mask=mask, original=picture)
        >>> x = torch.randn_like(picture)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x, noise=torch.randn_like).prev_sample
    """

    _manners = deviations.REPAINT
    run_options = ("mask", "original", "jump_length", "jump_n_sample", "eta", "as_published")
    prediction_types = ("epsilon",)
    _compatibles = []

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", eta: float = 0.0, trained_betas: np.ndarray | None = None,
        clip_sample: bool = True,
    ):  # fmt: skip
        self.eta = eta
        self.noise_schedule = self._build_noise_schedule()

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        mask: torch.Tensor | None = None, original: torch.Tensor | None = None, jump_length: int = 10,
        jump_n_sample: int = 10, eta: float | None = None,
        manner: deviations.RePaintAsPublished = deviations.REPAINT.reference,
    ) -> RePaintRun:  # fmt: skip
        if (mask is None) != (original is None):
            raise ValueError("give mask and original together: what is known, and where")
        if jump_length < 1 or jump_n_sample < 1:
            raise ValueError(f"jump_length={jump_length}, jump_n_sample={jump_n_sample}: both must be at least 1")
        if self._untold(timesteps, sigmas):  # every step is T//n timesteps long
            steps = min(steps, len(self))
            stride = len(self) // steps
            visited: list[float] = [k * stride for k in reversed(range(steps))]
            levels = [self.noise_schedule.level(t) for t in visited]
            below = [*levels[1:], self._final]
        else:
            visited, levels, below = self._visit(steps, timesteps, sigmas, self._final)
            stride = 0
        path = levels_of_jumps(len(visited), jump_length, jump_n_sample)
        calls = [k for k, level in enumerate(path) if k == 0 or level < path[k - 1]]
        undo: list[list[tuple[float, float]]] = []
        for k, following in zip(calls, [*calls[1:], len(path)], strict=True):
            up = following - k - 1  # the step at path[k] ended one level below it
            passed = [below[-1 - path[k]], *(levels[-1 - level] for level in range(path[k], path[k] + up))]
            undo.append(manner.way_up(self.noise_schedule, passed, path[k], stride))
        places = [-1 - path[k] for k in calls]
        limit = predictions.limiter({"clip_sample": self.config.clip_sample, "clip_sample_range": 1.0})
        return RePaintRun(
            *([side[place] for place in places] for side in (visited, levels, below)), "epsilon", limit, undo=undo,
            original=original, mask=mask, eta=self.eta if eta is None else eta,
        )  # fmt: skip

    def _whole(self) -> RePaintRun:
        return self._plan(len(self), None, None, jump_n_sample=1)

    # -- the familiar API: the caller walks over ``timesteps``, down with step(), up with undo_step() ----------------

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int, jump_length: int = 10, jump_n_sample: int = 10,
        device: str | torch.device | None = None,
    ) -> None:  # fmt: skip
        """Lay out ``timesteps``: those of the steps down and of the ways up between.

        Args:
            num_inference_steps: levels; more than there are timesteps counts as those.
            jump_length: how many levels a run goes back up.
            jump_n_sample: how often it passes each level where it turns.
        """
        self.num_inference_steps = min(num_inference_steps, len(self))
        self._run = self._plan(self.num_inference_steps, None, None, jump_n_sample=1)
        self._step_index = None
        path = levels_of_jumps(self.num_inference_steps, jump_length, jump_n_sample)
        self.timesteps = as_tensor([self._run.timesteps[-1 - level] for level in path], device)

    def step(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor,
        original_image: torch.Tensor, mask: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One step down.

        Args:
            model_output: ε at ``timestep``.
            timestep: one of ``scheduler.timesteps``.
            sample: x at that timestep.
            original_image: the picture, shaped like x.
            mask: 1 where it is known, 0 where it is to be painted.
            generator: where noise comes from; a list gives each image its own.
            return_dict: False gives the tuple ``(prev_sample, pred_original_sample)``.
        """
        if self.num_inference_steps is None:
            raise ValueError("RePaintScheduler has no timesteps yet: call set_timesteps(steps) before step()")
        run = self.run
        assert isinstance(run, RePaintRun)
        if run.eta != self.eta:
            run.configure(eta=self.eta)
        run.original, run.mask = original_image, mask
        i = self._locate(timestep)
        output = run.step_down(model_output, i, sample, draw(model_output, generator))
        self._step_index = i + 1
        run.original = run.mask = None
        return output if return_dict else output.to_tuple()

    def undo_step(
        self, sample: torch.Tensor, timestep: int | torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """One level up: noise as the training process adds it in the T//steps timesteps from ``timestep`` on; with a
        spacing of one's own, from where the step at ``timestep`` went back to its level."""
        if self.num_inference_steps is None:
            raise ValueError("RePaintScheduler has no timesteps yet: call set_timesteps(steps) before undo_step()")
        if self._spacing is None:
            stride = len(self) // self.num_inference_steps
            way = deviations.timestep_by_timestep(self.noise_schedule, int(timestep), stride)
        else:
            i = self.run.index_of(float(timestep))
            way = [rise(self.run.targets[i], self.run.levels[i])]
        for of_x, of_noise in way:
            sample = cast(combine((of_x, sample), (of_noise, draw(sample, generator))), sample.dtype)
        return sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """Not here: a run noises the known part itself."""
        raise NotImplementedError("RePaintScheduler.plan(mask=…, original=…) noises the known part itself")
