"""The settings in a config file, held against the constructor that they are for, before it is called."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from langevin.checkpoints.errors import CheckpointError

LARGEST = 10_000_000
"""No setting of a network or scheduler is a larger whole number: such a one would fill memory or take for ever."""

LARGEST_OF = {"num_train_timesteps": 1_000_000, "downsample_padding": 1}
"""The same for single settings."""

_NETWORK = "config.json"
"""The name of a network's config, in which every whole number is a size or a count."""


def check(cls: type, config: Mapping[str, Any], file: Path | str) -> None:
    """Refuse settings of a wrong type or out of all proportion.

    What a setting may be is what the constructor's annotations say. A list stands for a tuple, a whole number for a
    float, 0 and 1 for False and True; null is fine where the default is None or False.

    Args:
        cls: whose constructor will be called.
        config: what the file has; entries that are no settings of ``cls`` are not looked at.
        file: the file's path, for messages.

    Raises:
        CheckpointError: a setting is of another type, too large, or a negative size of a network; the
            message names file and setting.
    """
    for name, (hint, default) in _hints(cls).items():
        if name not in config:
            continue
        value = config[name]
        if value is None and default in (None, False):
            continue
        if not fits(value, hint):
            wanted = _described(hint)
            raise CheckpointError(f"{file} has {_short(value)} for {name!r}, where {wanted} is needed; correct it.")
        if cls.config_name == _NETWORK and _smallest(value) < 0:  # type: ignore[attr-defined]
            raise CheckpointError(f"{file} has {_short(value)} for {name!r}; no size is negative; correct it.")
        most = LARGEST_OF.get(name, LARGEST)
        if _largest(value) > most:
            raise CheckpointError(f"{file} has {_short(value)} for {name!r}; {most:,} is the most; correct it.")


@functools.cache
def _hints(cls: type) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each of a constructor's arguments that are annotated."""
    init: Any = cls.__init__  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(init)
    except Exception:  # annotations of somebody's own class that cannot be evaluated
        hints = {}
    parameters = inspect.signature(init).parameters.items()
    return {name: (hints[name], parameter.default) for name, parameter in parameters if name in hints}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON may stand where ``hint`` is annotated. Annotations that are not known let all pass."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool) or (type(value) in (int, float) and value in (0, 1))
    if hint is int:
        return type(value) is int or (type(value) is float and value.is_integer())
    if hint is float:
        return type(value) in (int, float)
    if hint is str:
        return isinstance(value, str)
    if origin in (list, tuple, Sequence):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and inner[-1:] != (...,):
            return len(value) == len(inner) and all(map(fits, value, inner))
        return all(fits(one, inner[0]) for one in value)
    if getattr(hint, "__name__", "") == "ndarray":
        return fits(value, list[float])
    # functions and other objects with a config are nothing that JSON can hold
    return not (origin is Callable or hasattr(hint, "config_name"))


def _smallest(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return min(map(_smallest, value), default=0)
    return value if type(value) is int else 0


def _largest(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return max(map(_largest, value), default=0)
    return abs(value) if type(value) is int else 0


def _described(hint: Any) -> str:
    """An annotation in plain words."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(one) for one in inner))
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if typing.get_origin(hint) in (list, tuple, Sequence):
        return f"a list ({_described(inner[0])} each)"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return words.get(hint, "a list of numbers" if getattr(hint, "__name__", "") == "ndarray" else "something else")


def _short(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "…"
