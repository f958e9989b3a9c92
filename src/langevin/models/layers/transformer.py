"""Transformer blocks, and the transformers that UNets put over a feature map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.models.layers.activation import dropout
from langevin.models.layers.attention import Attend, Attention
from langevin.models.layers.normalization import AdaGroupNorm, AdaLayerNorm


class GEGLU(nn.Module):
    """a · gelu(b), where [a, b] is one linear layer of the input (Shazeer, 2020)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(b)


class GELU(nn.Module):
    """gelu of one linear layer of the input, or what comes near it (Hendrycks & Gimpel, 2016, section 2)."""

    def __init__(self, dim: int, inner: int, gelu: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        return self.gelu(self.proj(x))


_GELUS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-approximate": partial(F.gelu, approximate="tanh"),
    "geglu-approximate": lambda x: x * torch.sigmoid(1.702 * x),  # no gate in it, whatever the name says
}


class FeedForward(nn.Module):
    """The token-wise network of a transformer block, four times as wide inside.

    ``act``: the layer in front: ``geglu``, ``gelu``, or ``gelu-approximate`` and ``geglu-approximate``, which come near
    gelu.

    Attributes:
        chunk: ``(size, dim)`` works through x in parts of ``size`` along ``dim``: less memory, the same numbers.
    """

    def __init__(self, dim: int, dropout_p: float = 0.0, act: str = "geglu") -> None:
        super().__init__()
        if act != "geglu" and act not in _GELUS:
            raise ValueError(f"activation_fn={act!r} is unknown; use one of: geglu, {', '.join(_GELUS)}")
        first = GEGLU(dim, 4 * dim) if act == "geglu" else GELU(dim, 4 * dim, _GELUS[act])
        self.net = nn.ModuleList([first, dropout(dropout_p), nn.Linear(4 * dim, dim)])
        self.chunk: tuple[int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.chunk is None:
            return self._run(x)
        return torch.cat([self._run(part) for part in x.split(*self.chunk)], dim=self.chunk[1])

    def _run(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class GatedAttention(nn.Module):
    """Attention over the tokens and grounding tokens, let in by gates that start shut (GLIGEN: Li et al., 2023)."""

    def __init__(self, dim: int, grounding_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(grounding_dim, dim)
        self.attn = Attention(dim, heads=heads, head_dim=head_dim)
        self.ff = FeedForward(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.alpha_attn = nn.Parameter(torch.zeros(()))
        self.alpha_dense = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, grounding: Tensor, attention: Attend | None = None) -> Tensor:
        """``x`` (batch, tokens, dim), ``grounding`` (batch, objects, grounding_dim); returns the shape of ``x``."""
        tokens = torch.cat([x, self.linear(grounding)], dim=1)
        x = x + self.alpha_attn.tanh() * self.attn(self.norm1(tokens), attention=attention)[:, : x.shape[1]]
        return x + self.alpha_dense.tanh() * self.ff(self.norm2(x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each added to what it reads (Rombach et al., 2022, E.2.1).

    Args:
        context_dim: width of the text; None: the second attention looks at the tokens themselves too.
        second: whether there is a second attention.
        only_context: the first attention looks at the text too, not at the tokens themselves.
        timesteps: the attentions' norms are told the time, of so many (VQ-Diffusion: Gu et al., 2022).
        bias: queries, keys and values have one.
        act: of :class:`FeedForward`.
        eps, affine: of the layer norms.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        head_dim: int,
        context_dim: int | None,
        second: bool = True,
        only_context: bool = False,
        upcast: bool = False,
        gated: bool = False,
        dropout_p: float = 0.0,
        timesteps: int | None = None,
        bias: bool = False,
        act: str = "geglu",
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"heads": heads, "head_dim": head_dim, "upcast": upcast, "dropout_p": dropout_p}
        shared |= {"bias": bias}
        self.only_context = only_context

        def norm() -> nn.Module:
            return nn.LayerNorm(dim, eps, affine) if timesteps is None else AdaLayerNorm(dim, timesteps)

        self.norm1 = norm()
        self.attn1 = Attention(dim, context_dim=context_dim if only_context else None, **shared)
        self.norm2 = norm() if second else None
        self.attn2 = Attention(dim, context_dim=context_dim, **shared) if second else None
        self.norm3 = nn.LayerNorm(dim, eps, affine)
        self.ff = FeedForward(dim, dropout_p, act)
        self.fuser = GatedAttention(dim, context_dim or dim, heads, head_dim) if gated else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        attention: Attend | None = None,
        grounding: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """``x`` (batch, tokens, dim), ``context`` (batch, keys, context_dim); masks as in :class:`Attention`; ``time``
        (batch,), where the norms are told it.
        """
        told = () if time is None else (time,)
        x = x + self.attn1(self.norm1(x, *told), context if self.only_context else None, mask, attention)
        if grounding is not None and self.fuser is not None:
            x = self.fuser(x, grounding, attention)
        if self.attn2 is not None and self.norm2 is not None:
            x = x + self.attn2(self.norm2(x, *told), context, context_mask, attention)
        return x + self.ff(self.norm3(x))


class PlainBlock(TransformerBlock):
    """Self-attention and a feed-forward with gelu; all layers have biases. ``norm3`` is
    what checkpoints call the second norm.
    """

    def __init__(self, dim: int, *, heads: int, head_dim: int, dropout_p: float = 0.0) -> None:
        plain: dict[str, Any] = {"context_dim": None, "second": False, "bias": True, "act": "gelu"}
        super().__init__(dim, heads=heads, head_dim=head_dim, dropout_p=dropout_p, **plain)


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of a map, added to the map (Rombach et al., 2022).

    ``linear``: the layers in and out are linear ones and not 1x1 convolutions (Stable Diffusion 2 and XL).
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        head_dim: int,
        context_dim: int | None,
        depth: int = 1,
        groups: int = 32,
        linear: bool = False,
        **block_options: Any,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if linear else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(inner, heads=heads, head_dim=head_dim, context_dim=context_dim, **block_options)
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(inner, channels) if linear else nn.Conv2d(inner, channels, 1)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        attention: Attend | None = None,
        grounding: Tensor | None = None,
    ) -> Tensor:
        """``x`` (batch, channels, height, width), ``context`` (batch, keys, context_dim); ``x``'s shape is kept."""
        h = to_tokens(self, x)
        for block in self.transformer_blocks:
            h = block(h, context, mask, context_mask, attention, grounding)
        return added_to_map(self, h, x)


def to_tokens(layer: Any, x: Tensor) -> Tensor:
    """A map's places as tokens, through the ``norm`` and ``proj_in`` of a :class:`Transformer2D` or its like."""
    h = layer.norm(x)
    if layer.linear:
        return layer.proj_in(h.flatten(2).transpose(1, 2))
    return layer.proj_in(h).flatten(2).transpose(1, 2).contiguous()


def added_to_map(layer: Any, h: Tensor, x: Tensor) -> Tensor:
    """Tokens added to the map that they come from, through ``proj_out``."""
    if layer.linear:
        return x + layer.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])
    return x + layer.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]).contiguous())


