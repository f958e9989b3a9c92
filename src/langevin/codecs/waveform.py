"""For networks that denoise sound as it is, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from langevin.randomness import Noise


class WaveformCodec:
    """x is the sound, filled up at its end to a length that the network takes.

    Args:
        channels: of the sounds; 2 for stereo.
        multiple: the network takes lengths that are multiples of it.
        length: samples of the sounds that are wanted: what is decoded is cut back to it; None cuts nothing.
    """

    axes = 1
    scale_factor = 1

    def __init__(self, channels: int = 2, multiple: int = 1, length: int | None = None) -> None:
        self.channels, self.multiple, self.length = channels, multiple, length

    def shape(self, count: int, size: Sequence[int]) -> tuple[int, ...]:
        """``(count, channels, samples)``, of the next multiple."""
        return (count, self.channels, -(-size[0] // self.multiple) * self.multiple)

    def encode(self, pixels: Tensor, noise: Noise | None = None) -> Tensor:
        """``(batch, channels, samples)`` in [-1, 1], with silence at its end up to the next multiple."""
        return F.pad(pixels, (0, -pixels.shape[-1] % self.multiple))

    def decode(self, x: Tensor) -> Tensor:
        """x, cut back to the length that is wanted."""
        return x[..., : self.length]
