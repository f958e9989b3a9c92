"""Discrete diffusion over the codes of a vector-quantised picture: Gu et al. 2022, "Vector Quantized Diffusion Model
for Text-to-Image Synthesis", arXiv:2111.14822, after Austin et al. 2021 (arXiv:2107.03006).

In a step of the forward process a code stays with probability α + β, becomes any one of the other K with probability β
each, or is masked with probability γ = 1 - α - K·β; the mask stays (equation 7). Over several steps α and 1 - γ
multiply (equation 8), so a transition between any two timesteps is three numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log
from typing import NamedTuple

import torch

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import spacing as spacings
from langevin.schedulers.arithmetic import DrawNoise, drawn_by, upcast
from langevin.schedulers.discrete.deviations import VISITED
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run, StepOutput
from langevin.schedulers.scheduler import SchedulerMixin

_LEAST = 1e-30  # stands in for a probability of 0


class Transition(NamedTuple):
    """α, γ and the number of codes K of a transition."""

    alpha: float
    gamma: float
    codes: int

    @property
    def beta(self) -> float:
        return (1.0 - self.alpha - self.gamma) / self.codes

    def after(self, earlier: Transition) -> Transition:
        """The rest of this transition, once the first part of it is done."""
        alpha = self.alpha / earlier.alpha
        return Transition(alpha, 1.0 - (1.0 - self.gamma) / (1.0 - earlier.gamma), self.codes)

    def logs(self) -> tuple[float, float, float, float]:
        """Logarithms of α, β, α + β and γ."""
        return _log(self.alpha), _log(self.beta), _log(self.alpha + self.beta), _log(self.gamma)


def _log(p: float) -> float:
    return log(p) if p > 0.0 else -inf


def forward(x0: torch.Tensor, transition: Transition) -> tuple[torch.Tensor, torch.Tensor]:
    """q(x_t | x0) of the codes, (batch, K, places), and of the mask, (batch, 1, places); x0: (batch, places)."""
    p_codes = torch.full((len(x0), transition.codes, x0.shape[1]), transition.beta, device=x0.device)
    p_codes.scatter_(1, x0.unsqueeze(1), transition.alpha + transition.beta)
    return p_codes, torch.full_like(p_codes[:, :1], transition.gamma)


def posterior(
    log_p_x0: torch.Tensor, x: torch.Tensor, whole: Transition, before: Transition, step: Transition
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """p(x_s | x_t) = Σ q(x_s | x_t, x0)·p(x0) with Bayes' q(x_t | x_s)·q(x_s | x0)/q(x_t | x0) (equation 11).

    Args:
        log_p_x0: (batch, K, places), the network's log probabilities of the codes of the clean picture.
        x: (batch, places), the codes at timestep t; K is the mask.
        whole, before, step: the transitions 0 → t, 0 → s and s → t.

    Returns:
        (batch, K, places) and (batch, 1, places): probabilities of the codes at timestep s and of the mask, up to a
        factor for each place; and the logarithm of that, (batch, 1, places).
    """
    log_p_x0, codes = upcast(log_p_x0), log_p_x0.shape[1]
    masked = (x == codes).unsqueeze(1)
    own = x.unsqueeze(1).where(~masked, 0)  # the code at each place, whose row is different from the others

    def towards_x(transition: Transition) -> tuple[torch.Tensor, torch.Tensor]:
        """log q(x_t | from another code) and log q(x_t | from the same), (batch, 1, places) each."""
        _, _, stays, gamma = transition.logs()
        becomes = _log(transition.beta + _LEAST * transition.alpha)
        number = torch.full_like(log_p_x0[:, :1], gamma)
        return number.where(masked, becomes), number.where(masked, stays)

    other, same = towards_x(whole)
    likely = (log_p_x0 - other).scatter_(1, own, log_p_x0.gather(1, own) - same)
    factor = likely.amax(1, keepdim=True)
    weight = likely.sub_(factor).exp_()  # p(x0)/q(x_t | x0), up to the factor
    total = weight.sum(1, keepdim=True)

    other, same = (log_q.exp() for log_q in towards_x(step))
    own_now = (weight.gather(1, own) * before.alpha + total * before.beta) * same
    p_codes = torch.addcmul(total * (before.beta * other), weight, before.alpha * other).scatter_(1, own, own_now)
    p_mask = total * before.gamma
    return p_codes, p_mask.where(masked, p_mask * _LEAST), factor  # only the mask stays masked


def draw_codes(p_codes: torch.Tensor, p_mask: torch.Tensor | None, uniform: torch.Tensor) -> torch.Tensor:
    """One code per place by its probability, (batch, codes, places) and (batch, 1, places), up to a factor.

    -log u is the time until something of rate 1 happens, -log u/p until something of rate p does; what happens first is
    the draw. ``uniform``: noise in [0, 1), (batch, codes + 1, places), or without the mask's row, if that cannot be.
    """
    times = uniform.clamp(min=_LEAST).log_()  # negative: so the greatest p/time is the least number
    if p_mask is None:
        return (p_codes / times).argmin(1)
    first, code = (p_codes / times[:, :-1]).min(1, keepdim=True)
    return code.where(p_mask / times[:, -1:] >= first, p_codes.shape[1]).squeeze(1)


def draw_uniform(
    like: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
) -> torch.Tensor:
    """Uniform noise in [0, 1), fp32; a list of generators gives each picture of the batch its own."""
    return drawn_by(torch.rand, like, generator, torch.float32)


class VQDiffusionRun(Run):
    """x_s drawn from p(x_s | x_t), code by code. x: (batch, places), whole numbers; it begins as all mask.

    The network's output is log p(x0), (batch, K, places), finite. ``noise`` must be *uniform* in [0, 1), shaped like
    its argument, fp32: ``torch.rand_like``, or :func:`draw_uniform`. It is used as it comes.
    """

    def __init__(self, timesteps: list[int], wholes: list[Transition], befores: list[Transition | None]):
        """``wholes``, ``befores``: from the clean picture to where each call begins and to where it goes."""
        self.wholes = wholes
        self.transitions = [
            None if before is None else (whole, before, whole.after(before))
            for whole, before in zip(wholes, befores, strict=True)
        ]
        # The share of codes that are still the picture's own; what else a level is, only self.wholes says.
        levels = [Level(whole.alpha, 1.0 - whole.alpha) for whole in wholes]
        super().__init__([*timesteps], levels, [*levels[1:], Level(1.0, 0.0)], "log_probabilities")

    def begin(
        self, first_noise: Callable[[], torch.Tensor], noise: DrawNoise, shape: Sequence[int],
        device: str | torch.device,
    ) -> torch.Tensor:  # fmt: skip
        """The mask at every place, int64, (batch, places). Nothing is drawn."""
        return torch.full(tuple(shape), self.mask, dtype=torch.int64, device=device)

    @property
    def mask(self) -> int:
        """The code that says nothing about the picture: K, one more than the last of the others."""
        return self.wholes[0].codes

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, i: int) -> torch.Tensor:
        """Codes drawn from q(x_t | x0) at call ``i``; after the last, x0. noise: uniform, (batch, K + 1, places)."""
        return x0 if i == len(self) else draw_codes(*forward(x0, self.wholes[i]), noise)

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        transitions = self.transitions[i]
        if transitions is None:  # of a clean picture nothing is masked
            p_codes, p_mask = upcast(prediction).exp(), None
        else:
            p_codes, p_mask, _ = posterior(prediction, x, *transitions)
        rows = p_codes.shape[1] + (p_mask is not None)
        uniform = (noise or draw_uniform)(p_codes.new_empty(len(p_codes), rows, p_codes.shape[2]))
        codes = draw_codes(p_codes, p_mask, uniform)
        return StepOutput(codes, lambda: prediction.argmax(1))


class VQDiffusionScheduler(SchedulerMixin):
    """Draws the codes of a less noisy picture, mask first.

    Args:
        num_vec_classes: codes, with the mask, which is the last.
        num_train_timesteps: timesteps of the forward process.
        alpha_cum_start, alpha_cum_end, gamma_cum_start, gamma_cum_end: ᾱ and γ̄ after the first timestep and after
            the last, linear between.

    Run option ``as_published``: n steps are spread over all timesteps, each skipping some (the paper's fast
    inference strategy). Without it, they are the n quietest timesteps, one by one, as in the reference implementation,
    though a picture that is all mask belongs to the last. For n = ``num_train_timesteps`` that is the same.
    ``with_spacing`` takes the timestep spacings; "simple" and "trailing" are the paper's, rounded one way or the other.

        >>> run = VQDiffusionScheduler(num_vec_classes=2887).plan(25, as_published=True)
        >>> x = torch.full((1, 1024), 2886)  # or run.begin(…)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x, noise=torch.rand_like).prev_sample
    """

    run_options = ("as_published",)
    _manners = VISITED
    _spacings = spacings.TIMESTEP_SPACINGS
    _spacings_because = "masks codes and has no σ"
    _compatibles = []
    init_noise_sigma = 1.0  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self, num_vec_classes: int, num_train_timesteps: int = 100, alpha_cum_start: float = 0.99999,
        alpha_cum_end: float = 0.000009, gamma_cum_start: float = 0.000009, gamma_cum_end: float = 0.99999,
    ):  # fmt: skip
        self.num_embed = num_vec_classes
        self.mask_class = num_vec_classes - 1

    def transition_to(self, timestep: int) -> Transition:
        """The transition from the clean picture to a timestep."""
        c = self.config
        part = timestep / (c.num_train_timesteps - 1)
        alpha = part * (c.alpha_cum_end - c.alpha_cum_start) + c.alpha_cum_start
        gamma = part * (c.gamma_cum_end - c.gamma_cum_start) + c.gamma_cum_start
        return Transition(alpha, gamma, self.mask_class)

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: Callable[[int, int], int],
    ) -> VQDiffusionRun:  # fmt: skip
        if sigmas is not None:
            raise ValueError("VQDiffusionScheduler has no σ: give num_inference_steps or timesteps")
        if timesteps is not None:
            visited = [int(t) for t in self._checked(timesteps)]
        elif self._spacing is not None:
            visited = [int(t) for t in self._on_grid(self._spaced_timesteps(steps), steps)]
        else:
            if steps > len(self):
                raise ValueError(f"num_inference_steps={steps} is more than the {len(self)} timesteps that there are")
            last = manner(steps, len(self))
            visited = [k * last // steps - 1 for k in range(steps, 0, -1)]
        wholes = [self.transition_to(t) for t in visited]
        return VQDiffusionRun(visited, wholes, [*wholes[1:], None])

    def step(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None, return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:  # fmt: skip
        """Draw x at the run's next timestep, or, where no run has this one, at ``timestep - 1``; at 0, the picture.

        Args:
            model_output: log p(x0), (batch, K, places), without the mask, finite.
            timestep: where the sample is.
            sample: codes, (batch, places).
            generator: where noise comes from; a list gives each picture its own.
            return_dict: False gives the tuple ``(prev_sample,)``.
        """
        t, run = int(timestep), self._run
        if run is None or t not in run.timesteps:
            whole, before = self.transition_to(t), self.transition_to(t - 1) if t > 0 else None
            run = VQDiffusionRun([t], [whole], [before])
        output = run.step(model_output, run.timesteps.index(t), sample, lambda like: draw_uniform(like, generator))
        return output if return_dict else (output.prev_sample,)

    def q_posterior(self, log_p_x_0: torch.Tensor, x_t: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """log p(x_{t-1} | x_t), (batch, K + 1, places), the mask last: :func:`posterior`, 0 < t."""
        whole, before = self.transition_to(int(t)), self.transition_to(int(t) - 1)
        p_codes, p_mask, factor = posterior(log_p_x_0, x_t, whole, before, whole.after(before))
        return torch.cat([p_codes, p_mask], 1).log_().add_(factor)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float
    ) -> torch.Tensor:
        """Codes drawn from q(x_t | x0).

        Args:
            original_samples: the clean codes, (batch, places).
            noise: uniform in [0, 1), (batch, K + 1, places).
            timesteps: (batch,) or one for all.
        """
        told = torch.as_tensor(timesteps).expand(len(original_samples)).tolist()
        alone = [forward(x0[None], self.transition_to(t)) for x0, t in zip(original_samples, told, strict=True)]
        p_codes, p_mask = (torch.cat(parts) for parts in zip(*alone, strict=True))
        return draw_codes(p_codes, p_mask, noise)
