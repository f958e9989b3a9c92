"""Activations by the names that configs use."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

_MODULES: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "mish": nn.Mish,
}


def activation(name: str) -> nn.Module:
    """The activation called ``name`` (``silu``, ``swish``, ``gelu``, ``relu``, ``mish``; any case)."""
    try:
        return _MODULES[name.lower()]()
    except KeyError:
        raise ValueError(f"no activation is called {name!r}; use one of: {', '.join(_MODULES)}") from None


def dropout(p: float) -> nn.Module:
    """Dropout that costs nothing, in training too, when ``p`` is 0."""
    return nn.Dropout(p) if p else nn.Identity()
