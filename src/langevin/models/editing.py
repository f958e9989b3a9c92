"""Changing what a network takes a text for, in closed form: TIME, Orgad, Kawar & Belinkov 2023 (2303.08084)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from langevin.models.layers.attention import Attention

Net = TypeVar("Net", bound=nn.Module)


def edited(network: Net, sources: Tensor, targets: Tensor, lamb: float = 0.1, *, keys: bool = True) -> Net:
    """A copy of a network that takes some tokens for others. All that is not edited is shared with the network itself.

    Args:
        network: whose cross-attention looks at a text.
        sources: embeddings of tokens, ``(tokens, dim)``.
        targets: what each is to be taken for, of the same shape.
        lamb: λ of equation 3: how strongly what else the network knows is held on to, above 0.
        keys: edit the projections to keys too, and not to values alone.

    Raises:
        ValueError: shapes do not fit, λ is not above 0, or there is no cross-attention that looks at such tokens.
    """
    if sources.shape != targets.shape or sources.ndim != 2:
        raise ValueError(f"tokens are {tuple(sources.shape)} and {tuple(targets.shape)}; both (tokens, dim) are needed")
    dim = sources.shape[1]
    places = [layer for layer in text_projections(network, keys) if layer.in_features == dim]
    if not places:
        raise ValueError(f"this network has no cross-attention that looks at tokens {dim} wide")
    kept = {id(p) for layer in places for p in layer.parameters()}
    shared = {id(t): t for t in (*network.parameters(), *network.buffers()) if id(t) not in kept}
    made = copy.deepcopy(network, shared)
    change = token_change(sources, targets, lamb)
    with torch.no_grad():
        for layer in text_projections(made, keys):
            if layer.in_features == dim:
                weight = layer.weight.double() @ change.to(layer.weight.device)
                layer.weight = nn.Parameter(weight.to(layer.weight.dtype), layer.weight.requires_grad)
    return made


def token_change(sources: Tensor, targets: Tensor, lamb: float) -> Tensor:
    """R of W' = W·R, the same for every projection W of tokens, ``(dim, dim)`` in float64.

    Equation 5 has W' = (λW + Σ v*·cᵀ)(λI + Σ c·cᵀ)⁻¹. What a source c is to become is what W makes of its target c*,
    v* = W·c*, so that W can be put in front of the brackets: R = (λI + Σ c*·cᵀ)(λI + Σ c·cᵀ)⁻¹.

    Args:
        sources, targets: c and c*, ``(tokens, dim)``.
        lamb: λ.

    Raises:
        ValueError: λ is not above 0.
    """
    if not lamb > 0:
        raise ValueError(f"lamb is {lamb}; it must be above 0: the larger it is, the less is changed")
    c, wanted = sources.double(), targets.double()
    held = lamb * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    return torch.linalg.solve(held + c.T @ c, held + wanted.T @ c, left=False)


def text_projections(network: nn.Module, keys: bool = True) -> Iterator[nn.Linear]:
    """A network's projections of text to values, and to keys."""
    for layer in network.modules():
        if isinstance(layer, Attention) and layer.is_cross_attention:
            added = layer.add_k_proj is not None
            yield layer.add_v_proj if added else layer.to_v
            if keys:
                yield layer.add_k_proj if added else layer.to_k
