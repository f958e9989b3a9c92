"""What the settings of schedulers may be: one table, which every config passes before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch

from langevin.checks import Count, Range, Share, checked, one_of
from langevin.schedulers import spacing as spacings
from langevin.schedulers.noise import BETA_SCHEDULES, SettingError
from langevin.schedulers.prediction import PREDICTION_TYPES

_Positive = Annotated[float, Range(1e-12, 1e12)]
_Amount = Annotated[float, Range(0, 1e12)]
_Number = Annotated[float, Range(-1e12, 1e12)]
_Seed = Annotated[int, Range(0, 2**64 - 1)]
_Order = Annotated[int, Range(1, 100)]
_LAWS = Literal["exponential", "linear"]

TABLE: Mapping[str, Any] = {
    "num_train_timesteps": Count,
    "original_inference_steps": Count,
    "steps_offset": Annotated[int, Range(0, 10**6)],
    "timestep_spacing": one_of(spacings.CONFIG_SPACINGS),
    "timestep_type": Literal["discrete", "continuous"],
    "timestep_scaling": _Amount,
    "prediction_type": one_of((*PREDICTION_TYPES, "flow_prediction")),  # which of them, a class says when it plans
    "beta_schedule": one_of(BETA_SCHEDULES),
    "trained_betas": Sequence[_Number] | torch.Tensor | None,
    "beta_start": Share,
    "beta_end": Share,
    "interpolation_type": Literal["linear", "log_linear"],
    "final_sigmas_type": Literal["zero", "sigma_min"],
    "time_shift_type": _LAWS,
    "sigma_schedule": Literal["karras", "exponential"],
    "sigma_min": _Amount | None,
    "sigma_max": _Positive | None,
    "sigma_data": _Positive,
    "rho": _Positive,
    "snr": _Positive,
    "sampling_eps": Annotated[float, Range(1e-12, 1)],
    "correct_steps": Annotated[int, Range(0, 1000)],
    "beta_min": _Amount,
    "beta_max": _Positive,
    "s_min": _Amount,
    "s_max": _Amount,
    "s_churn": _Amount,
    "s_noise": _Amount,
    "eta": Share,
    "shift": _Positive,
    "flow_shift": _Positive,
    "shift_terminal": Annotated[float, Range(0, 0.999)] | None,
    "base_shift": _Number | None,
    "max_shift": _Number | None,
    "base_image_seq_len": Count | None,
    "max_image_seq_len": Count | None,
    "solver_order": _Order,
    "predictor_order": _Order,
    "corrector_order": _Order,
    "dynamic_thresholding_ratio": Share,
    "sample_max_value": _Positive,
    "clip_sample_range": _Positive,
    "noise_sampler_seed": _Seed | Sequence[_Seed] | None,
    "num_vec_classes": Annotated[int, Range(2, 10**6)],
    "alpha_cum_start": Share,
    "alpha_cum_end": Share,
    "gamma_cum_start": Share,
    "gamma_cum_end": Share,
}
"""The types and ranges of settings, whatever the class. What a class has of its own (``variance_type``) stands there;
which betas a schedule may have is checked when they are made."""

_SPACING: Mapping[str, Any] = {
    "offset": TABLE["steps_offset"],
    "sigma_min": _Positive,
    "sigma_max": _Positive,
    "rho": _Positive,
    "alpha": _Positive,
    "beta": _Positive,
    "threshold": Share,
    "model": str,
}
"""The same for the options of ``with_spacing``."""


def check(settings: Mapping[str, Any], owner: str, takes: Mapping[str, Any]) -> None:
    """Refuse settings that no run can be made of.

    Args:
        settings: of a scheduler's own, by name.
        owner: the scheduler's class, for messages.
        takes: types and ranges of its own, which come before those of the table.

    Raises:
        SettingError: one is of a wrong type or out of its range, or two do not go together.
    """
    table = {**TABLE, **takes}
    for name, value in settings.items():
        _hold(f"{name} of {owner}", value, table.get(name, Any))
    _check_ends(settings, owner)


def check_spacing(options: Mapping[str, Any], owner: str) -> None:
    """The same for the options of a spacing."""
    for name, value in options.items():
        _hold(f"{name} of the spacing of {owner}", value, _SPACING.get(name, Any))
    _check_ends(options, f"the spacing of {owner}")


def _hold(name: str, value: Any, hint: Any) -> None:
    try:
        checked(name, value, hint)
    except ValueError as error:
        raise SettingError(str(error)) from None


def _check_ends(settings: Mapping[str, Any], owner: str) -> None:
    low, high = settings.get("sigma_min"), settings.get("sigma_max")
    if low is not None and high is not None and low > high:
        raise SettingError(f"sigma_min={low} of {owner} is more than sigma_max={high}; the larger one is sigma_max")
