"""Only the likelier codes: truncation sampling, Gu et al. 2022 (2111.14822)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from langevin.checks import Share
from langevin.guiders.base import Guider
from langevin.guiders.step import Step

_LEAST = -70.0  # log p of a code that is left out


@dataclass
class Truncation(Guider):
    """Leaves out the least likely codes of each place, for networks whose answer is log p of codes. It goes behind all
    guidance, which leaves no probabilities, and makes some of it again.

    Args:
        rate: the most likely codes are kept, as many as it takes to reach this probability: 1 keeps all, 0 one. Less
            makes pictures smoother and more alike.
    """

    rate: Share = 1.0

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        log_p = prediction.log_softmax(dim=1)
        if self.rate < 1:
            ordered, order = log_p.sort(dim=1, descending=True)
            kept = (ordered.exp().cumsum(dim=1) < self.rate).roll(1, dims=1)
            kept[:, 0] = True
            log_p = log_p.masked_fill(~kept.scatter(1, order, kept), _LEAST)
        return log_p.clamp(min=_LEAST)
