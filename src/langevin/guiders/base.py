"""What a guider is: an object that steers the loop at any of three moments of a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from langevin.schedulers.base import Run

Conditions = Mapping[str, Any]
"""Keyword arguments of the network for one branch, such as ``{"encoder_hidden_states": (batch, tokens, dim)}``."""

Denoiser = Callable[..., "dict[str, Tensor]"]
"""``denoiser(x, t, branches, attention=None) -> {branch: prediction}``: see :mod:`langevin.denoiser`."""


@dataclass(slots=True)
class Step:
    """One network call's place in a run, as guiders see it.

    Attributes:
        index: 0, 1, … up to ``total - 1``.
        total: network calls in the run.
        timestep: what the network is told.
        run: the scheduler's run; ``run.add_noise(x0, noise, index)`` brings a clean x to this step's level.
        branches: all conditions of the call by branch name, "positive" among them. A guider may replace entries.
        denoiser: the network and its wrappers; see :meth:`predict`.
        noise: ``noise(like)`` draws fresh noise from the call's generators.
    """

    index: int
    total: int
    timestep: float
    run: Run
    branches: dict[str, Conditions]
    denoiser: Denoiser
    noise: Callable[[Tensor], Tensor]

    def predict(self, x: Tensor, names: Iterable[str], attention: Callable | None = None) -> dict[str, Tensor]:
        """Ask the network at this step about any x (unscaled), for the named branches."""
        chosen = {name: self.branches[name] for name in names}
        return self.denoiser(self.run.scale_model_input(x, self.index), self.timestep, chosen, attention)

    @property
    def progress(self) -> float:
        """Share of the run that lies behind this step, 0 ≤ progress < 1."""
        return self.index / self.total


class Guider:
    """Steers a run. Override what you need; every pipeline takes instances in ``guiders=[…]``.

    A guider keeps its settings. What changes during a call may be kept on ``self`` too: the loop works on the copy
    that :meth:`begin` returns, made for that call alone.
    """

    def begin(self) -> Guider:
        """The guider that serves one call: a copy, so that calls in other threads do not see its scratch."""
        return copy.copy(self)

    def needs(self, step: Step) -> Collection[str]:
        """Branches whose predictions :meth:`combine` wants at this step. Others are not computed."""
        return ()

    def attention(self, step: Step) -> Callable[..., Tensor] | None:
        """An attention function ``(q, k, v, mask, layer) -> out`` for this step's network call, or None."""
        return None

    def before(self, x: Tensor, step: Step) -> Tensor:
        """Change x, ``(batch, channels, height, width)`` at this step's noise level, before the network sees it."""
        return x

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        """Turn the branches' predictions into one.

        Args:
            prediction: the result of the guiders before this one; at first the positive branch's prediction.
            predictions: what the network said for each needed branch, in the network's own output space.
            x: what the step started from.
        """
        return prediction

    def after(self, x: Tensor, step: Step) -> Tensor:
        """Change x after the solver moved it to the next noise level (``step.index + 1``)."""
        return x
