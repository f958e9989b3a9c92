"""What all schedulers share: a *run* for pipelines, and the familiar ``set_timesteps``/``step`` written once on top.

A scheduler is a noise schedule, a spacing and a solver. ``scheduler.plan(20)`` puts the three together into a
:class:`Run`: the list of levels, the solver's coefficients as plain numbers, and whatever history the solver keeps.
The scheduler itself is never changed by it, so one scheduler serves any number of runs at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any, ClassVar

import torch

from ..checkpoints.config import ConfigMixin
from . import prediction as predictions
from . import spacing as spacings
from .arithmetic import DrawNoise, cast, combine, draw, per_image, spread
from .noise import Level, NoiseSchedule


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


# -- one pass --------------------------------------------------------------------------------------------------------


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

    def _later(self, prediction: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor | Callable[[], torch.Tensor]:
        """x0 as call ``i`` predicts it, computed when it is asked for."""
        return lambda: cast(self._original(prediction, i, x), x.dtype)

    def _original(self, prediction: torch.Tensor, i: int, x: torch.Tensor) -> torch.Tensor:
        """x0 as call ``i`` predicts it, bounded if the config says so."""
        p, q = self.to_x0(self.levels[i])
        x0 = combine((p, x), (q, prediction))
        return x0 if self.limit is None else self.limit(x0)


def as_tensor(timesteps: list[Any], device: str | torch.device | None = None) -> torch.Tensor:
    """int64, or fp32 where there are fractions."""
    whole = all(isinstance(t, int) for t in timesteps)
    return torch.tensor(timesteps, dtype=torch.int64 if whole else torch.float32, device=device)


@cache
def _settings(cls: Any) -> list[str]:
    return cls._settings_names()


# -- the public class ------------------------------------------------------------------------------------------------

_COMPATIBLES = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverSDEScheduler",
    "EDMEulerScheduler",
    # langevin's own
    "DPMAdaptiveScheduler",
    "DPMFastScheduler",
    "DPMSolver2SAncestralScheduler",
    "DPMSolver3MSDEScheduler",
    "ERSDEScheduler",
    "GradientEstimationScheduler",
    "HeunPP2Scheduler",
    "RESMultistepScheduler",
    "RestartScheduler",
]


_SIGMA_SPACING_KEYS = {
    "use_karras_sigmas": "karras",
    "use_lu_lambdas": "lu",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_flow_sigmas": "flow",
}
"""The config keys that ask for a sigma spacing, the first that is true."""


class SchedulerMixin(ConfigMixin):
    """Base of every scheduler.

    Pipelines call :meth:`plan` and use the :class:`Run` it returns. The methods users know (``set_timesteps``,
    ``step``, ``scale_model_input``, ``add_noise``) work on a run that the scheduler keeps for them.

    Subclasses set ``self.noise_schedule`` in ``__init__`` and define ``_plan``.
    """

    config_name = "scheduler_config.json"
    order = 1
    run_options: ClassVar[tuple[str, ...]] = ()
    prediction_types: ClassVar[tuple[str, ...]] = predictions.PREDICTION_TYPES
    _compatibles: ClassVar[list[str]] = _COMPATIBLES

    # The spacings that there can be, and what about the class it is that others do not fit.
    _spacings: ClassVar[Mapping[str, Any]] = spacings.SPACINGS
    _spacings_because: ClassVar[str] = ""
    # Whether the tuple that step(return_dict=False) gives has x0 too.
    _tuple_has_original: ClassVar[bool] = True
    # Whether step() works before set_timesteps(), over all training timesteps.
    _steps_at_once: ClassVar[bool] = False

    # ᾱ that stands in for a zero at the end of a schedule, for solvers that divide by it.
    _smallest_alpha_bar: ClassVar[float | None] = None

    noise_schedule: NoiseSchedule

    # What may change between two calls of the familiar API; all of it belongs to that API alone.
    _run: Run | None = None
    _timesteps: torch.Tensor | None = None
    _step_index: int | None = None
    _begin_index: int | None = None
    num_inference_steps: int | None = None

    @property
    def _own(self) -> dict[str, Any]:
        """The config without what other classes left in it (``from_config`` keeps that, for the way back)."""
        return {name: self.config[name] for name in _settings(type(self))}  # type: ignore[arg-type]

    def _build_noise_schedule(self) -> NoiseSchedule:
        """The noise schedule that the config describes."""
        c = self.config
        self._check_one_sigma_spacing()
        return NoiseSchedule.from_config(
            c.num_train_timesteps,
            c.beta_start,
            c.beta_end,
            c.beta_schedule,
            c.trained_betas,
            self._own.get("rescale_betas_zero_snr", False),
            self._smallest_alpha_bar,
        )

    # -- planning ----------------------------------------------------------------------------------------------------

    def plan(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        **options: Any,
    ) -> Run:
        """A fresh run. Give exactly one of ``num_inference_steps``, ``timesteps`` and ``sigmas``.

        Args:
            num_inference_steps: how many levels to visit, laid out by the scheduler's spacing.
            timesteps: the timesteps to visit, descending.
            sigmas: the levels to visit as σ = sqrt((1 - ᾱ)/ᾱ), descending, *and* the one to end at (usually 0).
            options: what the solver takes; ``run_options`` names it.
        """
        unknown = [name for name in options if name not in self.run_options]
        if unknown:
            raise TypeError(
                f"{type(self).__name__}.plan() takes no option {', '.join(map(repr, unknown))}; "
                f"it takes: {', '.join(self.run_options) or 'none'}"
            )
        if sum(given is not None for given in (num_inference_steps, timesteps, sigmas)) != 1:
            raise ValueError(
                "give exactly one of num_inference_steps, timesteps and sigmas; got "
                f"num_inference_steps={num_inference_steps}, timesteps={timesteps}, sigmas={sigmas}"
            )
        if timesteps is not None:
            steps = len(timesteps)
        else:
            steps = len(sigmas) - 1 if sigmas is not None else int(num_inference_steps or 0)
        if steps < 1:
            raise ValueError(f"a run needs at least one step, got {steps}")
        told = self._own.get("prediction_type", self.prediction_types[0])  # some classes know only one
        predictions.check(told, self.prediction_types, type(self).__name__)
        return self._plan(steps, timesteps, sigmas, **options)

    def _plan(self, *args: Any, **options: Any) -> Run:
        """``(steps, timesteps, sigmas, **options)``, checked: the one thing that a scheduler must define."""
        raise NotImplementedError

    def with_spacing(self, spacing: str, **options: Any):
        """This scheduler with another spacing, as a new object. Saved and carried over by ``from_config``.

        Timestep spacings: "leading", "trailing", "linspace" or "uniform" (option ``offset``), "sgm_uniform", "simple",
        "ddim_uniform". Sigma spacings: "karras" (``rho``), "exponential", "polyexponential" (``rho``), "beta"
        (``alpha``, ``beta``), "kl_optimal", "linear_quadratic" (``threshold``), "align_your_steps" (``model``), "lu";
        all of those take ``sigma_min`` and ``sigma_max``. See :mod:`langevin.schedulers.spacing`.

            >>> run = DDIMScheduler().with_spacing("karras").plan(10)
        """
        name, options = spacings.check(spacing, options)
        twin = copy.copy(self)
        for state in ("_run", "_timesteps", "_step_index", "_begin_index", "num_inference_steps"):
            twin.__dict__.pop(state, None)
        twin.register_to_config(_spacing={"name": name, **options})
        _ = twin._spacing  # refused here rather than when it is used
        return twin

    @property
    def _spacing(self) -> tuple[str, dict[str, Any]] | None:
        """What ``with_spacing`` was told. Configs keep it under a name that other libraries skip."""
        entry = self.config.get("_spacing")
        if not entry:
            return None
        name, options = spacings.check(entry["name"], {k: v for k, v in entry.items() if k != "name"})
        if name not in self._spacings:
            raise ValueError(
                f"spacing {name!r} does not fit {type(self).__name__}, which {self._spacings_because}; allowed: "
                f"{', '.join(map(repr, self._spacings))}"
            )
        return name, options

    def _timestep_spacing(self) -> tuple[str, dict[str, Any]]:
        """The timestep spacing in force and its options; a sigma spacing lies between the ends that it gives."""
        options = {"offset": self._own.get("steps_offset", 0)}
        if self._spacing is not None and self._spacing[0] in spacings.TIMESTEP_SPACINGS:
            return self._spacing[0], {**options, **self._spacing[1]}
        name = self._own.get("timestep_spacing", "linspace")  # some classes know only that
        if name not in spacings.CONFIG_SPACINGS:
            raise ValueError(
                f"timestep_spacing={name!r} in the config of {type(self).__name__}: must be one of "
                f"{', '.join(map(repr, spacings.CONFIG_SPACINGS))}"
            )
        return name, options

    def _sigma_spacing(self) -> tuple[str | None, dict[str, Any]]:
        """The sigma spacing in force and its options; None if σ just follows the timesteps."""
        if self._spacing is not None:
            name, options = self._spacing
            return (name, options) if name in spacings.SIGMA_SPACINGS else (None, {})
        # The ends also where another class left them in the config: so the reference implementation does it.
        ends = {key: self.config.get(key) for key in ("sigma_min", "sigma_max")}
        options = {key: float(value) for key, value in ends.items() if value is not None}
        return next((name for key, name in _SIGMA_SPACING_KEYS.items() if self._own.get(key)), None), options

    def _check_one_sigma_spacing(self) -> None:
        on = [key for key in _SIGMA_SPACING_KEYS if self._own.get(key) and key != "use_flow_sigmas"]
        if len(on) > 1:
            raise ValueError(f"{' and '.join(on)} are both true in the config: at most one of them can be")

    def _refuse_unless(self, key: str, allowed: Sequence[Any], understood: dict[str, str] | None = None) -> None:
        """Check a config key; values that other classes have for it are replaced by ``understood``."""
        value = self.config[key]
        if value in (understood or {}):
            self.register_to_config(**{key: (understood or {})[value]})
        elif value not in allowed:
            raise NotImplementedError(
                f"{key}={value!r} in the config of {type(self).__name__}: must be one of "
                f"{', '.join(map(repr, allowed))}"
            )

    def _spaced_timesteps(self, steps: int) -> list[float]:
        name, options = self._timestep_spacing()
        return spacings.TIMESTEP_SPACINGS[name](self.config.num_train_timesteps, steps, **options)

    def _spaced_sigmas(self, steps: int, sigma_max: float, sigma_min: float) -> list[float] | None:
        """σ by the sigma spacing in force, between these ends unless it has its own; None if there is none."""
        name, options = self._sigma_spacing()
        if name not in spacings.SIGMA_SPACINGS:
            return None
        return spacings.SIGMA_SPACINGS[name](steps=steps, **{"sigma_max": sigma_max, "sigma_min": sigma_min, **options})

    def _visit(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None, final: Level
    ) -> tuple[list[float], list[Level], list[Level]]:
        """(timesteps, levels, next levels) of a variance-preserving run that ends at ``final``."""
        noise = self.noise_schedule
        if timesteps is not None:
            visited = self._checked(timesteps)
        elif sigmas is not None:
            final = Level.of_sigma(float(sigmas[-1]))
            sigmas = [float(sigma) for sigma in sigmas[:-1]]
        else:
            ends = noise.sigmas
            sigmas = self._spaced_sigmas(steps, float(ends[-1]), float(ends[0]))
            visited = self._on_grid(self._spaced_timesteps(steps), steps) if sigmas is None else []
        if sigmas is None:
            levels = [noise.level(t) for t in visited]
        else:
            visited, levels = [noise.timestep_of(s) for s in sigmas], [Level.of_sigma(s) for s in sigmas]
        return visited, levels, [*levels[1:], final]

    def _on_grid(self, spaced: list[float], steps: int) -> list[float]:
        """Spaced timesteps as whole numbers, if the model knows them all."""
        train_steps = self.config.num_train_timesteps
        visited: list[float] = [round(t) for t in spaced]
        if steps > train_steps:
            raise ValueError(
                f"num_inference_steps={steps} is more than the {train_steps} timesteps (num_train_timesteps) that "
                f"{type(self).__name__} has"
            )
        if visited[0] >= train_steps:
            raise ValueError(
                f"{steps} steps with steps_offset={self._own.get('steps_offset', 0)} begin at timestep "
                f"{visited[0]}, but the model knows 0..{train_steps - 1}; use fewer steps or "
                "timestep_spacing='trailing'"
            )
        return visited

    def _checked(self, timesteps: Sequence[float]) -> list[float]:
        """The user's own timesteps, whole ones as ints."""
        train_steps = self.config.num_train_timesteps
        visited: list[float] = [int(t) if t == int(t) else t for t in map(float, timesteps)]
        if any(late >= early for early, late in pairwise(visited)):
            raise ValueError(f"timesteps must be in descending order, got {visited}")
        if visited[0] >= train_steps:
            raise ValueError(f"timesteps must be below num_train_timesteps={train_steps}, got {visited[0]}")
        return visited

    # -- the familiar API --------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        """Choose the levels that the following ``step`` calls visit; see :meth:`plan`, also for ``options``."""
        run = self.plan(num_inference_steps, timesteps=timesteps, sigmas=sigmas, **options)
        self._run = run
        self._timesteps = as_tensor(run.timesteps, device)
        self._step_index = self._begin_index = None
        self.num_inference_steps = num_inference_steps if num_inference_steps is not None else len(run)

    def _whole(self) -> Run:
        """The run over all training timesteps, which stands before ``set_timesteps``."""
        return self.plan(timesteps=list(range(len(self) - 1, -1, -1)))

    @property
    def run(self) -> Run:
        """The run that the familiar methods work on."""
        if self._run is None:
            self._run = self._whole()
        return self._run

    @property
    def timesteps(self) -> torch.Tensor | None:
        """What the network is told at each call, as a tensor (int64, or fp32 where the levels are fractional)."""
        if self._timesteps is None:
            self._timesteps = as_tensor(self.run.timesteps)
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: torch.Tensor) -> None:
        self._timesteps = value

    @property
    def sigmas(self) -> torch.Tensor:
        """σ of each level, and of the one where the run ends; fp32, on the CPU."""
        return torch.tensor(self.run.sigmas, dtype=torch.float32)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that a run begins with."""
        return self.run.init_noise_sigma

    @property
    def step_index(self) -> int | None:
        """The call that comes next, once a run has begun."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The call that a run was told to begin with."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this call (image to image) instead of finding it by the first timestep."""
        self._begin_index = begin_index

    def _locate(self, timestep: float | torch.Tensor) -> int:
        """The call that a timestep means: the one after the last if it fits, else wherever the timestep is found."""
        run, value, following = self.run, float(timestep), self._step_index
        if following is not None and following < len(run) and run.timesteps[following] == value:
            return following
        return run.index_of(value)

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """The network's input at this timestep."""
        return sample

    def _step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        return_dict: bool,
        variance_noise: torch.Tensor | None = None,
        **options: Any,
    ) -> StepOutput | tuple[torch.Tensor, ...]:
        """What every class's public ``step`` does."""
        if generator is not None and variance_noise is not None:
            raise ValueError("give generator or variance_noise, not both: variance_noise is the noise itself")
        if self.num_inference_steps is None and not self._steps_at_once:
            raise ValueError(f"{type(self).__name__} has no timesteps yet: call set_timesteps(steps) before step()")
        run = self.run
        if options != run.options:
            run.options = options
            run.configure(**options)
        i = self._locate(timestep)

        def noise(like: torch.Tensor) -> torch.Tensor:
            return draw(like, generator) if variance_noise is None else variance_noise

        output = run.step(model_output, i, sample, noise)
        self._step_index = i + 1
        if return_dict:
            return output
        return output.to_tuple() if self._tuple_has_original else (output.prev_sample,)

    # -- noising, for training and image to image --------------------------------------------------------------------

    def _levels_at(self, timesteps: torch.Tensor | float, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma) of per-image timesteps, broadcast over ``like``, in at least fp32."""
        timesteps = torch.as_tensor(timesteps)
        if timesteps.is_floating_point():
            return per_image([self.noise_schedule.level(t) for t in timesteps.flatten().tolist()], like)
        alpha_bar = self.noise_schedule.alphas_cumprod_on(like.device)[timesteps.flatten().to(like.device)]
        alpha_bar = alpha_bar.to(torch.promote_types(like.dtype, torch.float32))
        return spread(alpha_bar.sqrt(), like), spread((1 - alpha_bar).sqrt(), like)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float
    ) -> torch.Tensor:
        """α_t·x0 + σ_t·noise, each image of the batch at its own timestep.

        Args:
            original_samples: x0, (batch, ...).
            noise: shaped like x0.
            timesteps: (batch,) or one for all. ``set_timesteps`` need not have been called.
        """
        alpha, sigma = self._levels_at(timesteps, original_samples)
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float, **options: Any
    ) -> torch.Tensor:
        """v = α_t·noise - σ_t·x0, what a v-predicting network is trained to give (arXiv:2202.00512, section 4).

        Args:
            sample: x0, (batch, ...), clean.
        """
        alpha, sigma = self._levels_at(timesteps, sample)
        return (alpha * noise - sigma * sample).to(sample.dtype)

    # -- facts -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Training timesteps."""
        return self.config.num_train_timesteps

    @property
    def betas(self) -> torch.Tensor:
        """β_t, (T,), fp32."""
        return self.noise_schedule.betas

    @property
    def alphas(self) -> torch.Tensor:
        """1 - β_t, (T,), fp32."""
        return self.noise_schedule.alphas

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ_t, (T,), fp32."""
        return self.noise_schedule.alphas_cumprod

    @property
    def compatibles(self) -> list[type]:
        """The classes that can be made from this scheduler's config with ``from_config``."""
        return self._get_compatibles()

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        public = import_module("langevin")

        names = [name for name in cls._compatibles if name in public.__all__ and name != cls.__name__]
        return [cls, *(getattr(public, name) for name in names)]


