"""Halving and doubling the size of a feature map.

Four ways: learned (a convolution), plain (average or repeat), FIR (the [1, 3, 3, 1] filter of StyleGAN2 and NCSN++) and
the same filter with mirrored edges (the k-diffusion UNet). Maps are (batch, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Downsample(nn.Module):
    """A stride-2 convolution. ``padding=0`` pads one row and column at the far end, not all around (LDM's VAE)."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Repeats pixels to twice the size (or to ``size``), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(repeat(x, size))


def repeat(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Nearest neighbour, to twice the size or to ``size`` (height, width)."""
    if size is None:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.interpolate(x, size=size, mode="nearest")


def average(x: Tensor) -> Tensor:
    """Each output pixel is the mean of a 2x2 square."""
    return F.avg_pool2d(x, 2)


def _fir(x: Tensor, gain: float) -> Tensor:
    """The filter [1, 3, 3, 1] ⊗ [1, 3, 3, 1] / 64 · gain as a depthwise weight (channels, 1, 4, 4).

    Built by arithmetic on the device: a constant copied from the host would make the host wait.
    """
    taps = 4 - (2 * torch.arange(4, device=x.device, dtype=torch.float32) - 3).abs()
    weight = torch.outer(taps, taps * (gain / 64))
    return weight.to(x.dtype).expand(x.shape[1], 1, 4, 4)


def fir_down(x: Tensor) -> Tensor:
    """Blur and keep every second pixel; zeros beyond the edge."""
    return F.conv2d(x, _fir(x, 1.0), stride=2, padding=1, groups=x.shape[1])


def fir_up(x: Tensor) -> Tensor:
    """Put zeros between the pixels and blur; zeros beyond the edge."""
    return F.conv_transpose2d(x, _fir(x, 4.0), stride=2, padding=1, groups=x.shape[1])


def mirrored_fir_down(x: Tensor) -> Tensor:
    """:func:`fir_down` with the image mirrored at its edges."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), _fir(x, 1.0), stride=2, groups=x.shape[1])


def mirrored_fir_up(x: Tensor) -> Tensor:
    """:func:`fir_up` with the image mirrored at its edges."""
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return F.conv_transpose2d(x, _fir(x, 4.0), stride=2, padding=3, groups=x.shape[1])


class Resample(nn.Module):
    """A function from this file as a module, so that it can stand in a list of modules. It has no weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.function.__name__
