"""A *run*: one pass from noise to image, as ``scheduler.plan(20)`` lays it out, and what a step of it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import DrawNoise, cast, combine
from langevin.schedulers.noise import Level


class StepOutput:
    """``prev_sample``, the sample one level on, and ``pred_original_sample``, the x0 that this step believed in.

    x0 is computed when it is first asked for, from the step's sample and network output (do not change those in
    place before). Also reads as ``output[0]``, ``output["prev_sample"]`` and ``prev_sample, x0 = output``.
    """

    __slots__ = ("_original", "prev_sample")

    def __init__(self, prev_sample: torch.Tensor, original: torch.Tensor | Callable[[], torch.Tensor]):
        self.prev_sample = prev_sample
        self._original = original

    @property
    def pred_original_sample(self) -> torch.Tensor:
        if callable(self._original):
            self._original = self._original()
        return self._original

    def __getitem__(self, key: int | str) -> torch.Tensor:
        if key in (0, -2, "prev_sample"):
            return self.prev_sample
        if key in (1, -1, "pred_original_sample"):
            return self.pred_original_sample
        raise (KeyError if isinstance(key, str) else IndexError)(key)

    def __len__(self) -> int:
        return 2

    def keys(self) -> tuple[str, str]:
        return ("prev_sample", "pred_original_sample")

    def to_tuple(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.prev_sample, self.pred_original_sample


class Run:
    """One pass from noise to image: what a pipeline holds during a call.

    Attributes:
        timesteps: what the network is told at each call, ints or floats; ``len(run)`` calls in all.
        levels: the noise level x is at when call i starts.
        targets: the level that call i's step goes to.
        init_noise_sigma: x_T = noise · init_noise_sigma, unless :meth:`begin` says otherwise.
        learns_variance: whether ``step`` wants the second half of the network's channels too, which says how much
            noise to add. Where this is False, ``step`` needs a prediction of x's own channels alone.

    A run may begin at any call (image to image) and keeps history, if its solver has any, from there on. Subclasses
    hold a solver: ``configure(**options)`` computes coefficients, ``step`` applies them.
    """

    init_noise_sigma: float = 1.0
    learns_variance: bool = False

    def __init__(
        self,
        timesteps: list[int] | list[float],
        levels: list[Level],
        targets: list[Level],
        prediction_type: str,
        limit: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **options: Any,
    ):
        self.timesteps = timesteps
        self.levels = levels
        self.targets = targets
        self.prediction_type = prediction_type
        self.limit = limit
        self.options = options
        self.configure(**options)

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def sigmas(self) -> list[float]:
        """σ (noise to image) of every call's level, and of the level where the run ends."""
        return [level.ratio for level in [*self.levels, self.targets[-1]]]

    def configure(self, *args: Any, **options: Any) -> None:
        """Compute the update coefficients as plain numbers, in fp64."""

    def begin(
        self, first_noise: Callable[[], torch.Tensor], noise: DrawNoise, shape: Sequence[int],
        device: str | torch.device,
    ) -> torch.Tensor:  # fmt: skip
        """x where call 0 starts, if the run begins with noise: for most runs ``first_noise() * init_noise_sigma``.

        Args:
            first_noise: gives the standard normal noise to begin with, (batch, ...): the caller's own, or drawn when
                it is first asked for. A run that does not begin with noise does not ask.
            noise: draws further noise shaped like its argument, if this run needs it.
            shape: of x, batch and all.
            device: where x is to be.
        """
        return first_noise() * self.init_noise_sigma

    def scale_model_input(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """The network's input at call ``i``. Variance-preserving solvers give it x itself."""
        return x

    def step(self, prediction: torch.Tensor, i: int, x: torch.Tensor, noise: DrawNoise | None = None) -> StepOutput:
        """Move x over call ``i``'s step.

        Args:
            prediction: the network's output at ``timesteps[i]``, shaped like x; with twice the channels where the run
                ``learns_variance``: the prediction, then the variance.
            i: the call, 0 to ``len(run) - 1``.
            x: the sample at ``levels[i]``.
            noise: draws standard normal noise shaped like its argument (a run may ask for another law: its class says
                so); called only if this step adds noise.
        """
        raise NotImplementedError

    def noise_kept(self, i: int) -> float | None:
        """How much of ε call ``i``'s step puts into x, where x ← x0's part + this·ε, both by the same prediction.

        None where a step is not of that form: several calls a step, or a history of ε.
        """
        return None

    def noise_added(self, i: int) -> float | None:
        """How much of the noise that it draws call ``i``'s step adds to x, where x ← a mean + this·noise; else None."""
        return None

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, i: int) -> torch.Tensor:
        """x0 noised to the level at which call ``i`` starts, or where the run ends (``i == len(run)``).

        That end is usually the clean image, x0 itself. Of an inversion it is noise, and some configs
        (``set_alpha_to_one=False``) end at the least noise of training.
        """
        alpha, sigma = self.levels[i] if i < len(self) else self.targets[-1]
        return cast(combine((alpha, x0), (sigma, noise)), x0.dtype)

    def index_of(self, timestep: float) -> int:
        """The call that has this timestep. Where several have it, the second, unless the run begins there."""
        nearest = min(range(len(self)), key=lambda k: abs(self.timesteps[k] - timestep))
        value = self.timesteps[nearest]
        if abs(value - timestep) > 1e-3:
            raise ValueError(
                f"timestep {timestep} is not one of this run's {len(self)} "
                f"({self.timesteps[0]} … {self.timesteps[-1]}); pass one of scheduler.timesteps"
            )
        return nearest + 1 if nearest and self.timesteps[nearest + 1 : nearest + 2] == [value] else nearest

    def refuse_blind_start(self, i: int) -> None:
        """An ε-prediction at a level of pure noise says nothing about the image: 0/0."""
        if self.levels[i].alpha == 0.0 and self.prediction_type == "epsilon":
            raise ValueError(
                f"rescale_betas_zero_snr=True makes timestep {self.timesteps[i]} pure noise, from which an epsilon "
                "prediction cannot start; use a model with prediction_type='v_prediction' or 'sample', or "
                "timestep_spacing='leading', which does not visit that timestep"
            )

    def to_x0(self, level: Level) -> tuple[float, float]:
        """(p, q) with x0 = p·x + q·output at this level."""
        return predictions.to_x0(self.prediction_type, level)

    def _x0_at(self, i: int) -> tuple[float, float]:
        """:meth:`to_x0` at call ``i``'s level."""
        return self.to_x0(self.levels[i])

    def _later(self, prediction: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor | Callable[[], torch.Tensor]:
        """x0 as call ``i`` predicts it, computed when it is asked for."""
        return lambda: cast(self._original(prediction, i, x), x.dtype)

    def _original(self, prediction: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor:
        """x0 as call ``i`` predicts it, bounded if the config says so."""
        p, q = self._x0_at(i)
        x0 = combine((p, x), (q, prediction))
        return x0 if self.limit is None else self.limit(x0)
