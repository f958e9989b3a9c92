"""The attention layer of every network here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.models.layers.activation import dropout
from langevin.models.layers.normalization import SpatialNorm

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None", "Attention"], Tensor]


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017, section 3.2) over tokens or over the pixels of a map.

    Args:
        dim: width of the queries and of the output.
        heads, head_dim: q, k and v are ``heads * head_dim`` wide.
        context_dim: width of what is looked at; None for self-attention.
        added_dim: keys and values are a text of this width, put before the pixels' own (Imagen: Saharia et al., 2022).
        only_added: with ``added_dim``, look at the text alone.
        context_norm: ``layer_norm`` or ``group_norm`` on the context.
        norm_groups: group norm on the input.
        spatial_norm_dim: :class:`SpatialNorm` on the input instead, told by a map of this many channels.
        residual: add the input to the output; the sum is divided by ``output_scale``.
        upcast: a wish of the checkpoint that scores be computed in float32. The fused attention does so anyway; a
            custom ``attention`` function can read it from ``layer.upcast``.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        head_dim: int,
        context_dim: int | None = None,
        added_dim: int | None = None,
        only_added: bool = False,
        context_norm: str | None = None,
        bias: bool = False,
        norm_groups: int | None = None,
        norm_eps: float = 1e-5,
        spatial_norm_dim: int | None = None,
        residual: bool = False,
        output_scale: float = 1.0,
        upcast: bool = False,
        dropout_p: float = 0.0,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads, self.head_dim = heads, head_dim
        self.residual, self.output_scale, self.upcast = residual, float(output_scale), upcast
        self.is_cross_attention = context_dim is not None or added_dim is not None

        self.group_norm = nn.GroupNorm(norm_groups, dim, norm_eps) if norm_groups else None
        self.spatial_norm = SpatialNorm(dim, spatial_norm_dim) if spatial_norm_dim else None
        self.norm_cross: nn.LayerNorm | nn.GroupNorm | None = None
        if context_norm == "layer_norm":
            self.norm_cross = nn.LayerNorm(context_dim or dim)  # with `added_dim` it fits texts as wide as the map
        elif context_norm == "group_norm":
            self.norm_cross = nn.GroupNorm(32, added_dim or context_dim or dim, eps=1e-5)
        elif context_norm is not None:
            raise ValueError(
                f"cross_attention_norm={context_norm!r} is unknown; use None, 'layer_norm' or 'group_norm'"
            )

        self.to_q = nn.Linear(dim, inner, bias=bias)
        # which of these a layer has is fixed by its kind: (to_k, to_v), (add_k_proj, add_v_proj) or all four
        self.to_k: Any = None
        self.to_v: Any = None
        self.add_k_proj: Any = None
        self.add_v_proj: Any = None
        if not only_added:
            self.to_k = nn.Linear(context_dim or dim, inner, bias=bias)
            self.to_v = nn.Linear(context_dim or dim, inner, bias=bias)
        if added_dim is not None:
            self.add_k_proj = nn.Linear(added_dim, inner)
            self.add_v_proj = nn.Linear(added_dim, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim), dropout(dropout_p)])

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        attention: Attend | None = None,
        z: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            x: (batch, tokens, dim) or (batch, dim, height, width).
            context: (batch, keys, width); None: ``x`` itself.
            mask: added to the scores, (batch, 1, 1 or tokens, keys). With ``added_dim`` it may cover the text alone.
            attention: called instead of scaled_dot_product_attention, see :data:`Attend`.
            z: the map for ``spatial_norm``.
        """
        shape, h = x.shape, x
        if self.spatial_norm is not None:
            h = self.spatial_norm(h, z)
        if x.ndim == 4:
            if self.group_norm is not None:
                h = self.group_norm(h)
            h = h.flatten(2).transpose(1, 2).contiguous()  # once, and not for each of q, k and v
        elif self.group_norm is not None:
            h = self.group_norm(h.transpose(1, 2)).transpose(1, 2)

        if context is not None and self.norm_cross is not None:
            if isinstance(self.norm_cross, nn.GroupNorm):
                context = self.norm_cross(context.transpose(1, 2)).transpose(1, 2)
            else:
                context = self.norm_cross(context)

        q = self._split(self.to_q(h))
        if self.add_k_proj is None:
            source = h if context is None else context
            k, v = self._split(self.to_k(source)), self._split(self.to_v(source))
        else:
            k, v, mask = self._added(h, h if context is None else context, mask)

        if attention is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            out = attention(q, k, v, mask, self)
        project, drop = self.to_out
        out = drop(project(out.transpose(1, 2).flatten(2)))

        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if self.residual:
            out = out + x
        return out if self.output_scale == 1.0 else out / self.output_scale

    def _split(self, x: Tensor) -> Tensor:
        """(batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim)."""
        return x.unflatten(2, (self.heads, self.head_dim)).transpose(1, 2)

    def _added(self, h: Tensor, text: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of the text, then, unless ``only_added``, of the pixels."""
        k, v = self.add_k_proj(text), self.add_v_proj(text)
        if self.to_k is not None:
            k, v = torch.cat([k, self.to_k(h)], dim=1), torch.cat([v, self.to_v(h)], dim=1)
        if mask is not None and mask.shape[-1] < k.shape[1]:
            mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]))
        return self._split(k), self._split(v), mask