class CountedSteps(SchedulerMixin):
    """The familiar API of solvers that look a timestep up once and count from there: calls may share a timestep."""

    _refuses_whole_timesteps: ClassVar[bool] = False

    def _locate(self, timestep: float | torch.Tensor) -> int:
        whole = isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point())
        if whole and self._refuses_whole_timesteps:
            raise ValueError(
                f"timestep {timestep} is a whole number: {type(self).__name__} has fractional timesteps. Pass one of "
                "scheduler.timesteps, not its index (no enumerate)"
            )
        return self._begin(timestep)

    def _begin(self, timestep: float | torch.Tensor | None) -> int:
        if self._step_index is None:
            if self._begin_index is not None:
                self._step_index = self._begin_index
            elif timestep is not None:
                self._step_index = self.run.index_of(float(timestep))
            else:
                raise ValueError("a timestep is needed, to find the place in the run: one of scheduler.timesteps")
        return self._step_index

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """The call that has this timestep; the second, where two have it."""
        return self.run.index_of(float(timestep))

    def _levels_at(self, timesteps: torch.Tensor | float, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        run, places = self.run, torch.as_tensor(timesteps).flatten().tolist()
        if self._begin_index is None:
            indices = [run.index_of(t) for t in places]
        else:  # a run is under way: its place counts
            indices = [self._begin_index if self._step_index is None else self._step_index] * len(places)
        levels = self._levels_of_calls()
        return per_image([levels[i] for i in indices], like)

    def _levels_of_calls(self) -> list[Level]:
        """The levels that ``add_noise`` takes at each call, and after the last."""
        return [*self.run.levels, self.run.targets[-1]]
