"""What a codec is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from langevin.randomness import Noise


class Codec(Protocol):
    """From what people see or hear to x, what the network denoises, and back.

    Attributes:
        channels: of x.
        axes: how many of x's last axes are places: 2 of a picture ``(batch, channels, height, width)``, 1 of a sound
            ``(batch, channels, samples)``, 3 of frames, 0 of a vector ``(batch, dim)``.
        scale_factor: places of what is decoded per place of x, along each of these axes; of frames as many as x has.
    """

    @property
    def channels(self) -> int: ...

    @property
    def axes(self) -> int: ...

    @property
    def scale_factor(self) -> int: ...

    def shape(self, count: int, size: Sequence[int]) -> tuple[int, ...]:
        """Of x for ``count`` things of this size, one number for each axis: pixels ``(height, width)``, samples, ….

        Raises:
            ValueError: there is no x of such a size.
        """

    def encode(self, pixels: Tensor, noise: Noise | None = None) -> Tensor:
        """x of what is given, in [-1, 1]; drawn with ``noise`` where the codec draws, else the likeliest one."""

    def decode(self, x: Tensor) -> Tensor:
        """What x stands for, about [-1, 1], not clamped."""


def check_size(size: Sequence[int], multiple: int, names: Sequence[str] = ("height", "width")) -> None:
    """Raises ValueError unless every side is a positive multiple of ``multiple``."""
    if any(side < 1 or side % multiple for side in size):
        given, which = (" and ".join(map(str, each)) for each in (size, names[: len(size)]))
        raise ValueError(f"{which} are {given}; both must be multiples of {multiple}")
