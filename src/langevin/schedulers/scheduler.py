"""What all schedulers share: a config, a spacing, and :meth:`SchedulerMixin.plan`, which puts a run together.

A scheduler is a noise schedule, a spacing and a solver. ``scheduler.plan(20)`` puts the three together into a
:class:`~langevin.schedulers.run.Run`: the list of levels, the solver's coefficients as plain numbers, and whatever
history the solver keeps. The scheduler itself is never changed by it, so one scheduler serves any number of runs at
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any, ClassVar

from langevin.checks import shown
from langevin.schedulers import catalogue, settings
from langevin.schedulers import prediction as predictions
from langevin.schedulers import spacing as spacings
from langevin.schedulers.familiar import FamiliarMethods
from langevin.schedulers.manners import Manners
from langevin.schedulers.noise import Level, NoiseSchedule, SettingError
from langevin.schedulers.run import Run

_SIGMA_SPACING_KEYS = {
    "use_karras_sigmas": "karras",
    "use_lu_lambdas": "lu",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_flow_sigmas": "flow",
}
"""The config keys that ask for a sigma spacing, the first that is true."""


@cache
def _settings(cls: Any) -> list[str]:
    return cls._settings_names()


class SchedulerMixin(FamiliarMethods):
    """Base of every scheduler.

    Pipelines call :meth:`plan` and use the :class:`~langevin.schedulers.run.Run` it returns. The methods users know
    (``set_timesteps``, ``step``, ``scale_model_input``, ``add_noise``) come with
    :class:`~langevin.schedulers.familiar.FamiliarMethods`.

    Subclasses set ``self.noise_schedule`` in ``__init__`` and define ``_plan``.
    """

    config_name = "scheduler_config.json"
    order = 1
    run_options: ClassVar[tuple[str, ...]] = ()
    prediction_types: ClassVar[tuple[str, ...]] = predictions.PREDICTION_TYPES
    # What the run option as_published chooses between, where the reference implementation is not what is published.
    _manners: ClassVar[Manners[Any] | None] = None
    _compatibles: ClassVar[list[str]] = catalogue.COMPATIBLES

    # The spacings that there can be, and what about the class it is that others do not fit.
    _spacings: ClassVar[Mapping[str, Any]] = spacings.SPACINGS
    _spacings_because: ClassVar[str] = ""
    # Settings of which the class takes others than the table says.
    _takes: ClassVar[Mapping[str, Any]] = {}
    # ᾱ that stands in for a zero at the end of a schedule, for solvers that divide by it.
    _smallest_alpha_bar: ClassVar[float | None] = None

    @property
    def _own(self) -> dict[str, Any]:
        """The config without what other classes left in it (``from_config`` keeps that, for the way back)."""
        return {name: self.config[name] for name in _settings(type(self))}  # type: ignore[arg-type]

    def register_to_config(self, **given: Any) -> None:
        """Merge settings into the config.

        Raises:
            SettingError: no run can be made of one; a ValueError, and a NotImplementedError too.
        """
        own, name = _settings(type(self)), type(self).__name__  # type: ignore[arg-type]
        settings.check({key: value for key, value in given.items() if key in own}, name, self._takes)
        super().register_to_config(**given)
        if given.get("_spacing"):
            _ = self._spacing  # refused here rather than when it is used

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
        if self._manners is not None:
            options["manner"] = self._manners.of(options.pop("as_published", False))
        try:
            return self._plan(steps, timesteps, sigmas, **options)
        except ArithmeticError as error:  # no σ at all, or none that a float can hold
            raise SettingError(
                f"{type(self).__name__} cannot lay out {steps} steps by its settings ({error}); look at its betas and σ"
            ) from error

    def _plan(self, *args: Any, **options: Any) -> Run:
        """``(steps, timesteps, sigmas, **options)``, checked: the one thing that a scheduler must define.

        Of a class that has manners, ``manner`` stands in the place of ``as_published``.
        """
        raise NotImplementedError

    def _untold(self, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> bool:
        """Whether the class lays a run's levels by its config: nobody gave levels or chose a spacing."""
        return timesteps is None and sigmas is None and self._spacing is None

    def with_spacing(self, spacing: str, **options: Any):
        """This scheduler with another spacing, as a new object. Saved and carried over by ``from_config``.

        Timestep spacings: "leading", "trailing", "linspace" or "uniform" (option ``offset``), "sgm_uniform", "simple",
        "ddim_uniform". Sigma spacings: "karras" (``rho``), "exponential", "polyexponential" (``rho``), "beta"
        (``alpha``, ``beta``), "kl_optimal", "linear_quadratic" (``threshold``), "align_your_steps" (``model``), "lu";
        all of those take ``sigma_min`` and ``sigma_max``. See :mod:`langevin.schedulers.spacing`.

            >>> run = DDIMScheduler().with_spacing("karras").plan(10)
        """
        name, options = spacings.check(spacing, options)
        twin = self._without_run()
        twin.register_to_config(_spacing={"name": name, **options})
        return twin

    @property
    def _spacing(self) -> tuple[str, dict[str, Any]] | None:
        """What ``with_spacing`` was told. Configs keep it under a name that other libraries skip."""
        entry = self.config.get("_spacing")
        if not entry:
            return None
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise SettingError(f"_spacing of {type(self).__name__} is {shown(entry)}; with_spacing makes one")
        name, options = spacings.check(entry["name"], {k: v for k, v in entry.items() if k != "name"})
        settings.check_spacing(options, type(self).__name__)
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
            raise SettingError(
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

    # -- swapping ----------------------------------------------------------------------------------------------------

    @property
    def compatibles(self) -> list[type]:
        """The classes that can be made from this scheduler's config with ``from_config``."""
        return self._get_compatibles()

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        public = import_module("langevin")

        names = [name for name in cls._compatibles if name in public.__all__ and name != cls.__name__]
        return [cls, *(getattr(public, name) for name in names)]
