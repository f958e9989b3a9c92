"""The reference library as an oracle: the same random weights in both, and what comes out of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers")


def random_weights(reference: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of unit gain for every parameter, so that no path is silent, as some would be at initialisation."""
    generator = torch.Generator().manual_seed(seed)
    weights = reference.state_dict()
    for name, value in weights.items():
        if "time_proj" in name:
            continue
        scale = 0.3 if value.ndim < 2 else value[0].numel() ** -0.5
        is_norm = value.ndim == 1 and "norm" in name and name.endswith("weight")
        weights[name] = torch.randn(value.shape, generator=generator) * scale + float(is_norm)
    return weights


def twins(ours: type[nn.Module], /, **config: Any) -> tuple[nn.Module, nn.Module]:
    """The reference's network and ours, built from one config, with the same random weights."""
    reference = getattr(diffusers, ours.__name__)(**config).eval()
    mine = ours(**config).eval()
    weights = random_weights(reference)
    reference.load_state_dict(weights, strict=True)
    mine.load_state_dict(weights, strict=True)
    return reference, mine


def assert_close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 2e-5) -> None:
    """Equal to ``tolerance`` of the largest entry."""
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    assert torch.isfinite(reference).all()
    difference = (ours - reference).abs().max().item()
    assert difference <= tolerance * reference.abs().max().clamp_min(1.0).item(), difference


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
