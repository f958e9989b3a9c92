"""Seeing what chosen attention layers look at while the network runs, without changing what they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from langevin.models.layers.attention import Attention

Seen = Callable[..., None]
"""``seen(probabilities, layer, names=(…), views=None)`` with probabilities ``(rows, heads, queries, keys)`` in fp32."""


def watching(
    wanted: Callable[[Tensor, Tensor, Attention, Any], bool],
    seen: Seen,
    inner: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """An attention function (see :meth:`langevin.guiders.base.Guider.attention`) that shows what some layers look at.

    Args:
        wanted: ``wanted(q, k, layer, views)`` says whether to show a layer's call. The others stay with the fused
            attention, which never lays its probabilities out in memory.
        seen: is shown the probabilities.
        inner: another guider's attention function, which then says what every layer gives.
    """

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, layer: Attention, **where: Any) -> Tensor:
        looks = wanted(q, k, layer, where.get("views"))
        probabilities = probabilities_of(q, k, mask, layer) if looks else None
        if probabilities is not None:
            seen(probabilities, layer, **where)
        if inner is not None:
            return inner(q, k, v, mask, layer, **where)
        if probabilities is not None:
            return probabilities.to(v.dtype) @ v
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return attention


def probabilities_of(q: Tensor, k: Tensor, mask: Tensor | None, layer: Attention) -> Tensor:
    """softmax(q·kᵀ/√dim + mask), ``(rows, heads, queries, keys)``, in fp32: Vaswani et al. 2017, equation 1."""
    if layer.upcast:
        q, k = q.float(), k.float()
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return scores.float().softmax(-1)


def map_size(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Height and width of a network's map that has so many places, where x has ``height`` and ``width``.

    Networks halve both, rounding up, on the way down. None: no such map.
    """
    while height * width > tokens:
        height, width = -(-height // 2), -(-width // 2)
    return (height, width) if height * width == tokens else None
