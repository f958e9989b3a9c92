"""The UNet over sequences: raw sound (Dance Diffusion), and the paths of a robot with their values (Diffuser)."""

from __future__ import annotations

from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
from langevin.models.layers.attention import Attend
from langevin.models.layers.conditioning import check_sample
from langevin.models.layers.embeddings import FourierFeatures, TimestepEmbedding, Timesteps, per_sample
from langevin.models.layers.kinds import check_stages
from langevin.models.layers.paths import PathOut, PathStage, ValueMiddle, ValueOut
from langevin.models.layers.waves import DOWN, UP, WaveKind, WaveStage
from langevin.outputs import UNet1DOutput

MIDDLES = ("UNetMidBlock1D", "MidResTemporalBlock1D", "ValueFunctionMidBlock1D")
OUTS = (None, "OutConv1DBlock", "ValueFunction")


class UNet1DModel(ModelMixin):
    """A UNet over sequences that is told the time (Crowson's v-diffusion for audio; Janner et al. 2022, 2205.09991).

    Args:
        sample_size: length that it was made for; a note, see ``forward`` for what runs.
        sample_rate: samples in a second of the sound that it was trained on; a note, which pipelines read.
        in_channels, out_channels: of the sequence and of the prediction; 2 for stereo.
        extra_in_channels: how many channels the time takes beside the sequence, where the first stage is a
            ``DownBlock1DNoSkip``; the sequence brings them itself where it is not.
        time_embedding_type: ``fourier`` or ``positional``.
        time_embedding_dim: of ``fourier``; where None, ``extra_in_channels`` if that is what the time is joined as (the
            published networks were made so), else twice the first of ``block_out_channels``.
        use_timestep_embedding: two linear layers on the time's embedding, with ``act_fn`` between.
        flip_sin_to_cos, freq_shift: of the time's embedding: cosines first, and see
            :func:`~.layers.embeddings.sinusoid`.
        down_block_types, up_block_types: names in :mod:`langevin.models.layers.waves`.
        mid_block_type: ``UNetMidBlock1D`` (sound), ``MidResTemporalBlock1D`` (paths), ``ValueFunctionMidBlock1D``.
        out_block_type: ``OutConv1DBlock`` (paths), ``ValueFunction`` (one number for each path), or None.
        block_out_channels: channels of each stage on the way down.
        act_fn, norm_num_groups: of ``out_block_type``; other parts have their own.
        layers_per_block: of stages of paths, blocks beside the first.
        downsample_each_block: of paths, halve the length behind the last stage and in the middle too.

    Example:
        >>> from langevin import UNet1DModel
        >>> unet = UNet1DModel(block_out_channels=(32, 32, 64), extra_in_channels=16)
        >>> unet(torch.randn(1, 2, 256), 0.5).sample.shape
        torch.Size([1, 2, 256])
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 65536,
        sample_rate: int | None = None,
        in_channels: int = 2,
        out_channels: int = 2,
        extra_in_channels: int = 0,
        time_embedding_type: str = "fourier",
        time_embedding_dim: int | None = None,
        flip_sin_to_cos: bool = True,
        use_timestep_embedding: bool = False,
        freq_shift: float = 0.0,
        down_block_types: tuple[str, ...] = ("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types: tuple[str, ...] = ("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
        mid_block_type: str = "UNetMidBlock1D",
        out_block_type: str | None = None,
        block_out_channels: tuple[int, ...] = (32, 32, 64),
        act_fn: str | None = None,
        norm_num_groups: int | None = 8,
        layers_per_block: int = 1,
        downsample_each_block: bool = False,
    ) -> None:
        super().__init__()
        self.sample_size = sample_size
        channels = tuple(block_out_channels)
        check_stages(down_block_types=down_block_types, block_out_channels=channels)
        if len(up_block_types) > len(channels):
            raise ValueError(f"up_block_types has {len(up_block_types)} entries for {len(channels)} block_out_channels")
        down = [_kind(DOWN, name, "down_block_types") for name in down_block_types]
        up = [_kind(UP, name, "up_block_types") for name in up_block_types]
        self._takes = in_channels
        width = self._embed_time(channels[0], down)

        stages: list[nn.Module] = []
        below = in_channels + extra_in_channels
        for i, (kind, above) in enumerate(zip(down, channels, strict=True)):
            halve = downsample_each_block or i < len(down) - 1
            stages.append(_down(kind, below, above, width, layers_per_block, halve))
            below = above
        self.down_blocks = nn.ModuleList(stages)
        self.mid_block = _middle(mid_block_type, below, width, layers_per_block, downsample_each_block)
        stages = []
        last = out_channels if out_block_type is None else channels[0]
        for i, kind in enumerate(up):
            above = last if i == len(up) - 1 else channels[-2 - i]
            stages.append(_up(kind, below, above, width, layers_per_block, i < len(channels) - 1))
            below = above
        self.up_blocks = nn.ModuleList(stages)
        self.out_block = self._out(out_block_type, channels, width)
        waves = [stage for stage in (*self.down_blocks, self.mid_block) if isinstance(stage, WaveStage) and stage.down]
        doubles = any(isinstance(stage, WaveStage) and stage.up for stage in (self.mid_block, *self.up_blocks))
        #: the shortest sequence that it takes, and of what every length is a multiple
        self.shortest = 3 * 2 ** len(waves) if doubles else 2 ** (len(waves) + 1) if waves else 1
        self.multiple = 2 ** sum(_halves(stage) for stage in (*self.down_blocks, self.mid_block))

    def _embed_time(self, first: int, down: list[WaveKind]) -> int:
        """Build what embeds the time; the width of what it gives."""
        c = self.config
        joins = down[0].joins_time
        if any(kind.joins_time for kind in down[1:]):
            raise ValueError("down_block_types has a DownBlock1DNoSkip further on; only the first stage can be one")
        if c["time_embedding_type"] == "fourier":
            told = c["extra_in_channels"] if joins and not c["use_timestep_embedding"] else 0
            width = c["time_embedding_dim"] or told or 2 * first
            if width % 2:
                raise ValueError(f"the time has {width} channels; 'fourier' needs as many sines as cosines")
            self.time_proj: nn.Module = FourierFeatures(width // 2, cos_first=c["flip_sin_to_cos"])
        elif c["time_embedding_type"] == "positional":
            width = first
            self.time_proj = Timesteps(first, c["flip_sin_to_cos"], c["freq_shift"])
        else:
            raise ValueError(
                f"time_embedding_type={c['time_embedding_type']!r} is unknown; use 'positional' or 'fourier'"
            )
        self.time_mlp = None
        if c["use_timestep_embedding"]:
            self.time_mlp = TimestepEmbedding(width, 4 * first, act=self._act(), out_dim=first)
            width = first
        if joins and c["extra_in_channels"] != width:
            raise ValueError(
                f"extra_in_channels is {c['extra_in_channels']}, and the time that DownBlock1DNoSkip joins to the "
                f"sequence has {width} channels; set extra_in_channels={width}"
            )
        self._takes += 0 if joins else c["extra_in_channels"]
        return width

    def _act(self) -> str:
        if self.config["act_fn"] is None:
            raise ValueError("act_fn is None; this network needs an activation, such as act_fn='mish'")
        return self.config["act_fn"]

    def _out(self, kind: str | None, channels: tuple[int, ...], width: int) -> nn.Module | None:
        if kind not in OUTS:
            raise ValueError(f"out_block_type={kind!r} is unknown; use one of: {', '.join(map(repr, OUTS))}")
        if kind is None:
            return None
        groups = self.config["norm_num_groups"] or min(channels[0] // 4, 32)
        if kind == "ValueFunction":
            return ValueOut(channels[-1] // 4, width, self._act())
        return PathOut(channels[0], self.config["out_channels"], groups, self._act())

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        return_dict: bool = True,
        *,
        attention: Attend | None = None,
    ) -> UNet1DOutput | tuple[Tensor]:
        """
        Args:
            sample: (batch, in_channels, length), noised. The length is a multiple of 2 to the number of halvings, and
                stages of sound need three times that at least.
            timestep: a number, or a tensor of shape () or (batch,).
            return_dict: False for a tuple.
            attention: called instead of the fused attention in every layer: ``attention(q, k, v, mask, layer)``.

        Returns:
            The prediction, (batch, out_channels, length); with ``ValueFunction`` (batch, 1).

        Raises:
            ValueError: the sample has another shape, or a length that does not fit.
        """
        check_sample(sample, self._takes, axes=("length",))
        if sample.shape[2] < self.shortest:
            raise ValueError(f"sample is {sample.shape[2]} long; this network takes {self.shortest} and more")
        emb = self.time_proj(per_sample(timestep, sample)).to(sample.dtype)
        emb = emb if self.time_mlp is None else self.time_mlp(emb)

        x, skips = sample, []
        for stage in self.down_blocks:
            x, skip = stage(x, emb, None, attention)
            skips.append(skip)
        x, _ = self.mid_block(x, emb, None, attention)
        for stage in self.up_blocks:
            skip = skips.pop()
            if skip.shape[2] != x.shape[2]:
                raise ValueError(f"sample is {sample.shape[2]} long; this network takes multiples of {self.multiple}")
            x, _ = stage(x, emb, skip, attention)
        x = x if self.out_block is None else self.out_block(x, emb)
        return UNet1DOutput(sample=x) if return_dict else (x,)


def _kind(table: dict[str, WaveKind], name: str, setting: str) -> WaveKind:
    if name not in table:
        raise ValueError(f"{setting}: no block is called {name!r}; use one of: {', '.join(table)}")
    return table[name]


def _down(kind: WaveKind, below: int, above: int, width: int, layers: int, halve: bool) -> nn.Module:
    if kind.paths:
        return PathStage(below, above, width, layers, halve=halve)
    return WaveStage.going_down(kind, below, above)


def _up(kind: WaveKind, below: int, above: int, width: int, layers: int, double: bool) -> nn.Module:
    if kind.paths:
        return PathStage(2 * below, above, width, layers, double=double)
    return WaveStage.going_up(kind, below, above)


def _middle(name: str, channels: int, width: int, layers: int, halve: bool) -> nn.Module:
    if name not in MIDDLES:
        raise ValueError(f"mid_block_type={name!r} is unknown; use one of: {', '.join(MIDDLES)}")
    if name == "UNetMidBlock1D":
        return WaveStage.middle(channels)
    if name == "MidResTemporalBlock1D":
        return PathStage(channels, channels, width, layers, halve=halve)
    return ValueMiddle(channels, width)


def _halves(stage: nn.Module) -> bool:
    """Whether a stage halves the length."""
    return getattr(stage, "down" if isinstance(stage, WaveStage) else "downsample", None) is not None
