"""The stages of UNets and autoencoders: residual blocks and attention at one resolution, then a resampling.

One class for the way down, one for the middle, one for the way up. What sets the published kinds apart is in the
tables of :mod:`langevin.models.layers.kinds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from langevin.models.layers import flat, sampling
from langevin.models.layers.kinds import Kind, Options
from langevin.models.layers.map_attention import Call, map_attention
from langevin.models.layers.resnet import ResnetBlock
from langevin.models.layers.sampling import Downsample, Resample, Upsample


class _Stage(nn.Module):
    """What the three directions share: a list of residual blocks with attention behind each."""

    resnets: nn.ModuleList

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.attentions: Any = None
        self.kind = kind
        self.has_cross_attention = kind.attention in ("cross", "added", "k")
        self.gradient_checkpointing = False
        self._run_attention: Any = None

    def _add_attention(self, channels: list[int], o: Options, self_attention: bool = True) -> None:
        """Attention of the stage's kind for maps of these channels."""
        if self.kind.attention is not None:
            self.attentions, run = map_attention(self.kind.attention, channels, o, self_attention)
            self._run_attention = flat.over_places(run) if self.kind.family == "flat" else run

    def _residuals(self) -> Iterable[Any]:
        """Each residual block, as :meth:`_run_residual` takes it."""
        return self.resnets

    def _attentions(self) -> Iterable[Any]:
        """The attention behind each residual block, as ``_run_attention`` takes it, or None."""
        return self.attentions or repeat(None)

    def _pairs(self) -> Iterable[tuple[Any, Any]]:
        """Each residual block with the attention behind it, or None."""
        return zip(self._residuals(), self._attentions(), strict=False)

    def _run_residual(self, residual: Any, x: Tensor, call: Call) -> Tensor:
        return residual(x, call.emb)

    def _layer(self, residual: Any, attention: Any, x: Tensor, skip: Tensor | None, call: Call) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        x = self._run_residual(residual, x, call)
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
    elif kind.family == "flat":
        in_channels, out_channels = in_channels * flat.PLACES, out_channels * flat.PLACES
        options |= {"kernel": 1, "act": "silu"}
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
        elif kind.family == "flat":
            sampler = flat.FlatLinear(out_channels * flat.PLACES, out_channels * flat.PLACES)
        elif kind.resample == "resnet" or (kind.resample == "config" and o.resample == "resnet"):
            sampler = _resnet(kind, o, out_channels, out_channels, resample=sampling.average)
        else:
            sampler = Downsample(out_channels, o.padding)
        self.downsamplers = nn.ModuleList([sampler])

    def forward(
        self, x: Tensor, call: Call, pyramid: Tensor | None = None, residual: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
        """``residual`` is added to the last layer's map (T2I-Adapter: Mou et al., 2023)."""
        run = self._runner()
        outs: list[Tensor | None] = []
        for resnet, attention in self._pairs():
            x = run(resnet, attention, x, None, call)
            outs.append(x)
        if residual is not None:
            x = x + residual
            outs[-1] = x
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
        first, *rest = self._residuals()
        x = run(first, None, x, None, call)
        for attention, resnet in zip(self._attentions(), rest, strict=False):
            x = run(resnet, attention, x, None, call)
        return x

    def _layer(self, residual: Any, attention: Any, x: Tensor, skip: Tensor | None, call: Call) -> Tensor:
        if attention is not None:
            x = self._run_attention(attention, x, call)
        return self._run_residual(residual, x, call)


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
            self.resnet_up: Any = None
            self.skip_conv: Any = None
            self.skip_norm: Any = None
            if upsample:
                self.resnet_up = _resnet(kind, o, out_channels, out_channels, resample=sampling.fir_up, shortcut=True)
                self.skip_conv = nn.Conv2d(out_channels, 3, 3, padding=1)
                self.skip_norm = nn.GroupNorm(min(out_channels // 4, 32), out_channels, eps=o.eps)
        elif upsample:
            if kind.family == "k":
                sampler: nn.Module = Resample(sampling.mirrored_fir_up)
            elif kind.family == "flat":
                sampler = flat.FlatLinear(out_channels * flat.PLACES, out_channels * flat.PLACES)
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
        for i, (resnet, attention) in enumerate(self._pairs()):
            skip = skips.pop() if self.kind.skips else None  # one at a time: each is freed once it has been read
            if self.kind.family == "k" and i > 0:
                skip = None
            if freeu is not None and self.kind.freeu:
                x, skip = freeu(x, skip)  # type: ignore[arg-type]  # these kinds are always handed a map
            if skip is not None and not self.gradient_checkpointing:
                x, skip = torch.cat([x, skip], dim=1), None  # here, where the two can be freed
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


def divisors(down: nn.ModuleList, up: nn.ModuleList) -> tuple[int, int]:
    """What the stages divide height and width by, and of what the two must be multiples (1: any size runs)."""
    divisor = 2 ** (len(down) - 1)
    return divisor, 1 if all(stage.kind.family in ("plain", "flat") for stage in (*down, *up)) else divisor


def size_above(up: Any, skips: list[Tensor | None], sample: Tensor, divisor: int) -> tuple[int, int] | None:
    """The size that ``up`` has to reach; None if that is twice its own.

    A size that was not halved evenly on the way down is met again on the way up by asking for it.
    """
    if up.upsamplers is None or not any(side % divisor for side in sample.shape[-2:]):
        return None
    height, width = skips[-len(up.resnets) - 1].shape[-2:]  # type: ignore[union-attr]
    return height, width
