"""Layers of networks that denoise vectors as others do pictures: Versatile Diffusion's text flow (Xu, Wang, Zhang,
Wang & Shi 2022, 2211.08332, section 3.2).

A flat map has channels and :data:`PLACES` places, and layers mix all of them: ``(batch, channels · PLACES, 1, 1)``, a
channel's places beside each other. To attention they are the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

PLACES = 4


class FlatLinear(nn.Linear):
    """A linear layer over a flat map, in the place of a convolution: ``(batch, dim, 1, 1)``."""

    def forward(self, x: Tensor, size: Any = None) -> Tensor:
        """``size`` is that of a map, and a flat one has none."""
        return super().forward(x.flatten(1))[..., None, None]


class FlatNorm(nn.GroupNorm):
    """Group norm of a flat map with a weight for each channel, and not for each of its places."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(with_places(x)).flatten(1)[..., None, None]


def with_places(x: Tensor) -> Tensor:
    """A flat map as a picture, ``(batch, channels, PLACES, 1)``."""
    return x.reshape(len(x), -1, PLACES, 1)


def over_places(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention over pictures as one over flat maps."""

    def flat(layer: nn.Module, x: Tensor, call: Any) -> Tensor:
        return run(layer, with_places(x), call).reshape(x.shape)

    return flat
