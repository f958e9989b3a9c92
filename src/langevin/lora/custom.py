"""Files of Custom Diffusion (Kumari et al. 2022, 2212.04488): other projections for cross-attention, in place of the
network's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from langevin.checkpoints.errors import CheckpointError

MARK = "_custom_diffusion"
PROCESSOR = ".processor."


def is_custom(tensors: Mapping[str, Any]) -> bool:
    """Whether a file is one of them."""
    return any(MARK in key for key in tensors)


def file_name(layer: str, of: str) -> str:
    """The name that a layer of an attention has in files, ``….processor.to_k_custom_diffusion``."""
    return f"{of}{PROCESSOR}{layer.replace('to_out', 'to_out' + MARK) if '.' in layer else layer + MARK}"


def load(network: Any, tensors: Mapping[str, Tensor], said: str) -> None:
    """Put a file's projections into a network. They take the place of its own, which are gone.

    Raises:
        CheckpointError: names or shapes are not the network's; nothing was changed.
    """
    held = dict(network.named_parameters())
    found: dict[str, tuple[Any, Tensor]] = {}
    for key, tensor in tensors.items():
        name = key.replace(PROCESSOR, ".").replace(MARK, "")
        if MARK not in key or name not in held:
            raise CheckpointError(f"{said} has {key!r}, which the network has no place for.")
        if held[name].shape != tensor.shape or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise CheckpointError(f"{said}: {key!r} is no {tuple(held[name].shape)} of finite numbers.")
        found[name] = held[name], tensor
    with torch.no_grad():
        for parameter, tensor in found.values():
            parameter.copy_(tensor)
