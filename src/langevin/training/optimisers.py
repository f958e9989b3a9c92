"""The optimisers that flags name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from langevin.training.flags import BadFlags, Flags


def make(flags: Flags, parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The optimiser of a run.

    Raises:
        BadFlags: its library is not installed.
    """
    options: dict[str, Any] = {"lr": rate, "weight_decay": flags.adam_weight_decay}
    if flags.optimizer == "adafactor":
        kind = _imported("transformers.optimization", "Adafactor", "--optimizer=adafactor", "transformers")
        return kind(parameters, scale_parameter=False, relative_step=False, **options)
    options["betas"] = (flags.adam_beta1, flags.adam_beta2)
    if flags.optimizer == "prodigy":
        return _imported("prodigyopt", "Prodigy", "--optimizer=prodigy", "prodigyopt")(parameters, **options)
    options["eps"] = flags.adam_epsilon
    if flags.use_8bit_adam:
        return _imported("bitsandbytes.optim", "AdamW8bit", "--use_8bit_adam", "bitsandbytes")(parameters, **options)
    return torch.optim.AdamW(parameters, **options)


def _imported(module: str, name: str, flag: str, package: str) -> Any:
    from importlib import import_module

    try:
        return getattr(import_module(module), name)
    except ImportError:
        raise BadFlags(f"{flag} needs {package}: pip install {package}") from None
