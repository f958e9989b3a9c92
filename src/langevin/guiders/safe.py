"""Away from a concept: Safe Latent Diffusion, Schramowski, Brack, Deiseroth & Kersting 2023 (2211.05105)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from langevin.guiders.base import Guider, Setup
from langevin.guiders.classifier_free import ClassifierFreeGuidance, guidance_in
from langevin.guiders.step import Step, add_branch


@dataclass
class SafeGuidance(Guider):
    """Steer away from a concept where the prompt heads for it, and leave other pictures alone.

    It bends classifier-free guidance, so it is idle where that is. Several may be given, each with a concept.

    Args:
        concept: what to avoid, in words; or one text per prompt.
        scale: s_S of equation 6, how strongly it sets in; 1 or less is off.
        warmup_steps: δ of equation 3, how many network calls are left alone: more of them keep more of the picture.
        threshold: λ of equation 6: places whose prediction for the prompt exceeds that for the concept by this much or
            more are left alone. Higher is stricter.
        momentum_scale, momentum_beta: s_m of equation 7 and β_m of equation 8: places that were steered go on being
            steered. Momentum builds up during the warm-up too; with ``momentum_scale`` 0, or where the run ends with
            the warm-up, the concept is not computed there.

    Raises:
        ValueError: a number is below 0, or ``momentum_beta`` is not in 0..1.

    Example:
        >>> pipe("a circle", guiders=[SafeGuidance("red", warmup_steps=2)])
    """

    concept: str | list[str]
    scale: float = 1000.0
    warmup_steps: int = 10
    threshold: float = 0.01
    momentum_scale: float = 0.3
    momentum_beta: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "warmup_steps", "momentum_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} of SafeGuidance must not be below 0")
        if not 0 <= self.momentum_beta <= 1:
            raise ValueError(f"momentum_beta={self.momentum_beta} of SafeGuidance must be in 0..1")
        self._branch = ""
        self._guidance: ClassifierFreeGuidance | None = None
        self._comes_first = False
        self._momentum: Tensor | None = None

    def prepare(self, setup: Setup) -> None:
        self._guidance = None
        self._momentum = None
        if self.scale <= 1:
            return
        self._guidance = guidance_in(setup, "SafeGuidance")
        if self._guidance is None:
            return
        if setup.encode_text is None:
            raise ValueError("SafeGuidance needs a pipeline that reads texts, to tell it what the concept is")
        self._branch = add_branch(setup.branches, "safety", setup.encode_text(self.concept))
        self._comes_first = next(g for g in setup.guiders if g is self or g is self._guidance) is self

    def needs(self, step: Step) -> Collection[str]:
        if self.scale <= 1 or self._guidance is None or not self._guidance.needs(step):
            return ()
        if self._warms_up(step) and (self.momentum_scale == 0 or step.total - step.start <= self.warmup_steps):
            return ()  # no later step takes the momentum up
        return ("negative", self._branch)

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        if not self.needs(step) or self._guidance is None:
            return prediction
        # in half precision the scale would overflow, and the momentum lose its small parts
        positive, negative, concept = (
            predictions[name].to(torch.promote_types(prediction.dtype, torch.float32))
            for name in ("positive", "negative", self._branch)
        )
        nearer = positive - concept
        strength = (nearer.abs() * self.scale).clamp(max=1)  # equation 6
        away = torch.where(nearer < self.threshold, (concept - negative) * strength, 0)  # equation 4
        if self.momentum_scale:
            before = torch.zeros_like(away) if self._momentum is None else self._momentum
            away = away + self.momentum_scale * before  # equation 7
            self._momentum = away.lerp(before, self.momentum_beta)  # equation 8
        if self._warms_up(step):
            return prediction
        # equation 3: guidance moves by scale · (positive - negative - away)
        away = away if self._comes_first else away * self._guidance.scale
        return (prediction - away).to(prediction.dtype)

    def _warms_up(self, step: Step) -> bool:
        return step.index - step.start < self.warmup_steps