class AdaptiveAttentionBlock(nn.Module):
    """Self- (optional) and cross-attention over a map, each behind an adaptive group norm (the k-diffusion UNet).

    Args:
        embedding_dim: width of ``emb``, which scales and shifts the norms.
        group_size: channels per group of the norms.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int,
        embedding_dim: int,
        context_dim: int,
        self_attention: bool,
        group_size: int = 32,
        upcast: bool = False,
        dropout_p: float = 0.0,
    ) -> None:
        super().__init__()
        groups = max(1, channels // group_size)
        shared: dict[str, Any] = {"heads": channels // head_dim, "head_dim": head_dim, "bias": True}
        shared |= {"upcast": upcast, "dropout_p": dropout_p}
        self.norm1: Any = None
        self.attn1: Any = None
        if self_attention:
            self.norm1 = AdaGroupNorm(embedding_dim, channels, groups)
            self.attn1 = Attention(channels, **shared)
        self.norm2 = AdaGroupNorm(embedding_dim, channels, groups)
        self.attn2 = Attention(channels, context_dim=context_dim, context_norm="layer_norm", **shared)

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        attention: Attend | None = None,
    ) -> Tensor:
        """``x`` (batch, channels, height, width), ``context`` (batch, keys, context_dim); ``x``'s shape is kept."""
        if self.attn1 is not None:
            x = x + self.attn1(self.norm1(x, emb), None, mask, attention)
        return x + self.attn2(self.norm2(x, emb), context, mask if context is None else context_mask, attention)


class Mix(NamedTuple):
    """How a :class:`DualTransformer2D` reads its context.

    The context is two parts one after the other, of ``lengths`` tokens (None: half each); part i goes to transformer
    ``order[i]``; what the two add is weighed ``ratio`` to ``1 - ratio``.
    """

    ratio: float = 0.5
    lengths: tuple[int, int] | None = (77, 257)
    order: tuple[int, int] = (1, 0)


DEFAULT_MIX = Mix()


class DualTransformer2D(nn.Module):
    """Two transformers, each told by its own part of the context, mixed (Versatile Diffusion: Xu et al., 2022)."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        self.transformers = nn.ModuleList([Transformer2D(channels, **options), Transformer2D(channels, **options)])

    @classmethod
    def of(cls, first: nn.Module, second: nn.Module) -> DualTransformer2D:
        """Of two transformers that are there already."""
        dual = cls.__new__(cls)
        nn.Module.__init__(dual)
        dual.transformers = nn.ModuleList([first, second])
        return dual

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        attention: Attend | None = None,
        mix: Mix = DEFAULT_MIX,
    ) -> Tensor:
        """``x`` (batch, channels, height, width), ``context`` (batch, sum of mix.lengths, context_dim)."""
        first, second = mix.lengths or (context.shape[1] // 2,) * 2
        if context.shape[1] < first + second:
            raise ValueError(
                f"encoder_hidden_states has {context.shape[1]} tokens; a network with dual_cross_attention splits them "
                f"into {first} and {second}: give {first + second}, or say how with cross_attention_kwargs['dual']"
            )
        out = x
        parts = ((slice(0, first), mix.ratio), (slice(first, first + second), 1 - mix.ratio))
        for (part, weight), index in zip(parts, mix.order, strict=True):
            part_mask = None if context_mask is None else context_mask[..., part]
            told = self.transformers[index](x, context[:, part], mask, part_mask, attention)
            out = out + weight * (told - x)
        return out
