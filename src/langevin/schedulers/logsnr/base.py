"""Schedulers that count in λ = log(α/σ), half the log signal-to-noise ratio: the exponential integrators.

In λ the probability-flow equation is linear but for the network, and the linear part has an exact solution
(Lu et al. 2022, arXiv:2206.00927, proposition 3.1). What these solvers share: which levels a run visits, and how the
network's output is turned into x0 or ε.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from langevin.schedulers import prediction as predictions
from langevin.schedulers import spacing as spacings
from langevin.schedulers.arithmetic import combine
from langevin.schedulers.logsnr.deviations import LOGSNR, Published
from langevin.schedulers.noise import SMALLEST_ALPHA_BAR, Level
from langevin.schedulers.run import Run
from langevin.schedulers.steps import CountedSteps


def log_snr(level: Level) -> float:
    """λ = log(α/σ); infinite for a clean image."""
    return math.log(level.alpha / level.sigma) if level.sigma else math.inf


AnyRun = TypeVar("AnyRun", bound="LogSNRRun")

_CUT = ("karras", "exponential", "beta", "lu")
"""Sigma spacings whose timesteps are cut to whole numbers, where they are not rounded: the reference's habit. The
others' stay fractional."""


class LogSNRRun(Run):
    """A run that keeps its latest x0 (or ε) predictions, the newest first."""

    def __init__(
        self,
        *args,
        keep: int = 1,
        predicts_x0: bool = True,
        channels: int | None = None,
        manner: Published = LOGSNR.reference,
        **options: Any,
    ):
        self.manner = manner
        self.keep = keep
        self.predicts_x0 = predicts_x0
        self.channels = channels
        self.history: list[torch.Tensor] = []
        super().__init__(*args, **options)
        self.x0_weights = [self.to_x0(level) for level in self.levels]

    @property
    def sigmas(self) -> list[float]:
        """σ of each level and of the end: σ/α, or the σ of the straight line x = (1 - σ)·x0 + σ·ε for flows."""
        levels = [*self.levels, self.targets[-1]]
        straight = self.prediction_type == "flow_prediction" or all(abs(sum(at) - 1.0) < 1e-12 for at in levels)
        return [at.sigma if straight else at.ratio for at in levels]

    def to_x0(self, level: Level) -> tuple[float, float]:
        return self.manner.to_x0(self.prediction_type, level)

    def to_epsilon(self, level: Level) -> tuple[float, float]:
        """(r, w) with ε = r·x + w·output at this level."""
        return self.manner.to_epsilon(self.prediction_type, level)

    def _x0_at(self, i: int) -> tuple[float, float]:
        return self.x0_weights[i]  # every step asks

    def convert(self, prediction: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor:
        """x0, bounded if the config says so, or the ε that belongs to it."""
        level = self.levels[i]
        prediction = prediction[:, : self.channels]
        if self.predicts_x0:
            return self._original(prediction, i, x)
        r, w = self.to_epsilon(level)
        if self.limit is None:
            return combine((r, x), (w, prediction))
        # the image that goes with this ε; the same as to_x0's but for the reference's v on straight lines
        a, b = level
        p, q = ((1 - b * r) / a, -b * w / a) if a else self.to_x0(level)
        x0 = self.limit(combine((p, x), (q, prediction)))
        r, w = predictions.to_epsilon("sample", level)
        return combine((r, x), (w, x0))

    def remember(self, converted: torch.Tensor) -> None:
        self.history = [converted, *self.history[: self.keep - 1]]


class LogSNRScheduler(CountedSteps):
    """Base of DPM-Solver, DEIS and UniPC. Levels are variance-preserving, or straight lines with ``use_flow_sigmas``.

    A v-prediction on straight lines is that of the x of unit variance with the run option ``as_published``; without it,
    it is read as the reference implementation does, as if α² + σ² were 1.

    Their config says ``timestep_spacing`` and ``steps_offset``, and at most one of the ``use_…_sigmas``.
    """

    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "v_prediction", "flow_prediction")
    run_options: ClassVar[tuple[str, ...]] = ("mu", "as_published")
    _smallest_alpha_bar = SMALLEST_ALPHA_BAR
    _tuple_has_original = False
    #: sigma spacings whose timesteps are rounded before the network is told
    _rounds: ClassVar[tuple[str, ...]] = ("karras", "lu")
    #: the class has no ``final_sigmas_type``
    _says_no_end: ClassVar[bool] = False
    _manners = LOGSNR

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that a run begins with."""
        return 1.0

    def _whole(self) -> Run:
        noise = self.noise_schedule
        visited = list(range(len(noise) - 1, -1, -1))
        sigmas = [*noise.sigma_at(visited), float(noise.sigmas[0])]
        if self._own.get("use_flow_sigmas"):
            sigmas = [(t + 1) / (len(noise) + 1) for t in [*visited, 0]]
        return self._run_over(visited, sigmas)

    def _run_over(self, *args: Any, **options: Any) -> LogSNRRun:
        """``(timesteps, sigmas, **options)``: the solver's run over these levels, of which the last is its end."""
        raise NotImplementedError

    def _lay(
        self, run_class: type[AnyRun], visited: list[float], sigmas: list[float], bounded: bool = True, **options: Any
    ) -> AnyRun:
        """A run of that class over these levels, with what every solver's config says.

        ``bounded``: predicted images are, if the config says so.
        """
        c, own = self.config, self._own
        levels = [self._level(sigma) for sigma in sigmas]
        learned = own.get("variance_type") in ("learned", "learned_range") and c.prediction_type == "epsilon"
        return run_class(
            visited,
            levels[:-1],
            levels[1:],
            c.prediction_type,
            predictions.limiter(own) if bounded else None,
            channels=3 if learned else None,
            **options,
        )

    def _plan(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: Published, mu: float | None = None, **options: Any,
    ) -> LogSNRRun:  # fmt: skip
        c = self.config
        if mu is not None and not (c.use_dynamic_shifting and c.time_shift_type == "exponential"):
            raise ValueError("mu is given, but the config does not say use_dynamic_shifting=True")
        visited, spaced, name = self._visit_sigmas(steps, timesteps, sigmas, None if mu is None else math.exp(mu))
        if sigmas is not None:
            last = float(sigmas[-1])
        elif self._says_no_end:
            last = manner.end(self._last_sigma() if name is None else spaced[-1], told=timesteps is not None)
        else:
            last = self._last_sigma()
        return self._run_over(visited, [*spaced, last], manner=manner, **options)

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None,
        mu: float | None = None, timesteps: Sequence[float] | None = None, sigmas: Sequence[float] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        """Choose the levels that the following ``step`` calls visit; see :meth:`plan`."""
        if mu is not None:
            options["mu"] = mu
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, **options)

    # -- levels ------------------------------------------------------------------------------------------------------

    def _level(self, sigma: float) -> Level:
        if self.config.get("use_flow_sigmas"):
            sigma = float(np.float32(sigma))  # close to 1, where its rounding can be seen in 1 - σ
            return Level(1.0 - sigma, sigma)
        return Level.of_sigma(sigma)

    def _grid(self, steps: int) -> list[int]:
        """Whole timesteps by the spacing in force; "leading" and "linspace" lay n + 1 and leave out the last."""
        name, options = self._timestep_spacing()
        train_steps = self.config.num_train_timesteps
        last = train_steps - self._clipped()
        if name in ("linspace", "leading"):
            return [round(t) for t in spacings.TIMESTEP_SPACINGS[name](last, steps + 1, **options)[:-1]]
        if name == "trailing":
            stride = train_steps / steps
            return [round(last - k * stride) - 1 for k in range(math.ceil(last / stride - 1e-9))]
        return [round(t) for t in spacings.TIMESTEP_SPACINGS[name](last, steps, **options)]

    def _clipped(self) -> int:
        """How many of the noisiest timesteps lie below ``lambda_min_clipped`` and are never visited."""
        least = self._own.get("lambda_min_clipped", -math.inf)
        return int(np.searchsorted(-np.log(self.noise_schedule.sigmas[::-1]), least))

    def _visit_sigmas(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, shift: float | None
    ) -> tuple[list[float], list[float], str | None]:
        """(timesteps, sigmas without the last, the sigma spacing's name) of a run."""
        noise, name = self.noise_schedule, self._sigma_spacing()[0]
        if sigmas is not None:
            chosen = [float(sigma) for sigma in sigmas[:-1]]
            return [noise.timestep_of(sigma) for sigma in chosen], chosen, None
        if timesteps is not None:
            if name is not None:
                raise ValueError(
                    f"timesteps cannot be given to a {type(self).__name__} with {name} spacing, which chooses its own; "
                    "give num_inference_steps"
                )
            visited = [int(t) for t in timesteps]
            return [*visited], noise.sigma_at(visited), None
        spaced = self._spaced_sigmas(steps, float(noise.sigmas[-1]), float(noise.sigmas[0]))
        if spaced is not None:
            whole = round if name in self._rounds else int if name in _CUT else float
            return [whole(noise.timestep_of(sigma)) for sigma in spaced], spaced, name
        if name == "flow":
            spaced = self._flow_sigmas(steps, self.config.flow_shift if shift is None else shift)
            return [int(sigma * self.config.num_train_timesteps) for sigma in spaced], spaced, name
        grid = self._grid(steps)
        return [*grid], noise.sigma_at(grid), None

    def _flow_sigmas(self, steps: int, shift: float) -> list[float]:
        """σ from nearly 1 down, even, then shifted to shift·σ/(1 + (shift - 1)·σ) (arXiv:2403.03206, section 5.3)."""
        even = (1.0 - np.linspace(1.0, 1.0 / self.config.num_train_timesteps, steps + 1))[:0:-1]
        return (shift * even / (1 + (shift - 1) * even)).tolist()

    def _last_sigma(self) -> float:
        """The σ where a run ends, by ``final_sigmas_type``."""
        kind = self._own.get("final_sigmas_type", "sigma_min")
        if kind not in ("zero", "sigma_min"):
            raise ValueError(f"final_sigmas_type={kind!r} in the config: must be one of 'zero', 'sigma_min'")
        return 0.0 if kind == "zero" else float(self.noise_schedule.sigmas[0])
