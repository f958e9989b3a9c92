"""The stages of UNets and autoencoders: residual blocks and attention at one resolution, then a resampling.

One class for the way down, one for the middle, one for the way up. What sets the published kinds apart is in the
tables :data:`DOWN`, :data:`MID` and :data:`UP`, under the names that configs use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from langevin.models.layers import sampling
from langevin.models.layers.attention import Attend, Attention
from langevin.models.layers.resnet import ResnetBlock
from langevin.models.layers.sampling import Downsample, Resample, Upsample
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
    ``grounding`` (batch, objects, width) is GLIGEN's; ``mix`` says how a dual transformer reads the context.
    """

    emb: Tensor | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    context_mask: Tensor | None = None
    attention: Attend | None = None
    grounding: Tensor | None = None
    mix: Mix = DEFAULT_MIX


@dataclass(frozen=True)
class Options:
    """What a config says about one stage; the names are those of the layers that it is handed to."""

    embedding_dim: int | None = None
    embedding_use: str = "default"
    activate_embedding: bool = True
    output_scale: float = 1.0
    eps: float = 1e-5
    act: str = "silu"
    groups: int | None = 32
    dropout: float = 0.0
    head_dim: int | None = None
    heads: int | None = None
    depth: int | tuple[int, ...] = 1
    context_dim: int | None = None
    context_norm: str | None = None
    only_context: bool = False
    linear: bool = False
    upcast: bool = False
    gated: bool = False
    dual: bool = False
    resample: str | None = None
    padding: int = 1
    attention_groups: int | None = None  # None: as `groups`; 0: no norm


@dataclass(frozen=True)
class Kind:
    """What sets one published kind of stage apart.

    Args:
        attention: a key of :data:`ATTENTION`, or None.
        resample: ``conv`` or ``resnet`` (a residual block that resamples); ``config``: as the config says.
        embedding: whether the residual blocks are told the time.
        skips: going up, whether each layer is handed a map from the way down.
        family: ``ncsn`` has a pyramid of pictures beside it (Song et al., 2021); ``k`` is k-diffusion's.
        rescales: takes resnet_skip_time_act and resnet_out_scale_factor from the config.
        freeu: FreeU acts on it.
    """

    attention: str | None = None
    resample: str = "conv"
    embedding: bool = True
    skips: bool = True
    family: str = "plain"
    rescales: bool = False
    freeu: bool = False


DOWN = {
    "DownBlock2D": Kind(),
    "ResnetDownsampleBlock2D": Kind(resample="resnet", rescales=True),
    "AttnDownBlock2D": Kind("self", resample="config"),
    "CrossAttnDownBlock2D": Kind("cross"),
    "SimpleCrossAttnDownBlock2D": Kind("added", resample="resnet", rescales=True),
    "SkipDownBlock2D": Kind(family="ncsn"),
    "AttnSkipDownBlock2D": Kind("self", family="ncsn"),
    "KDownBlock2D": Kind(family="k"),
    "KCrossAttnDownBlock2D": Kind("k", family="k"),
    "DownEncoderBlock2D": Kind(embedding=False),
    "AttnDownEncoderBlock2D": Kind("self", embedding=False),
}
MID = {
    "UNetMidBlock2D": Kind("self"),
    "UNetMidBlock2DCrossAttn": Kind("cross"),
    "UNetMidBlock2DSimpleCrossAttn": Kind("added", rescales=True),
}
UP = {
    "UpBlock2D": Kind(freeu=True),
    "ResnetUpsampleBlock2D": Kind(resample="resnet", rescales=True),
    "AttnUpBlock2D": Kind("self", resample="config"),
    "CrossAttnUpBlock2D": Kind("cross", freeu=True),
    "SimpleCrossAttnUpBlock2D": Kind("added", resample="resnet", rescales=True),
    "SkipUpBlock2D": Kind(family="ncsn"),
    "AttnSkipUpBlock2D": Kind("self", family="ncsn"),
    "KUpBlock2D": Kind(family="k"),
    "KCrossAttnUpBlock2D": Kind("k", family="k"),
    "UpDecoderBlock2D": Kind(embedding=False, skips=False),
    "AttnUpDecoderBlock2D": Kind("self", embedding=False, skips=False),
}


