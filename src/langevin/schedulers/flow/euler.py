"""Euler's method on straight lines (Lipman et al. 2023, arXiv:2210.02747, section 5; Esser et al. 2024,
arXiv:2403.03206). See :mod:`langevin.schedulers.flow.base`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers.arithmetic import DrawNoise, cast, draw, upcast
from langevin.schedulers.flow.base import FlowMatchScheduler, FlowRun, stretched
from langevin.schedulers.flow.deviations import Published
from langevin.schedulers.run import StepOutput
from langevin.schedulers.weights import Weights


class FlowEulerRun(FlowRun):
    """x ← x + (σ_next - σ)·output; or, ``stochastic``, to x0 and from there to σ_next with fresh noise."""

    def __init__(self, *args: Any, stochastic: bool = False, **options: Any):
        self.stochastic = stochastic
        self._ladders: dict[torch.device, torch.Tensor] = {}
        super().__init__(*args, **options)

    def configure(self) -> None:
        self.weights: list[Weights] = []
        for level, target, (sigma, following) in zip(self.levels, self.targets, pairwise(self.sigmas), strict=True):
            if self.stochastic:
                reading = self.to_x0(level)
                (p, q), (alpha, noise) = self.manner.down_and_up(reading, sigma, target, following)
                self.weights.append(Weights(alpha * p, alpha * q, of_noise=noise))
            else:
                self.weights.append(Weights(1.0, following - sigma))

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        weights = self.weights[i]
        z = (noise or draw)(upcast(x)) if weights.of_noise else None
        return StepOutput(cast(weights.sum(x, prediction, z=z), x.dtype), self._later(prediction, i, x))

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
        sign = 1.0 if self.stochastic else self.manner.sign_of_tokens
        x0 = upcast(x) - (sign * here) * prediction
        if self.stochastic:
            previous = (1.0 - there) * x0 + there * (noise or draw)(x0)
        else:
            previous = upcast(x) + (sign * (there - here)) * prediction
        return StepOutput(cast(previous, x.dtype), cast(x0, x.dtype))


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
    _whole_run = FlowEulerRun

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
        manner: Published, mu: float | None = None, told: Sequence[float] | None = None,
    ) -> FlowEulerRun:  # fmt: skip
        c = self.config
        if c.use_dynamic_shifting and mu is None:
            raise ValueError("use_dynamic_shifting=True needs the shift: pass mu, such as mu_for(image_tokens)")
        shift = self._shift_by(mu) if c.use_dynamic_shifting and mu is not None else None
        given, levels, final = self._lay(steps, timesteps, sigmas, manner, shift)
        if told is not None and len(told) != len(levels):
            raise ValueError(f"{len(told)} timesteps (told) for {len(levels)} sigmas: give one for each")
        if c.invert_sigmas:
            given, levels, final = None, [1.0 - sigma for sigma in levels], 1.0 - final
        elif told is not None:
            given = [float(t) for t in told]
        return FlowEulerRun(
            given or [sigma * c.num_train_timesteps for sigma in levels],
            [*levels, final],
            manner,
            c.invert_sigmas,
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
            return self._step(model_output, timestep, sample, generator, return_dict)
        run, i = self.run, self._locate(timestep)
        assert isinstance(run, FlowEulerRun)
        sigmas = per_token_timesteps / self.config.num_train_timesteps
        output = run.step_tokens(model_output, sigmas, sample, lambda like: draw(like, generator))
        self._step_index = i + 1
        return output if return_dict else (output[0],)
