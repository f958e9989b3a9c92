"""Flow matching on straight lines: x = (1 - σ)·x0 + σ·ε, and the network gives dx/dσ = ε - x0 (Lipman et al. 2023,
arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003). Levels are shifted towards noise for large images (Esser et al.
2024, "Scaling Rectified Flow Transformers", arXiv:2403.03206, section 5.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch

from ..checkpoints.config import register_to_config
from . import spacing as spacings
from .base import CountedSteps, DrawNoise, Run, StepOutput, combine, draw, upcast
from .noise import Level
from .sigma import churned


def shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """s·σ/(1 + (s - 1)·σ): the σ at which s² times the pixels hide as much of the image (equation 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def stretched(sigmas: np.ndarray, last: float) -> np.ndarray:
    """1 - σ scaled so that the last σ is ``last``; a run of σ = 1 alone has nothing to stretch."""
    return 1 - (1 - sigmas) * ((1 - last) / (1 - sigmas[-1])) if sigmas[-1] < 1.0 else sigmas


class FlowRun(Run):
    """A run over ``sigmas``: one per call, and the one where it ends.

    Args:
        inverted: σ counts the other way, from 0 (noise) to 1 (image), and the output is x0 - ε.
        as_published: see the schedulers.
    """

    def __init__(
        self, timesteps: list[float], sigmas: list[float], inverted: bool = False, as_published: bool = False,
        **options: Any,
    ):  # fmt: skip
        self._sigmas = sigmas
        self.inverted = inverted
        self.as_published = as_published
        levels = [Level(sigma, 1.0 - sigma) if inverted else Level(1.0 - sigma, sigma) for sigma in sigmas]
        calls = len(timesteps)
        super().__init__(timesteps, levels[:calls], levels[1 : calls + 1], "flow_prediction", **options)

    @property
    def sigmas(self) -> list[float]:
        """σ of every call, and of the level where the run ends."""
        return self._sigmas

    def to_x0(self, level: Level) -> tuple[float, float]:
        p, q = super().to_x0(level)
        return p, -q if self.inverted else q


class FlowEulerRun(FlowRun):
    """x ← x + (σ_next - σ)·output; or, ``stochastic``, to x0 and from there to σ_next with fresh noise."""

    def __init__(self, *args: Any, stochastic: bool = False, **options: Any):
        self.stochastic = stochastic
        self._ladders: dict[torch.device, torch.Tensor] = {}
        super().__init__(*args, **options)

    def configure(self) -> None:
        self.coefficients = []
        for level, target, (sigma, following) in zip(self.levels, self.targets, pairwise(self.sigmas), strict=True):
            if not self.stochastic:
                self.coefficients.append((1.0, following - sigma, 0.0))
                continue
            p, q = self.to_x0(level)
            if self.inverted and not self.as_published:  # as if it were not
                p, q, target = 1.0, -sigma, Level(1.0 - following, following)
            self.coefficients.append((target.alpha * p, target.alpha * q, target.sigma))

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        of_x, of_prediction, of_noise = self.coefficients[i]
        previous = combine((of_x, x), (of_prediction, prediction))
        if of_noise:
            previous = combine((1.0, previous), (of_noise, (noise or draw)(previous)))
        return StepOutput(previous.to(x.dtype), self._later(prediction, i, x))

    def step_tokens(
        self, prediction: torch.Tensor, sigmas: torch.Tensor, x: torch.Tensor, noise: DrawNoise | None = None
    ) -> StepOutput:
        """Move every token from its own level to the next lower one of the run; tokens without noise stay.

        Args:
            prediction: the network's output, (batch, tokens, channels); without ``as_published`` its *negative*,
                unless the run is stochastic: so the reference implementation has it.
            sigmas: (batch, tokens), fp32: the level of each token.
            x: (batch, tokens, channels).
        """
        here = upcast(sigmas).unsqueeze(-1)
        if (ladder := self._ladders.get(here.device)) is None:
            ladder = self._ladders[here.device] = torch.tensor(self.sigmas, dtype=here.dtype).to(here.device)
        there = torch.where(ladder < here - 1e-6, ladder, 0.0).amax(-1, keepdim=True)
        down = here if self.stochastic or self.as_published else -here
        x0 = upcast(x) - down * prediction
        if self.stochastic:
            previous = (1.0 - there) * x0 + there * (noise or draw)(x0)
        else:
            flow = prediction if self.as_published else -prediction
            previous = upcast(x) + (there - here) * flow
        return StepOutput(previous.to(x.dtype), x0.to(x.dtype))


class FlowHeunRun(FlowRun):
    """Two calls a step: at σ_i, and, after an Euler step there, at σ_{i+1}. The step to σ = 0 has the first alone.

    Before a step, σ may be raised to σ̂ by fresh noise (arXiv:2206.00364, algorithm 2).
    """

    def configure(
        self, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
    ) -> None:
        self.halfway: torch.Tensor | None = None  # between a step's first call and its second
        self.churns = []
        for i, level in enumerate(self.levels):
            sigma = self.levels[i - 1].sigma if i % 2 else level.sigma  # where the step began
            hat, keep = churned(sigma, len(self.sigmas) - 1, s_churn, s_tmin, s_tmax), 1.0
            if self.as_published:  # noise at most, and the image fades as it comes in
                hat = min(hat, 1.0)
                keep = (1.0 - hat) / (1.0 - sigma) if hat > sigma else 1.0
            added = s_noise * math.sqrt(max(hat**2 - (keep * sigma) ** 2, 0.0))
            self.churns.append((hat, keep, added, hat > sigma))

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        hat, keep, added, raised = self.churns[i]
        if self.halfway is None:
            start = x
            h = self.targets[i].sigma - hat
            slope = [(1.0, prediction)]
            if raised:
                sigma = self.levels[i].sigma
                start = combine((keep, x), (added, (noise or draw)(prediction)))
                if self.as_published:  # (x̂ - x0)/σ̂, and x0 = x - σ·output
                    slope = [(1.0 / hat, start), (-1.0 / hat, x), (sigma / hat, prediction)]
                else:
                    slope = [(sigma / hat, prediction)]
            self.halfway = combine((1.0, start), *((h / 2 * w, part) for w, part in slope))
            previous = combine((1.0, start), *((h * w, part) for w, part in slope))
        else:
            if raised and not self.as_published:  # without effect, but later draws depend on it
                (noise or draw)(prediction)
            previous = combine((1.0, self.halfway), ((self.levels[i].sigma - hat) / 2, prediction))
            self.halfway = None
        return StepOutput(previous.to(x.dtype), self._later(prediction, i, x))


# -- schedulers ------------------------------------------------------------------------------------------------------


class FlowMatchScheduler(CountedSteps):
    """Base of the flow-matching schedulers. Their config says ``num_train_timesteps`` and ``shift``.

    In ``plan``, and only there, ``sigmas`` include the one to end at (usually 0).
    """

    _compatibles: ClassVar[list[str]] = []
    prediction_types: ClassVar[tuple[str, ...]] = ("flow_prediction",)
    run_options: ClassVar[tuple[str, ...]] = ("as_published",)
    _refuses_whole_timesteps = True
    _shift: float | None = None

    @property
    def shift(self) -> float:
        """How far levels are moved towards noise; 1 leaves them where they are."""
        return self.config.shift if self._shift is None else self._shift

    def set_shift(self, shift: float) -> None:
        """Another ``shift`` for the runs that are laid out from now on."""
        self._shift = shift

    @property
    def sigma_max(self) -> float:
        """The greatest σ of training, shifted."""
        return self._training()[0]

    @property
    def sigma_min(self) -> float:
        """The least σ of training, shifted."""
        return self._training()[-1]

    def _training(self) -> list[float]:
        steps = self.config.num_train_timesteps
        even = np.linspace(1.0, 1.0 / steps, steps)
        return (even if self._own.get("use_dynamic_shifting") else shifted(even, self.config.shift)).tolist()

    def _even(self, steps: int, as_published: bool) -> np.ndarray:
        """σ before they are shifted, evenly or by the timesteps that ``with_spacing`` chose (t is σ = (t + 1)/T)."""
        train_steps = self.config.num_train_timesteps
        if self._spacing is not None and self._spacing[0] in spacings.TIMESTEP_SPACINGS:
            name, options = self._spacing
            return (np.array(spacings.TIMESTEP_SPACINGS[name](train_steps, steps, **options)) + 1) / train_steps
        # The reference begins with ends that are shifted already, and so shifts the last σ twice.
        least = 1.0 / train_steps if as_published else self.sigma_min
        return np.linspace(1.0, least, steps)

    def _lay(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, as_published: bool,
        shift: float | None = None,
    ) -> tuple[list[float] | None, list[float], float]:  # fmt: skip
        """(timesteps if they are given, sigmas, the last sigma) of a run."""
        train_steps = self.config.num_train_timesteps
        final, told = 0.0, None
        if sigmas is not None:
            levels, final = np.array(sigmas[:-1], dtype=np.float64), float(sigmas[-1])
        elif timesteps is not None:
            told = [float(t) for t in timesteps]
            levels = np.array(told) / train_steps
        else:
            levels = self._even(steps, as_published)
        if as_published and (sigmas is not None or timesteps is not None):
            return told, levels.tolist(), final
        levels = shifted(levels, self.shift if shift is None else shift)
        if last := self._own.get("shift_terminal"):
            levels = stretched(levels, last)
        return told, self._spaced_sigmas(steps, float(levels[0]), float(levels[-1])) or levels.tolist(), final

    def _whole(self) -> Run:
        """The levels of training."""
        sigmas = self._training()
        return FlowEulerRun([sigma * len(sigmas) for sigma in sigmas], [*sigmas, 0.0])

    @property
    def sigmas(self) -> torch.Tensor:
        """σ of each level, and after ``set_timesteps`` of the one where the run ends; fp32, on the CPU."""
        return super().sigmas[:-1] if self.num_inference_steps is None else super().sigmas


class FlowMatchEulerDiscreteScheduler(FlowMatchScheduler):
    """First order on straight lines: Stable Diffusion 3, Flux and most models since.

    Args:
        num_train_timesteps: the network is told σ times this.
        shift: how far levels are moved towards noise.
        use_dynamic_shifting, time_shift_type: shift by the run option ``mu`` instead: by exp(mu) ("exponential") or
            by mu ("linear").
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: mu grows with the number of image tokens along
            the line through these two points; see :meth:`mu_for`.
        invert_sigmas: σ counts from 0 (noise) to 1 (image).
        shift_terminal: stretch a run so that its last σ before the end is this.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: lay σ by that spacing between a run's ends; see
            :mod:`langevin.schedulers.spacing`.
        stochastic_sampling: every step goes to x0 and back up to the next level with fresh noise.

    Run options: ``mu``; ``told``: what the network is told at each call, where it is not σ times
    ``num_train_timesteps``; ``as_published``: levels are shifted exactly once, and those given as ``timesteps`` or
    ``sigmas`` are taken as they are, with the timestep that belongs to them. Without it, as in the reference
    implementation, the least σ is shifted twice, given ones are shifted too (given timesteps are told as they are all
    the same), ``stochastic_sampling`` forgets ``invert_sigmas``, and steps per token take the network's negative.

        >>> run = FlowMatchEulerDiscreteScheduler(shift=3.0).plan(20)
        >>> x = torch.randn(1, 16, 8, 8)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    run_options = ("mu", "told", "as_published")
    _steps_at_once = True

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, shift: float = 1.0, use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5, max_shift: float | None = 1.15, base_image_seq_len: int | None = 256,
        max_image_seq_len: int | None = 4096, invert_sigmas: bool = False, shift_terminal: float | None = None,
        use_karras_sigmas: bool | None = False, use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False, time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
    ):  # fmt: skip
        self._check_one_sigma_spacing()
        if time_shift_type not in ("exponential", "linear"):
            raise ValueError(f"time_shift_type={time_shift_type!r} must be one of 'exponential', 'linear'")

    def mu_for(self, image_tokens: int) -> float:
        """The ``mu`` for an image of this many tokens, on the config's line."""
        c = self.config
        slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
        return c.base_shift + slope * (image_tokens - c.base_image_seq_len)

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """s/(s + (1/t - 1)^sigma) with s = exp(mu), or mu for "linear" shifts: ``t`` shifted, for sigma = 1."""
        shift = self._shift_by(mu)
        return shift / (shift + (1 / t - 1) ** sigma)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """``t``, descending, stretched so that its last entry is ``shift_terminal``."""
        return stretched(t, self.config.shift_terminal)

    def _shift_by(self, mu: float) -> float:
        return math.exp(mu) if self.config.time_shift_type == "exponential" else mu

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        mu: float | None = None, told: Sequence[float] | None = None, as_published: bool = False,
    ) -> FlowEulerRun:  # fmt: skip
        c = self.config
        if c.use_dynamic_shifting and mu is None:
            raise ValueError("use_dynamic_shifting=True needs the shift: pass mu, such as mu_for(image_tokens)")
        shift = self._shift_by(mu) if c.use_dynamic_shifting and mu is not None else None
        given, levels, final = self._lay(steps, timesteps, sigmas, as_published, shift)
        if told is not None and len(told) != len(levels):
            raise ValueError(f"{len(told)} timesteps (told) for {len(levels)} sigmas: give one for each")
        if c.invert_sigmas:
            given, levels, final = None, [1.0 - sigma for sigma in levels], 1.0 - final
        elif told is not None:
            given = [float(t) for t in told]
        return FlowEulerRun(
            given or [sigma * c.num_train_timesteps for sigma in levels],
            [*levels, final],
            inverted=c.invert_sigmas,
            as_published=as_published,
            stochastic=c.stochastic_sampling,
        )

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None, mu: float | None = None, timesteps: Sequence[float] | None = None,
        as_published: bool = False,
    ) -> None:  # fmt: skip
        """Choose the levels that the following ``step`` calls visit.

        Args:
            num_inference_steps: how many; not needed with ``sigmas`` or ``timesteps``.
            device: where ``timesteps`` are wanted.
            sigmas: the levels before they are shifted, descending, without the one to end at.
            mu: the shift, if ``use_dynamic_shifting``.
            timesteps: the levels as timesteps; together with ``sigmas``, what the network is told at those.
            as_published: see the class.
        """
        counts = {len(given) for given in (sigmas, timesteps) if given is not None}
        if len(counts | ({num_inference_steps} - {None})) > 1:
            raise ValueError(
                f"num_inference_steps={num_inference_steps}, sigmas={sigmas} and timesteps={timesteps} must be of the "
                "same number, where more than one is given"
            )
        options: dict[str, Any] = {"mu": mu, "as_published": as_published}
        if sigmas is not None:
            ended = [*(float(sigma) for sigma in sigmas), 0.0]
            super().set_timesteps(None, device, sigmas=ended, told=timesteps, **options)
        elif timesteps is not None:
            super().set_timesteps(None, device, timesteps=timesteps, **options)
        else:
            super().set_timesteps(num_inference_steps, device, **options)

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor | float, noise: torch.Tensor) -> torch.Tensor:
        """(1 - σ)·sample + σ·noise, each image of the batch at its own timestep. Blind to ``invert_sigmas``, which
        :meth:`add_noise` is not: so the reference implementation has it.
        """
        alpha, sigma = self._levels_at(timestep, sample)
        if getattr(self.run, "inverted", False):
            alpha, sigma = sigma, alpha
        return (alpha * sample + sigma * noise).to(sample.dtype)

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = float("inf"), s_noise: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        per_token_timesteps: torch.Tensor | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``.
            timestep: one of ``scheduler.timesteps``. Looked up at the first step; after that, steps are counted.
            sample: x at that timestep.
            s_churn, s_tmin, s_tmax, s_noise: without effect, as in the reference implementation.
            generator: where noise comes from; a list gives each image its own.
            per_token_timesteps: (batch, tokens), each token's own timestep, for a sample (batch, tokens, channels);
                see :meth:`FlowEulerRun.step_tokens`.
            return_dict: False gives the tuple ``(prev_sample,)``.
        """
        if per_token_timesteps is None:
            output = self._step(model_output, timestep, sample, generator, True)
        else:
            run, i = self.run, self._locate(timestep)
            assert isinstance(run, FlowEulerRun)
            sigmas = per_token_timesteps / self.config.num_train_timesteps
            output = run.step_tokens(model_output, sigmas, sample, lambda like: draw(like, generator))
            self._step_index = i + 1
        return output if return_dict else (output[0],)


class FlowMatchHeunDiscreteScheduler(FlowMatchScheduler):
    """Second order on straight lines; two network calls a step, so n steps are 2n - 1 calls.

    Args:
        num_train_timesteps: the network is told σ times this.
        shift: how far levels are moved towards noise.

    Run options: ``s_churn``, ``s_tmin``, ``s_tmax``, ``s_noise``: the noise added before steps whose σ lies in
    [s_tmin, s_tmax]; ``as_published``: levels are shifted exactly once, given ones are taken as they are, and added
    noise replaces as much of the image as belongs to its level. Without it, as in the reference implementation, the
    least σ is shifted twice, and added noise leaves x louder than any level.

        >>> run = FlowMatchHeunDiscreteScheduler(shift=3.0).plan(10)  # 19 calls
        >>> x = torch.randn(1, 16, 8, 8)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
    """

    order = 2
    run_options = ("s_churn", "s_tmin", "s_tmax", "s_noise", "as_published")

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0):
        pass

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        as_published: bool = False, **churn: Any,
    ) -> FlowHeunRun:  # fmt: skip
        given, levels, final = self._lay(steps, timesteps, sigmas, as_published)
        told = given or [sigma * self.config.num_train_timesteps for sigma in levels]
        calls = [told[0], *(t for t in told[1:] for _ in range(2))]
        visited = [levels[0], *(s for s in levels[1:] for _ in range(2)), final]
        return FlowHeunRun(calls, visited, as_published=as_published, **churn)

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int, device: str | torch.device | None = None, as_published: bool = False
    ) -> None:
        """Choose the levels that the following ``step`` calls visit; see the class for ``as_published``."""
        super().set_timesteps(num_inference_steps, device, as_published=as_published)

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of its step."""
        return getattr(self.run, "halfway", None) is None

    def scale_noise(self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """(1 - σ)·sample + σ·noise at the run's place, or, if it has not begun, at this timestep, where it begins."""
        return self.run.add_noise(sample, noise, self._begin(timestep))

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor,
        s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = float("inf"), s_noise: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """One call's step of the run that ``set_timesteps`` laid out.

        Args:
            model_output: the network's output at ``timestep``.
            timestep: one of ``scheduler.timesteps``. Looked up at the first step; after that, steps are counted.
            sample: x at that timestep.
            s_churn, s_tmin, s_tmax, s_noise: how much noise to add before steps whose σ lies in [s_tmin, s_tmax].
            generator: where noise comes from; a list gives each image its own.
            return_dict: False gives the tuple ``(prev_sample,)``.
        """
        options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        output = self._step(model_output, timestep, sample, generator, True, None, **options)
        return output if return_dict else (output[0],)