def kind_of(table: dict[str, Kind], name: str, setting: str) -> Kind:
    """``table[name]``, also under its old name with "UNetRes" before it."""
    try:
        return table[name.removeprefix("UNetRes")]
    except KeyError:
        raise ValueError(f"{setting}: no block is called {name!r}; use one of: {', '.join(table)}") from None


# How attention over a map is built, and how it is called, for each kind.


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


def _build_cross(channels: int, o: Options, depth: int = 1) -> nn.Module:
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


_RUN: dict[str | None, Callable[[nn.Module, Tensor, Call], Tensor] | None] = {
    None: None,
    "self": _run_self,
    "cross": _run_cross,
    "added": _run_added,
    "k": _run_k,
}


class _Stage(nn.Module):
    """What the three directions share: a list of residual blocks with attention behind each."""

    attentions: nn.ModuleList | None

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.has_cross_attention = kind.attention in ("cross", "added", "k")
        self.gradient_checkpointing = False
        self._run_attention = _RUN[kind.attention]

    def _add_attention(self, channels: list[int], o: Options, self_attention: bool = True) -> None:
        """Attention of the stage's kind for maps of these channels."""
        kind = self.kind.attention
        if kind is None:
            return
        if kind == "self":
            layers = [_build_self(c, o) for c in channels]
        elif kind == "added":
            layers = [_build_added(c, o) for c in channels]
        elif kind == "cross":
            if o.dual:
                self._run_attention = _run_dual
            depths = (o.depth,) * len(channels) if isinstance(o.depth, int) else tuple(o.depth)
            layers = [_build_cross(c, o, depth) for c, depth in zip(channels, depths, strict=True)]
        else:
            layers = [
                AdaptiveAttentionBlock(
                    c,
                    head_dim=o.head_dim,
                    embedding_dim=o.embedding_dim,
                    context_dim=o.context_dim,
                    self_attention=self_attention,
                    upcast=o.upcast,
                )
                for c in channels
            ]
        self.attentions = nn.ModuleList(layers)

    def _pairs(self):
        """Each residual block with the attention behind it, or None."""
        attentions = self._modules.get("attentions")
        if attentions is None:
            return ((resnet, None) for resnet in self.resnets)
        return zip(self.resnets, attentions, strict=True)

    def _layer(
        self, resnet: nn.Module, attention: nn.Module | None, x: Tensor, skip: Tensor | None, call: Call
    ) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        x = resnet(x, call.emb)
        return x if attention is None else self._run_attention(attention, x, call)

    def _runner(self) -> Callable[..., Tensor]:
        """:meth:`_layer`, or the same without keeping its inner maps for the backward pass."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return partial(checkpoint, self._layer, use_reentrant=False)
        return self._layer


def _resnet(kind: Kind, o: Options, in_channels: int, out_channels: int, **more: Any) -> ResnetBlock:
    options: dict[str, Any] = {
        "embedding_dim": o.embedding_dim if kind.embedding or o.embedding_use == "spatial" else None,
        "embedding_use": o.embedding_use,
        "groups": o.groups,
        "eps": o.eps,
        "act": o.act,
        "dropout_p": o.dropout,
        "activate_embedding": o.activate_embedding,
        "output_scale": o.output_scale,
    }
    if kind.family == "k":
        options |= {"embedding_use": "ada_group", "groups": in_channels // 32, "groups_out": out_channels // 32}
        options |= {"shortcut_bias": False}
    elif kind.family == "ncsn":
        options |= {"groups": min(in_channels // 4, 32), "groups_out": min(out_channels // 4, 32)}
    return ResnetBlock(in_channels, out_channels, **(options | more))


def _settle(kind: Kind, o: Options) -> Options:
    """The options that a stage of this kind really follows."""
    if kind.family == "ncsn":
        return replace(o, output_scale=math.sqrt(2.0), attention_groups=32, activate_embedding=True)
    if not kind.rescales:
        return replace(o, output_scale=1.0, activate_embedding=True)
    return o


class DownStage(_Stage):
    """A stage on the way down.

    ``forward(x, call)`` returns the map, the maps for the way up, and the picture pyramid (a stage that has none hands
    it on). ``x`` is (batch, in_channels, h, w); with ``downsample`` the result is (batch, out_channels, h/2, w/2).
    """

    def __init__(
        self, kind: Kind, in_channels: int, out_channels: int, *, layers: int, downsample: bool, options: Options
    ) -> None:
        super().__init__(kind)
        o = _settle(kind, options)
        self.resnets = nn.ModuleList(
            _resnet(kind, o, in_channels if i == 0 else out_channels, out_channels) for i in range(layers)
        )
        self._add_attention([out_channels] * layers, o, self_attention=not downsample)
        self.downsamplers: nn.ModuleList | None = None
        if not downsample:
            return
        if kind.family == "k":
            sampler: nn.Module = Resample(sampling.mirrored_fir_down)
        elif kind.family == "ncsn":
            self.resnet_down = _resnet(kind, o, out_channels, out_channels, resample=sampling.fir_down, shortcut=True)
            self.skip_conv = nn.Conv2d(3, out_channels, 1)
            sampler = Resample(sampling.fir_down)
        elif kind.resample == "resnet" or (kind.resample == "config" and o.resample == "resnet"):
            sampler = _resnet(kind, o, out_channels, out_channels, resample=sampling.average)
        else:
            sampler = Downsample(out_channels, o.padding)
        self.downsamplers = nn.ModuleList([sampler])

    def forward(
        self, x: Tensor, call: Call, pyramid: Tensor | None = None, residual: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
        """``residual`` is added to the last layer's map (T2I-Adapter: Mou et al., 2023)."""
        run, outs = self._runner(), []
        for resnet, attention in self._pairs():
            x = run(resnet, attention, x, None, call)
            outs.append(x)
        if residual is not None:
            x = outs[-1] = x + residual
        if self.downsamplers is None:
            return x, [None] * len(outs) if self.kind.attention == "k" else outs, pyramid
        sampler = self.downsamplers[0]
        if self.kind.family == "k":
            return sampler(x), outs, pyramid
        if self.kind.family == "ncsn":
            pyramid = sampler(pyramid)
            x = self.skip_conv(pyramid) + self.resnet_down(x, call.emb)
        elif isinstance(sampler, ResnetBlock):
            x = sampler(x, call.emb)
        else:
            x = sampler(x)
        outs.append(x)
        return x, outs, pyramid


