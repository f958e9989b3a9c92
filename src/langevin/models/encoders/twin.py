"""Networks that differ in a part from one that they share everything else with."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def twin(network: Any, parts: Mapping[str, nn.Module]) -> Any:
    """A network with other ``parts``, by dotted name. All else, weights and hooks too, is shared and not copied.

    The network itself stays as it is, so another thread may be using it.
    """
    network = getattr(network, "_orig_mod", network)  # a compiled network would run its own parts all the same
    if "" in parts:
        return parts[""]
    same = network.__new__(type(network))
    same.__dict__ = {**network.__dict__, "_modules": dict(network._modules)}
    _own_forward(network, same)
    below: dict[str, dict[str, nn.Module]] = {}
    for name, part in parts.items():
        first, _, rest = name.partition(".")
        below.setdefault(first, {})[rest] = part
    for name, inner in below.items():
        same._modules[name] = twin(network._modules[name], inner)
    return same


def _own_forward(network: Any, same: Any) -> None:
    """Offloading puts functions bound to the network in front of its ``forward``, and leaves one there in the end; bind
    them to the twin.
    """
    old, new = same.__dict__.get("_old_forward"), same.__dict__.get("forward")
    if getattr(old, "__self__", None) is network:
        same._old_forward = types.MethodType(old.__func__, same)
    if getattr(new, "__self__", None) is network:
        same.forward = types.MethodType(new.__func__, same)
    if isinstance(new, functools.partial) and new.args[:1] == (network,):
        same.forward = functools.partial(new.func, same, *new.args[1:], **new.keywords)


class Watched(nn.Module):
    """A part that remembers what it was given. For a twin that serves one call."""

    given: Tensor

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.given = x
        return self.part(x, *args, **kwargs)
