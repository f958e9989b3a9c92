"""How the kinds of attention over a feature map are built from a config's options, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from langevin.models.layers.attention import Attend, Attention
from langevin.models.layers.kinds import Options
from langevin.models.layers.transformer import (
    DEFAULT_MIX,
    AdaptiveAttentionBlock,
    DualTransformer2D,
    Mix,
    Transformer2D,
)


class Call(NamedTuple):
    """What one forward pass tells all its layers beside the feature map.

    ``emb`` (batch, width) is the time embedding; ``context`` (batch, keys, width) the text; ``mask`` and
    ``context_mask`` are added to attention scores, (batch, 1, 1, keys); ``attention`` replaces the fused attention;
    ``grounding`` (batch, objects, width) is GLIGEN's; ``mix`` says how a dual transformer reads the context. Of videos
    the batch is made of frames, ``frames`` of each video one after the other.
    """

    emb: Tensor | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    context_mask: Tensor | None = None
    attention: Attend | None = None
    grounding: Tensor | None = None
    mix: Mix = DEFAULT_MIX
    frames: int = 1


def _build_self(channels: int, o: Options) -> nn.Module:
    head_dim = o.head_dim or channels
    groups = o.groups if o.attention_groups is None else o.attention_groups
    return Attention(
        channels,
        heads=channels // head_dim,
        head_dim=head_dim,
        bias=True,
        norm_groups=None if o.embedding_use == "spatial" else groups,
        norm_eps=o.eps,
        spatial_norm_dim=o.embedding_dim if o.embedding_use == "spatial" else None,
        residual=True,
        output_scale=o.output_scale,
    )


def _build_added(channels: int, o: Options) -> nn.Module:
    head_dim = o.head_dim or channels
    return Attention(
        channels,
        heads=channels // head_dim,
        head_dim=head_dim,
        added_dim=o.context_dim,
        only_added=o.only_context,
        context_norm=o.context_norm,
        bias=True,
        norm_groups=o.groups,
        residual=True,
    )


def _build_k(channels: int, o: Options, self_attention: bool) -> nn.Module:
    if o.head_dim is None or o.embedding_dim is None or o.context_dim is None:
        raise ValueError("KCrossAttn stages need attention_head_dim and cross_attention_dim, and a time to be told")
    return AdaptiveAttentionBlock(
        channels,
        head_dim=o.head_dim,
        embedding_dim=o.embedding_dim,
        context_dim=o.context_dim,
        self_attention=self_attention,
        upcast=o.upcast,
    )


def _build_cross(channels: int, o: Options, depth: int = 1) -> nn.Module:
    if o.heads is None:
        raise ValueError("CrossAttn stages need attention_head_dim, which is their number of heads")
    common: dict[str, Any] = {
        "heads": o.heads,
        "head_dim": channels // o.heads,
        "context_dim": o.context_dim,
        "groups": o.groups,
    }
    if o.dual:
        return DualTransformer2D(channels, **common)
    return Transformer2D(
        channels,
        depth=depth,
        linear=o.linear,
        only_context=o.only_context,
        upcast=o.upcast,
        gated=o.gated,
        **common,
    )


def _run_self(layer: nn.Module, x: Tensor, call: Call) -> Tensor:
    return layer(x, None, None, call.attention, call.emb)


def _run_added(layer: nn.Module, x: Tensor, call: Call) -> Tensor:
    mask = call.context_mask if call.mask is None and call.context is not None else call.mask
    return layer(x, call.context, mask, call.attention)


def _run_cross(layer: nn.Module, x: Tensor, call: Call) -> Tensor:
    return layer(x, call.context, call.mask, call.context_mask, call.attention, call.grounding)


def _run_dual(layer: nn.Module, x: Tensor, call: Call) -> Tensor:
    return layer(x, call.context, call.mask, call.context_mask, call.attention, call.mix)


def _run_k(layer: nn.Module, x: Tensor, call: Call) -> Tensor:
    return layer(x, call.emb, call.context, call.mask, call.context_mask, call.attention)


Run = Callable[[nn.Module, Tensor, Call], Tensor]


def map_attention(kind: str, channels: list[int], o: Options, self_attention: bool = True) -> tuple[nn.ModuleList, Run]:
    """One attention for each map of these channels, and how they are called.

    Kinds: ``self``; ``cross``: a transformer, or two with ``o.dual``; ``added``: pixels and text in one attention;
    ``k``: k-diffusion's, with ``self_attention`` or without.
    """
    if kind == "self":
        return nn.ModuleList(_build_self(c, o) for c in channels), _run_self
    if kind == "added":
        return nn.ModuleList(_build_added(c, o) for c in channels), _run_added
    if kind == "k":
        return nn.ModuleList(_build_k(c, o, self_attention) for c in channels), _run_k
    depths = (o.depth,) * len(channels) if isinstance(o.depth, int) else tuple(o.depth)
    if len(depths) < len(channels):
        raise ValueError(f"a stage of {len(channels)} layers has transformer depths {depths}; give one, or one each")
    layers = nn.ModuleList(_build_cross(c, o, depth) for c, depth in zip(channels, depths, strict=False))
    return layers, run_of(layers[0])


def run_of(transformer: nn.Module) -> Run:
    """How a transformer over a map is called, or two in one."""
    return _run_dual if isinstance(transformer, DualTransformer2D) else _run_cross