class MidStage(_Stage):
    """The stage in the middle: a residual block, then ``layers`` times attention and a residual block."""

    def __init__(self, kind: Kind, channels: int, *, options: Options, layers: int = 1, attention: bool = True) -> None:
        super().__init__(kind)
        o = options if kind.rescales else replace(options, activate_embedding=True)
        if o.groups is None:
            o = replace(o, groups=min(channels // 4, 32))
        self.resnets = nn.ModuleList(_resnet(kind, o, channels, channels) for _ in range(layers + 1))
        if attention and layers:
            self._add_attention([channels] * layers, o)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        run = self._runner()
        first, *rest = self.resnets
        x = run(first, None, x, None, call)
        attentions = self._modules.get("attentions") or [None] * len(rest)
        for attention, resnet in zip(attentions, rest, strict=True):
            x = run(resnet, attention, x, None, call)
        return x

    def _layer(
        self, resnet: nn.Module, attention: nn.Module | None, x: Tensor, skip: Tensor | None, call: Call
    ) -> Tensor:
        if attention is not None:
            x = self._run_attention(attention, x, call)
        return resnet(x, call.emb)


class UpStage(_Stage):
    """A stage on the way up.

    Args:
        in_channels: of the map from below.
        skip_channels: of the last map that is handed over from the way down; the others have ``out_channels``.

    ``forward(x, skips, call)`` takes one map per layer off the end of ``skips`` and returns the map and the picture
    pyramid; with ``upsample`` the map is (batch, out_channels, 2h, 2w), or of ``size``.
    """

    def __init__(
        self,
        kind: Kind,
        in_channels: int,
        out_channels: int,
        skip_channels: int,
        *,
        layers: int,
        upsample: bool,
        options: Options,
    ) -> None:
        super().__init__(kind)
        o = _settle(kind, options)
        if kind.family == "k":
            # One layer less, one map from below, and the last layer already narrows to what the next stage wants.
            layers -= 1
            lowest = kind.attention is not None and skip_channels == out_channels == o.embedding_dim
            ins = [out_channels if lowest else 2 * out_channels] + [out_channels] * (layers - 1)
            outs = [out_channels] * (layers - 1) + [skip_channels]
            inner = None if kind.attention is None else out_channels
            more: list[dict[str, Any]] = [{"groups_out": out_channels // 32, "inner_channels": inner}] * layers
        else:
            lowest = False
            below = [in_channels] + [out_channels] * (layers - 1)
            handed = [out_channels] * (layers - 1) + [skip_channels] if kind.skips else [0] * layers
            ins = [b + h for b, h in zip(below, handed, strict=True)]
            outs, more = [out_channels] * layers, [{}] * layers
            if kind.family == "ncsn" and kind.attention is not None:
                # Published networks of this kind have the groups that this sum gives, not a quarter of the channels.
                more = [{"groups": min(b + h // 4, 32)} for b, h in zip(below, handed, strict=True)]
        self.resnets = nn.ModuleList(_resnet(kind, o, a, b, **m) for a, b, m in zip(ins, outs, more, strict=True))
        once = kind.family == "ncsn"
        self._add_attention(outs[-1:] if once else outs, o, self_attention=lowest)

        self.upsamplers: nn.ModuleList | None = None
        if kind.family == "ncsn":
            self.upsampler = Resample(sampling.fir_up)
            self.resnet_up = self.skip_conv = self.skip_norm = None
            if upsample:
                self.resnet_up = _resnet(kind, o, out_channels, out_channels, resample=sampling.fir_up, shortcut=True)
                self.skip_conv = nn.Conv2d(out_channels, 3, 3, padding=1)
                self.skip_norm = nn.GroupNorm(min(out_channels // 4, 32), out_channels, eps=o.eps)
        elif upsample:
            if kind.family == "k":
                sampler: nn.Module = Resample(sampling.mirrored_fir_up)
            elif kind.resample == "resnet" or (kind.resample == "config" and o.resample == "resnet"):
                sampler = _resnet(kind, o, out_channels, out_channels, resample=sampling.repeat)
            else:
                sampler = Upsample(out_channels)
            self.upsamplers = nn.ModuleList([sampler])

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor | None],
        call: Call,
        size: tuple[int, int] | None = None,
        pyramid: Tensor | None = None,
        freeu: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """``freeu`` changes the map and the handed-over map before each layer."""
        if self.kind.family == "ncsn":
            return self._forward_ncsn(x, skips, call, pyramid)
        run = self._runner()
        if self.kind.family == "k":
            mine = [skips.pop() for _ in self.resnets]
            mine[1:] = [None] * (len(mine) - 1)
        elif self.kind.skips:
            mine = [skips.pop() for _ in self.resnets]
        else:
            mine = [None] * len(self.resnets)
        for (resnet, attention), skip in zip(self._pairs(), mine, strict=True):
            if freeu is not None and self.kind.freeu:
                x, skip = freeu(x, skip)
            x = run(resnet, attention, x, skip, call)
        if self.upsamplers is not None:
            sampler = self.upsamplers[0]
            x = sampler(x, call.emb, size) if isinstance(sampler, ResnetBlock) else sampler(x, size)
        return x, pyramid

    def _forward_ncsn(
        self, x: Tensor, skips: list[Tensor | None], call: Call, pyramid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        run = self._runner()
        for resnet in self.resnets:
            x = run(resnet, None, x, skips.pop(), call)
        if self.kind.attention is not None:
            x = self._run_attention(self.attentions[0], x, call)
        if pyramid is not None:
            pyramid = self.upsampler(pyramid)
        if self.resnet_up is not None:
            detail = self.skip_conv(nn.functional.silu(self.skip_norm(x)))
            pyramid = detail if pyramid is None else pyramid + detail
            x = self.resnet_up(x, call.emb)
        return x, pyramid
