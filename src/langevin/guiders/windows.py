"""Pictures larger than the network knows, seen through windows: MultiDiffusion, Bar-Tal, Yariv, Lipman & Dekel 2023
(2302.08113).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Conditions, Denoiser, Step
from langevin.latest import Latest

Box = tuple[int, int, int, int]
"""Where a window lies on x: top, bottom, left, right. Where right is more than x's width, it goes on at the left."""

CIRCULAR_EDGE = 8
"""How many latents of the other side the decoder of a circular picture sees beyond each edge."""


@dataclass
class Windows(Guider):
    """Show the network square windows of x, and average its predictions where they overlap (equation 5).

    The paper moves each window by one step and then averages. That is the same wherever a step is linear in x and the
    prediction, as it is for every deterministic solver. Where a step adds noise (eta above 0, ancestral and SDE
    solvers) averaging steps would average away the noise too, and blur the picture; here there is one noise for all of
    x, and it stays whole. Clipping and thresholding see the averaged prediction.

    Conditions that are maps of x are cut like it. Where x is no larger than a window nothing changes, but for
    ``circular``.

    Args:
        size: side of a window, in latents; larger than the network's own is possible. 64 is 512 pixels for Stable
            Diffusion.
        stride: from one window to the next, in latents. Where the last one does not reach the edge another is put
            there.
        batch: how many windows go through the network at once.
        circular: left and right edge meet: windows lie across the seam, and the decoder sees around it. x must be
            wider than ``size`` for the seam to close.
        smooth: weigh a window's prediction down towards its edges (by sin², the Hann window), so that no edge shows.
            Equation 5 leaves the weights free; the reference's are even, which shows slightly where few windows
            overlap.

    Raises:
        ValueError: a number is below 1, or the stride leaves gaps between windows; when the call begins, x is no
            picture.

    Example:
        >>> pipe("mountains", height=512, width=2048, guiders=[Windows()])
    """

    size: int = 64
    stride: int = 8
    batch: int = 1
    circular: bool = False
    smooth: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.stride <= self.size:
            raise ValueError(f"windows of {self.size} every {self.stride} latents; 1 <= stride <= size is needed")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch} windows; at least 1 goes through the network at once")

    def prepare(self, setup: Setup) -> None:
        height, width = setup.picture_places("Windows")
        boxes = window_boxes(height, width, self.size, self.stride, self.circular)
        if self.circular:
            setup.codec = _CircularCodec(setup.codec)
        if boxes == [(0, height, 0, width)]:
            return
        if isinstance(setup.denoiser, _WindowedDenoiser):
            raise ValueError("two guiders cut x into windows; give one Windows")
        setup.denoiser = _WindowedDenoiser(setup.denoiser, boxes, self.batch, self.smooth)


def window_boxes(height: int, width: int, size: int, stride: int, circular: bool = False) -> list[Box]:
    """The windows that cover a map, row by row."""
    rows = [(top, top + min(size, height)) for top in _starts(height, size, stride)]
    if circular and width > size:
        count = width // stride
        count += (count - 1) * stride + size < width  # only where windows hardly overlap
        columns = [(k * stride, k * stride + size) for k in range(count)]
    elif circular:
        columns = [(0, min(size, 2 * width))]
    else:
        columns = [(left, left + min(size, width)) for left in _starts(width, size, stride)]
    return [(*row, *column) for row in rows for column in columns]


def _starts(length: int, size: int, stride: int) -> list[int]:
    starts = list(range(0, max(length - size, 0) + 1, stride))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts


def cut(whole: Tensor, box: Box) -> Tensor:
    """The part of a map ``(…, height, width)`` that lies in a window; shares memory with it where it can."""
    top, bottom, left, right = box
    rows, width = whole[..., top:bottom, :], whole.shape[-1]
    if right <= width:
        return rows[..., left:right]
    return torch.cat([rows[..., left:], rows[..., : right - width]], dim=-1)


