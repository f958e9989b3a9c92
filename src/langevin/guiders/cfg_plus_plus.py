"""CFG++: Chung, Kim, Park, Nam & Ye 2024, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models",
arXiv:2406.08070, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from langevin.guiders.classifier_free import ClassifierFreeGuidance
from langevin.guiders.step import Step
from langevin.schedulers import prediction as predictions_


@dataclass
class CFGPlusPlus(ClassifierFreeGuidance):
    """The image is predicted with guidance, but noise goes back in as the negative branch sees it.

    x ← α_next·x0(ε_guided) + σ_next·ε_negative, with ε_guided = ε_negative + scale · (ε_positive - ε_negative).
    It takes the place of :class:`ClassifierFreeGuidance` when it is given to a pipeline.

    The step itself is the solver's, with the guided prediction; its noise is exchanged afterwards. So it works with
    solvers that put x0 and this call's own ε together: DDIM (any eta), Euler (no churn), Euler ancestral, DPM-Solver++
    (multistep, with "sde-" too), DPM-Solver++(3M) SDE, RES multistep, ER-SDE. Others are refused with a ValueError.

    Args:
        scale: λ of the paper, 0 to 1, and not the usual guidance scale: 0.6 is about as strong as 7.5 there.
        start, stop: the share of the run in which guidance acts; outside, the negative branch is not computed.

        >>> pipe("a red circle", guiders=[CFGPlusPlus(0.6)])
    """

    scale: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.scale <= 1:
            raise ValueError(
                f"scale={self.scale} of CFGPlusPlus must be in 0..1, where 0.6 is about as strong as a guidance scale "
                "of 7.5"
            )
        self._exchange: Tensor | None = None

    def needs(self, step: Step) -> Collection[str]:
        return ("negative",) if self.start <= step.progress < self.stop else ()

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        self._exchange = None
        if not self.needs(step):
            return prediction
        kept = step.run.noise_kept(step.index)
        if kept is None:
            raise ValueError(
                f"CFGPlusPlus does not work with {type(step.run).__name__}, whose steps are more than x0 and ε of one "
                "call; use DDIMScheduler, EulerDiscreteScheduler or DPMSolverMultistepScheduler, or "
                "ClassifierFreeGuidance"
            )
        negative = predictions["negative"]
        guided = negative.lerp(prediction, self.scale)
        # ε = r·x + w·output, so two ε at one x differ by w·(difference of outputs)
        _, w = predictions_.to_epsilon(step.run.prediction_type, step.run.levels[step.index])
        self._exchange = kept * w * (negative - guided)
        return guided

    def after(self, x: Tensor, step: Step) -> Tensor:
        return x if self._exchange is None else (x + self._exchange).to(x.dtype)
