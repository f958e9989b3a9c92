"""LoRAs in networks: put in and taken out, weighed, fused; and networks that differ in nothing but the weights.

A LoRA in a network is a child ``lora`` of each layer that it changes, and a forward hook there. The names and keys of
the network's own weights stay what they are.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from langevin.lora.delta import Delta, Deltas, add_to_output
from langevin.lora.weights import Weight, check_name, check_weight, weight_at
from langevin.models.encoders.twin import twin

_LOCK = threading.RLock()
"""Held while LoRAs are put in, taken out or weighed, and while a call's twins are made."""

Function = TypeVar("Function", bound=Callable[..., Any])


def _alone(function: Function) -> Function:
    """One thread at a time goes through."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _LOCK:
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


@dataclass(frozen=True)
class Loaded:
    """What a network knows of its LoRAs. It is replaced and never changed.

    Attributes:
        origins: where each came from, by name; see :func:`langevin.lora.files.read`. None for those given as tensors.
        active: weights of those in use.
        fused: weights and scales of those that the network's own weights contain.
        enabled: whether any of the active is in use, for now.
    """

    origins: Mapping[str, Any] = field(default_factory=dict)
    active: Mapping[str, Weight] = field(default_factory=dict)
    fused: Mapping[str, tuple[Weight, float]] = field(default_factory=dict)
    enabled: bool = True


def loaded(network: Any) -> Loaded:
    """What a network knows of its LoRAs."""
    return _bare(network).__dict__.get("_loras") or Loaded()


def is_adapted(network: Any) -> bool:
    """Whether a network has any LoRA, in use or not."""
    return bool(loaded(network).origins)


def layers(network: Any) -> dict[str, Any]:
    """The layers that a LoRA can change, by name: linear ones and convolutions, the LoRAs' own left out."""
    kinds = (nn.Linear, nn.Conv2d)
    return {name: module for name, module in _bare(network).named_modules() if isinstance(module, kinds)}


def adapted_layers(network: Any) -> dict[str, Any]:
    """Those that some LoRA changes, by name."""
    return {name: module for name, module in layers(network).items() if isinstance(_deltas(module), Deltas)}


@_alone
def add(network: Any, name: str, deltas: Mapping[str, Delta], origin: Any = None) -> None:
    """Put a LoRA into a network, as the only one in use, at weight 1.

    Args:
        deltas: what it adds to each layer, by the layer's name.
        origin: what pictures record of it.

    Raises:
        ValueError: the name is taken, or is none.
    """
    known = loaded(network)
    check_name(name)
    if name in known.origins:
        raise ValueError(f"there is a LoRA {name!r} already; give another adapter_name, or delete_adapters({name!r})")
    found = layers(network)
    for where, delta in deltas.items():
        layer = found[where]
        if _deltas(layer) is None:
            layer.lora = Deltas()
            layer.lora.handle = layer.register_forward_hook(add_to_output)
            layer.lora.train(layer.training)
        layer.lora.put(name, delta.to(layer.weight.device).train(layer.training))
    _know(network, replace(known, origins={**known.origins, name: origin}))
    set_weights(network, {name: 1.0})


@_alone
def remove(network: Any, names: Iterable[str] | None = None) -> None:
    """Take LoRAs out of a network, all if None. What is fused stays in its weights."""
    known = loaded(network)
    gone = set(known.origins if names is None else names)
    for layer in adapted_layers(network).values():
        deltas = layer.lora
        for name in gone:
            deltas.take(name)
        if not deltas.names():
            deltas.handle.remove()
            del layer.lora
    of_others: dict[str, Any] = {
        what: {name: value for name, value in getattr(known, what).items() if name not in gone}
        for what in ("origins", "active", "fused")
    }
    _know(network, replace(known, **of_others))


@_alone
def set_weights(network: Any, active: Mapping[str, Weight], enabled: bool | None = None) -> None:
    """Use these LoRAs of those in the network, each with its weight, and no others.

    Args:
        enabled: False to use none for now; as it was if None.
    """
    known = loaded(network)
    for name, weight in active.items():
        check_weight(name, weight)
    enabled = known.enabled if enabled is None else enabled
    _know(network, replace(known, active=dict(active), enabled=enabled))
    for where, layer in adapted_layers(network).items():
        layer.lora.weights = _weights_at(where, layer, active if enabled else {})