def stitch(parts: Sequence[Tensor], boxes: Sequence[Box], height: int, width: int, smooth: bool = False) -> Tensor:
    """Maps of windows put together to ``(…, height, width)``, their mean where they overlap, 0 where there is none.

    With ``smooth`` a weighted mean: what a window says counts less towards its edges.
    """
    first = parts[0]
    dtype = torch.promote_types(first.dtype, torch.float32)  # many small sums
    total = torch.zeros(*first.shape[:-2], height, width, dtype=dtype, device=first.device)
    count = torch.zeros(height, width, dtype=dtype, device=first.device)
    for part, (top, bottom, left, right) in zip(parts, boxes, strict=True):
        inside = min(right, width) - left
        weight = torch.ones((), dtype=dtype, device=first.device)
        if smooth:
            weight = _hann(bottom - top, weight)[:, None] * _hann(right - left, weight)
            part = part * weight
        weight = weight.expand(bottom - top, right - left)
        total[..., top:bottom, left : left + inside] += part[..., :inside]
        count[top:bottom, left : left + inside] += weight[:, :inside]
        if right > width:
            total[..., top:bottom, : right - width] += part[..., inside:]
            count[top:bottom, : right - width] += weight[:, inside:]
    return (total / count.where(count > 0, 1)).to(first.dtype)


def _hann(length: int, like: Tensor) -> Tensor:
    """sin² from edge to edge, nowhere 0."""
    places = torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
    return (torch.pi * places / length).sin().square()


class _WindowedDenoiser:
    """A denoiser that asks another one about windows. Made for one call."""

    def __init__(self, inner: Denoiser, boxes: Sequence[Box], batch: int, smooth: bool) -> None:
        self.inner = inner
        self.boxes = boxes
        self.smooth = smooth
        self.groups = [tuple(boxes[k : k + batch]) for k in range(0, len(boxes), batch)]
        self._cuts: dict[str, Latest[list[Conditions]]] = {}

    def __call__(
        self, x: Tensor, step: Step, branches: Mapping[str, Conditions], attention: Callable | None = None
    ) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {name: [] for name in branches}
        told = {name: self._cut(name, conditions, x) for name, conditions in branches.items()}
        for k, boxes in enumerate(self.groups):
            there = {name: groups[k] for name, groups in told.items()}
            watching = None if attention is None else partial(attention, views=boxes)
            for name, prediction in self.inner(_side_by_side(x, boxes), step, there, watching).items():
                parts[name] += prediction.chunk(len(boxes))
        height, width = x.shape[-2:]
        return {name: stitch(seen, self.boxes, height, width, self.smooth) for name, seen in parts.items()}

    def _cut(self, name: str, conditions: Conditions, x: Tensor) -> list[Conditions]:
        """What a branch is told at each group of windows."""
        latest = self._cuts.setdefault(name, Latest())
        return latest([conditions], lambda: self._at_each(conditions, x.shape[-2:]))

    def _at_each(self, conditions: Conditions, place: Sequence[int]) -> list[Conditions]:
        if _has_maps(conditions, place):
            return [_at(conditions, boxes, place) for boxes in self.groups]
        alike = {
            len(boxes): _at(conditions, boxes, place) for boxes in self.groups
        }  # groups of one size are told the same
        return [alike[len(boxes)] for boxes in self.groups]


def _is_map(value: Tensor, place: Sequence[int]) -> bool:
    return value.ndim >= 4 and value.shape[-2:] == place  # a text is (batch, tokens, dim), whatever its size


def _has_maps(value: Any, place: Sequence[int]) -> bool:
    if isinstance(value, Mapping):
        return any(_has_maps(inner, place) for inner in value.values())
    return isinstance(value, Tensor) and _is_map(value, place)


def _at(value: Any, boxes: Sequence[Box], place: Sequence[int]) -> Any:
    """Conditions of several windows, one after the other: maps are cut, other tensors repeated."""
    if isinstance(value, Mapping):
        return {name: _at(inner, boxes, place) for name, inner in value.items()}
    if not isinstance(value, Tensor):
        return value
    if _is_map(value, place):
        return _side_by_side(value, boxes)
    return value if len(boxes) == 1 else torch.cat([value] * len(boxes))


def _side_by_side(whole: Tensor, boxes: Sequence[Box]) -> Tensor:
    parts = [cut(whole, box) for box in boxes]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _CircularCodec:
    """A codec whose decoder sees the other side of the picture beyond the left and right edge."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to ``(batch, 3, height, width)``, as without."""
        edge = min(CIRCULAR_EDGE, latents.shape[-1])
        around = torch.cat([latents[..., -edge:], latents, latents[..., :edge]], dim=-1)
        pixels = edge * self.inner.scale_factor
        return self.inner.decode(around)[..., pixels:-pixels]
