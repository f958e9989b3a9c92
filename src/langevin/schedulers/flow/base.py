"""Flow matching on straight lines: x = (1 - σ)·x0 + σ·ε, and the network gives dx/dσ = ε - x0 (Lipman et al. 2023,
arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003). Levels are shifted towards noise for large images (Esser et al.
2024, "Scaling Rectified Flow Transformers", arXiv:2403.03206, section 5.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from langevin.schedulers import spacing as spacings
from langevin.schedulers.flow.deviations import FLOW, Published
from langevin.schedulers.noise import Level
from langevin.schedulers.run import Run
from langevin.schedulers.steps import CountedSteps


def shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """s·σ/(1 + (s - 1)·σ): the σ at which s² times the pixels hide as much of the image (equation 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def stretched(sigmas: np.ndarray, last: float) -> np.ndarray:
    """1 - σ scaled so that the last σ is ``last``; a run of σ = 1 alone has nothing to stretch."""
    return 1 - (1 - sigmas) * ((1 - last) / (1 - sigmas[-1])) if sigmas[-1] < 1.0 else sigmas


class FlowRun(Run):
    """A run over ``sigmas``: one per call, and the one where it ends.

    Args:
        manner: what is left to choose in a step.
        inverted: σ counts the other way, from 0 (noise) to 1 (image), and the output is x0 - ε.
    """

    def __init__(
        self, timesteps: list[float], sigmas: list[float], manner: Published = FLOW.reference, inverted: bool = False,
        **options: Any,
    ):  # fmt: skip
        self._sigmas = sigmas
        self.manner = manner
        self.inverted = inverted
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


class FlowMatchScheduler(CountedSteps):
    """Base of the flow-matching schedulers. Their config says ``num_train_timesteps`` and ``shift``.

    In ``plan``, and only there, ``sigmas`` include the one to end at (usually 0).
    """

    _compatibles: ClassVar[list[str]] = []
    prediction_types: ClassVar[tuple[str, ...]] = ("flow_prediction",)
    run_options: ClassVar[tuple[str, ...]] = ("as_published",)
    _manners = FLOW
    _refuses_whole_timesteps = True
    _tuple_has_original = False
    _shift: float | None = None
    _whole_run: ClassVar[type[FlowRun]] = FlowRun

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

    def _even(self, steps: int, manner: Published) -> np.ndarray:
        """σ before they are shifted, evenly or by the timesteps that ``with_spacing`` chose (t is σ = (t + 1)/T)."""
        train_steps = self.config.num_train_timesteps
        if self._spacing is not None and self._spacing[0] in spacings.TIMESTEP_SPACINGS:
            name, options = self._spacing
            return (np.array(spacings.TIMESTEP_SPACINGS[name](train_steps, steps, **options)) + 1) / train_steps
        return np.linspace(1.0, manner.least(1.0 / train_steps, self.sigma_min), steps)

    def _lay(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, manner: Published,
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
            levels = self._even(steps, manner)
        if (sigmas is not None or timesteps is not None) and not manner.shifts_given:
            return told, levels.tolist(), final
        levels = shifted(levels, self.shift if shift is None else shift)
        if last := self._own.get("shift_terminal"):
            levels = stretched(levels, last)
        return told, self._spaced_sigmas(steps, float(levels[0]), float(levels[-1])) or levels.tolist(), final

    def _whole(self) -> Run:
        """The levels of training."""
        sigmas = self._training()
        return self._whole_run([sigma * len(sigmas) for sigma in sigmas], [*sigmas, 0.0])

    @property
    def sigmas(self) -> torch.Tensor:
        """σ of each level, and after ``set_timesteps`` of the one where the run ends; fp32, on the CPU."""
        return super().sigmas[:-1] if self.num_inference_steps is None else super().sigmas
