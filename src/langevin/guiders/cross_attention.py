"""Keeping what is looked at: cross-attention guidance of pix2pix-zero, Parmar et al. 2023 (2302.03027), section 3.3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from langevin.guiders.attention_maps import watching
from langevin.guiders.base import Guider, Setup
from langevin.guiders.classifier_free import ClassifierFreeGuidance
from langevin.guiders.step import Step
from langevin.models.layers.attention import Attention


@dataclass
class AttentionMaps:
    """What cross-attention looked at in a run: by network call and branch, one layer after the other, on the CPU."""

    kept: dict[tuple[int, str], list[Tensor]] = field(default_factory=dict)


@dataclass
class KeepAttention(Guider):
    """Keep what cross-attention looks at, for :class:`CrossAttentionGuidance` in another stage or call.

    Args:
        maps: where it is kept.
    """

    maps: AttentionMaps

    def prepare(self, setup: Setup) -> None:
        self.maps.kept.clear()

    def attention(self, step: Step) -> Callable[..., Tensor]:
        def seen(probabilities: Tensor, layer: Attention, names: Sequence[str] = (), **_: Any) -> None:
            for name, rows in zip(names, probabilities.chunk(len(names)), strict=True):
                self.maps.kept.setdefault((step.index, name), []).append(rows.detach().cpu())

        return watching(_looks_at_text, seen, step.attention)


@dataclass
class CrossAttentionGuidance(Guider):
    """Move x so that the network looks at the same places as in another run, whatever it is told now.

    Before a step the network is asked with each branch's text, and x moves down the gradient of ||M - M_ref||²
    (equation 5), one x for each branch; predictions are those for the moved ones. From the negative branch's x the run
    goes on. Each step asks the network twice, once with gradients.

    Args:
        maps: what was looked at in a run of as many steps, with the same branches: see :class:`KeepAttention`.
        amount: how far x is moved; 0 is off.
        unscaled: bring x back to its own scale after it was moved as the network sees it. False goes on from what the
            network sees, as the reference does: the same with most schedulers, but with those that count in σ (Euler,
            LMS, …) x shrinks.

    Raises:
        ValueError: below ``torch.inference_mode``; where the other run had no such network call.
    """

    maps: AttentionMaps
    amount: float = 0.1
    unscaled: bool = True

    def prepare(self, setup: Setup) -> None:
        if torch.is_inference_mode_enabled():
            raise ValueError("cross-attention guidance needs gradients, which torch.inference_mode forbids; leave it")
        self._guidance = next((g for g in setup.guiders if isinstance(g, ClassifierFreeGuidance)), None)

    def before(self, x: Tensor, step: Step) -> Tensor:
        if not self.amount and self.unscaled:
            return x
        guided = self._guidance is not None and bool(self._guidance.needs(step)) and "negative" in step.branches
        names = ["negative", "positive"] if guided else ["positive"]
        shown, scale = (step.run.scale_model_input(t, step.index) for t in (x, torch.ones(())))
        moved = {name: self._towards(shown, step, name, len(names)) if self.amount else shown for name in names}
        step.shown |= moved
        return moved[names[0]] / float(scale) if self.unscaled else moved[names[0]]

    def _towards(self, shown: Tensor, step: Step, name: str, branches: int) -> Tensor:
        """x as the network sees it, moved until a branch looks more at what it looked at before."""
        wanted = iter(self.maps.kept.get((step.index, name), ()))
        losses: list[Tensor] = []

        def seen(probabilities: Tensor, layer: Attention, **_: Any) -> None:
            reference = next(wanted, None)
            if reference is None or reference.shape != probabilities.shape:
                raise ValueError(
                    f"the run whose attention was kept saw nothing like this at step {step.index}; both need the same "
                    "steps, branches and sizes"
                )
            far = (probabilities - reference.to(probabilities)) ** 2
            losses.append(far.sum() / (branches * probabilities.shape[1]))  # the mean over branches and heads

        told = step.conditions([name])
        with torch.enable_grad():
            x = shown.detach().requires_grad_()
            step.denoiser(x, step, told, watching(_looks_at_text, seen, step.attention))
            (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), x)
        return (x - self.amount * gradient).detach()


def _looks_at_text(q: Tensor, k: Tensor, layer: Attention, views: Any) -> bool:
    return layer.is_cross_attention
