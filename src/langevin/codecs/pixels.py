"""For networks that denoise pixels themselves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from langevin.codecs.base import check_size
from langevin.randomness import Noise


class PixelCodec:
    """x is the picture.

    Args:
        channels: of the pictures.
        low: what black is in x: -1 where the network knows pixels in [-1, 1], 0 where it knows them in [0, 1], as those
            of score SDEs do (Song et al. 2021, 2011.13456, appendix C).

    Raises:
        ValueError: ``low`` is neither.
    """

    axes = 2
    scale_factor = 1

    def __init__(self, channels: int = 3, low: float = -1.0) -> None:
        if low not in (-1, 0):
            raise ValueError(f"low is {low}; a network knows pixels from -1 to 1, or from 0 to 1")
        self.channels = channels
        self.low = low

    def shape(self, count: int, size: Sequence[int]) -> tuple[int, ...]:
        """``(count, channels, height, width)``."""
        check_size(size, 1)
        return (count, self.channels, *size)

    def encode(self, pixels: Tensor, noise: Noise | None = None) -> Tensor:
        """``(batch, channels, height, width)`` in [-1, 1] to [low, 1]."""
        return pixels if self.low else pixels / 2 + 0.5

    posterior = encode

    def decode(self, x: Tensor) -> Tensor:
        """x in about [low, 1] to about [-1, 1]."""
        return x if self.low else 2 * x - 1


PIXELS = PixelCodec()


class PlainCodec:
    """x is handed on as it is: a prior's embedding, or whatever a later stage of the call takes.

    Args:
        axes, channels, scale_factor: see :class:`~langevin.codecs.base.Codec`.
    """

    def __init__(self, axes: int = 0, channels: int = 1, scale_factor: int = 1) -> None:
        self.axes, self.channels, self.scale_factor = axes, channels, scale_factor

    def shape(self, count: int, size: Sequence[int]) -> tuple[int, ...]:
        """``(count, channels, *size / scale_factor)``; of a vector ``(count, *size)``."""
        check_size(size, self.scale_factor)
        places = (side // self.scale_factor for side in size)
        return (count, self.channels, *places) if self.axes else (count, *places)

    def encode(self, pixels: Tensor, noise: Noise | None = None) -> Tensor:
        """As it is."""
        return pixels

    def decode(self, x: Tensor) -> Tensor:
        """As it is."""
        return x