@_alone
def with_weights(network: Any, active: Mapping[str, Weight], scale: float = 1.0) -> Any:
    """A network that shares everything with this one but uses its LoRAs with these weights, times ``scale``.

    This one stays as it is, and what happens to its LoRAs later does not reach the other.
    """
    return twin(network, {where: _seen(where, layer, active, scale) for where, layer in layers(network).items()})


def _seen(where: str, layer: Any, active: Mapping[str, Weight], scale: float) -> Any:
    """A layer with weights of its own for its LoRAs, and with dicts of its own for all that is put in and taken out."""
    parts: dict[str, Any] = {}
    if isinstance(_deltas(layer), Deltas):
        weights = {name: scale * w for name, w in _weights_at(where, layer, active).items() if scale * w}
        parts["lora"] = layer.lora.with_weights(weights)
    same = twin(layer, parts)
    same.__dict__["_parameters"] = dict(layer._parameters)
    same.__dict__["_forward_hooks"] = layer._forward_hooks.copy()
    return same


def scaled(network: Any, scale: float | None) -> Any:
    """The network with the weights of all its LoRAs times ``scale``: itself where that changes nothing."""
    if scale is None or scale == 1 or not is_adapted(network):
        return network
    known = loaded(network)
    return with_weights(network, known.active if known.enabled else {}, scale)


# -- fused


@_alone
@torch.no_grad()
def fuse(network: Any, weights: Mapping[str, Weight], scale: float = 1.0, safe: bool = False) -> None:
    """Add LoRAs to the network's own weights, so that they cost no time. :func:`unfuse` undoes it exactly.

    Args:
        weights: of each; they count ``scale`` times.
        safe: refuse sums that are not finite.

    Raises:
        ValueError: one is fused already, or, where ``safe``, the sums are not finite. Nothing is changed then.
    """
    known = loaded(network)
    twice = sorted(set(weights) & set(known.fused))
    if twice:
        raise ValueError(f"the LoRA {', '.join(twice)} is fused already; call unfuse_lora() first")
    changes = {}
    for where, layer in adapted_layers(network).items():
        weight, bias = layer.weight, layer.bias
        here = {name: scale * w for name, w in _weights_at(where, layer, weights).items() if scale * w}
        start = layer.lora.own_weight if layer.lora.own_weight is not None else weight
        for name, w in here.items():
            more, offset = layer.lora.get(name).weight_change(start, w)
            weight = weight.float() + more
            if offset is not None:
                bias = offset + (0 if bias is None else bias.float())
        if safe and not weight.isfinite().all():
            raise ValueError(f"with the LoRA fused, the weights of {where} are not finite; nothing was changed")
        if here:
            changes[layer] = weight.to(layer.weight.dtype), bias, here
    for layer, (weight, bias, here) in changes.items():
        deltas = layer.lora
        if not deltas.fused:
            deltas.own_weight, deltas.own_bias = layer.weight, layer.bias
        layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
        if bias is not layer.bias:
            layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
        deltas.fused = {**deltas.fused, **here}
    _know(network, replace(known, fused={**known.fused, **{name: (weight, scale) for name, weight in weights.items()}}))


@_alone
def unfuse(network: Any) -> None:
    """Put back the very weights that the network had before anything was fused."""
    for layer in adapted_layers(network).values():
        deltas = layer.lora
        if deltas.fused:
            layer.weight, layer.bias = deltas.own_weight, deltas.own_bias
            deltas.own_weight = deltas.own_bias = None
            deltas.fused = {}
    _know(network, replace(loaded(network), fused={}))


# -- small things


def _weights_at(where: str, layer: Any, active: Mapping[str, Weight]) -> dict[str, float]:
    """Weights of those that change this layer, in the order in which they came into the network: sums of several then
    are the same to the last digit, however they are named.
    """
    return {name: weight_at(where, active[name]) for name in layer.lora.names() if name in active}


def _bare(network: Any) -> Any:
    """The network inside one that ``torch.compile`` made."""
    return getattr(network, "_orig_mod", network)


def _know(network: Any, known: Loaded) -> None:
    _bare(network).__dict__["_loras"] = known


def _deltas(layer: Any) -> Any:
    return layer._modules.get("lora")
