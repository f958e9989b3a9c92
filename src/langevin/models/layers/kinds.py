"""The published kinds of stages, as tables of what sets them apart, under the names that configs use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Options:
    """What a config says about one stage; the names are those of the layers that it is handed to."""

    embedding_dim: int | None = None
    embedding_use: str = "default"
    activate_embedding: bool = True
    output_scale: float = 1.0
    eps: float = 1e-5
    act: str = "silu"
    groups: Any = 32  # None only where stages choose their own
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
        attention: what stands behind each residual block (:mod:`.map_attention`), or None.
        resample: ``conv`` or ``resnet`` (a residual block that resamples); ``config``: as the config says.
        embedding: whether the residual blocks are told the time.
        skips: going up, whether each layer is handed a map from the way down.
        family: ``ncsn`` has a pyramid of pictures beside it (Song et al., 2021); ``k`` is k-diffusion's; ``flat`` has
            vectors in the place of maps: see :mod:`.flat`.
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
    "DownBlockFlat": Kind(family="flat"),
    "CrossAttnDownBlockFlat": Kind("cross", family="flat"),
}
MID = {
    "UNetMidBlock2D": Kind("self"),
    "UNetMidBlock2DCrossAttn": Kind("cross"),
    "UNetMidBlock2DSimpleCrossAttn": Kind("added", rescales=True),
    "UNetMidBlockFlat": Kind(family="flat"),
    "UNetMidBlockFlatCrossAttn": Kind("cross", family="flat"),
    "UNetMidBlockFlatSimpleCrossAttn": Kind("added", family="flat", rescales=True),
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
    "UpBlockFlat": Kind(family="flat"),
    "CrossAttnUpBlockFlat": Kind("cross", family="flat"),
}


def kind_of(table: dict[str, Kind], name: str, setting: str) -> Kind:
    """``table[name]``, also under its old name with "UNetRes" before it."""
    try:
        return table[name.removeprefix("UNetRes")]
    except KeyError:
        raise ValueError(f"{setting}: no block is called {name!r}; use one of: {', '.join(table)}") from None


def check_stages(*, block_out_channels: tuple[int, ...], **settings: Any) -> None:
    """Raise one line if settings that have an entry per stage differ in length from ``block_out_channels``."""
    for name, value in settings.items():
        if len(value) != len(block_out_channels):
            raise ValueError(
                f"{name} has {len(value)} entries for {len(block_out_channels)} block_out_channels; give one per stage"
            )
