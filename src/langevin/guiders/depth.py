"""Depth as a further input channel: Stable Diffusion 2's depth model (Rombach et al. 2022, 2112.10752, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import interpolate

from langevin.guiders.base import Guider, Setup

_DEPTH = "depth_mask"


@dataclass
class DepthChannel(Guider):
    """Shows the network how near things are, in an input channel of its own beside x.

    The map is brought to x's size (bicubic), and each picture's own to [-1, 1], whatever its scale was. Callbacks see
    and may replace it as "depth_mask", ``(batch, 1, height, width)``.

    Args:
        depth: ``(n, height, width)`` of any size and scale, larger is nearer (an inverse depth, as DPT's and MiDaS'). n
            is 1, or divides the batch. A map that is the same everywhere says nothing, and is told as 0.

    Raises:
        ValueError: it has another number of axes; when the call begins, what is made is no picture.

    Example:
        >>> pipe("a red room", guiders=[DepthChannel(depth), ImageStart(pixels, strength=0.8)])
    """

    pictures_only = True

    depth: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth.ndim != 3 or 0 in self.depth.shape:
            raise ValueError(f"the depth map is {tuple(self.depth.shape)}; (pictures, height, width) is needed")

    def prepare(self, setup: Setup) -> None:
        size = setup.picture_places("DepthChannel")
        depth = self.depth.to(setup.device, setup.dtype)[:, None]
        depth = interpolate(depth, size=size, mode="bicubic", align_corners=False)
        low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
        told = (2 * (depth - low) / (high - low) - 1).where(high > low, 0)
        setup.told.put("channels", _DEPTH, setup.rows(told))
