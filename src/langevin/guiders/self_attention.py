"""Self-attention guidance: Hong, Lee, Jang & Kim 2023 (2210.00939)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.guiders.attention_maps import map_size, watching
from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step
from langevin.guiders.windows import Box, stitch
from langevin.models.layers.attention import Attention

_REACH = 4
"""The blur looks at 9 x 9 places: this many to each side."""


@dataclass
class SelfAttentionGuidance(Guider):
    """Push the prediction away from what the network says where the places it looks at most are blurred.

    Algorithm 1 of the paper. The watched layer is the first self-attention in the network's middle. Where a place gets
    more attention than it gives (section 4.2), x0 is blurred; noised again as it was, it is shown to the network once
    more, in the negative branch where that is computed, else in the positive one (equation 25). The difference, times
    ``scale``, is added to the prediction. It needs no text, so it works for unconditional networks too.

    Args:
        scale: s of the paper, 0 to 1 as a rule. At 0 nothing is computed.

    Raises:
        ValueError: the scale is negative, the network has no self-attention, or x is smaller than the blur reaches.

    Example:
        >>> pipe("a red circle", guiders=[SelfAttentionGuidance(0.75)])
    """

    scale: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale >= 0:
            raise ValueError(f"scale={self.scale} of SelfAttentionGuidance must be at least 0, which is off")

    def prepare(self, setup: Setup) -> None:
        self._batch = setup.shape[0]
        self._places = setup.picture_places("self-attention guidance")
        self._frames = setup.shape[2] if len(setup.shape) == 5 else None
        self._layer = lowest_self_attention(setup.network)
        if self.scale and min(self._places) <= _REACH:
            sides = " x ".join(map(str, self._places))
            raise ValueError(
                f"self-attention guidance blurs over {2 * _REACH + 1} x {2 * _REACH + 1} places, and x has {sides}; "
                f"make pictures with at least {_REACH + 1} x {_REACH + 1}"
            )

    def attention(self, step: Step) -> Callable[..., Tensor] | None:
        if self.scale == 0:
            return None
        self._others = step.attention
        self._seen: dict[str, dict[Box, Tensor]] = {}
        return watching(lambda q, k, layer, views: layer is self._layer, self._see, self._others)

    def _see(
        self,
        probabilities: Tensor,
        layer: Attention,
        names: tuple[str, ...] = (),
        views: Any = None,
        pictures: Sequence[int] | None = None,
    ) -> None:
        """Keep for each branch where places get more than their share of attention, in the size of x or its windows."""
        received = probabilities.mean(1).sum(1)  # over the heads, over who looks: (rows, places)
        boxes = views or [(0, self._places[0], 0, self._places[1])]
        top, bottom, left, right = boxes[0]
        height, width = bottom - top, right - left
        size = map_size(received.shape[1], height, width)
        if size is None:
            raise ValueError(
                f"the watched attention sees {received.shape[1]} places, which is no {height} x {width} halved"
            )
        masks = F.interpolate((received > 1).float().unflatten(1, size)[:, None], (height, width))
        frames = getattr(self, "_frames", None)
        if frames is not None:  # a video's rows are its frames
            masks = masks.unflatten(0, (-1, frames)).transpose(1, 2)
        for name, rows in zip(names, masks.chunk(len(names)), strict=True):
            seen = self._seen.setdefault(name, {})
            for box, part in zip(boxes, rows.chunk(len(boxes)), strict=True):
                if pictures is None:
                    seen[box] = part
                else:  # some of the batch at a time
                    whole = seen.setdefault(box, part.new_zeros(self._batch, *part.shape[1:]))
                    whole[list(pictures)] = part

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        if self.scale == 0:
            return prediction
        branch = "negative" if "negative" in predictions else "positive"
        own = predictions[branch]
        seen = self._seen[branch]
        mask = stitch([*seen.values()], [*seen], *x.shape[-2:])
        level = step.run.levels[step.index]
        p, q = step.run.to_x0(level)
        x0 = p * x.float() + q * own.float()
        # α·x0' + σ·ε with the ε of this prediction is x with α·(x0' - x0) added
        degraded = x + level.alpha * mask * (blur(x0) - x0)
        again = step.predict(degraded.to(x.dtype), [branch], self._others)[branch]
        return prediction + self.scale * (own - again)


def lowest_self_attention(network: Any) -> Attention:
    """The first self-attention in the middle, else in the lowest stage that has one: down first, then up.

    Raises:
        ValueError: there is none.
    """
    downs, ups = list(getattr(network, "down_blocks", ())), list(getattr(network, "up_blocks", ()))
    stages: list[nn.Module | None] = [getattr(network, "mid_block", None)]
    for down, up in zip(reversed(downs), ups, strict=False):
        stages += [down, up]
    for stage in stages:
        for module in stage.modules() if stage is not None else ():
            if isinstance(module, Attention) and not module.is_cross_attention:
                return module
    raise ValueError(
        f"self-attention guidance needs a network with self-attention; this {type(network).__name__} has none"
    )


def blur(x: Tensor) -> Tensor:
    """A Gaussian of σ = 1 over 9 x 9 places, mirrored at the edges; ``(batch, channels, height, width)``, or videos'
    frames, ``(batch, channels, frames, height, width)``, each by itself.
    """
    if x.ndim == 5:
        return blur(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, x.shape[2])).transpose(1, 2)
    places = torch.arange(-_REACH, _REACH + 1, device=x.device, dtype=x.dtype)
    bell = (-0.5 * places**2).softmax(0)
    channels = x.shape[1]
    convolve = partial(F.conv2d, groups=channels)
    x = F.pad(x, (_REACH,) * 4, mode="reflect")
    x = convolve(x, bell.view(1, 1, 1, -1).expand(channels, -1, -1, -1))
    return convolve(x, bell.view(1, 1, -1, 1).expand(channels, -1, -1, -1))
