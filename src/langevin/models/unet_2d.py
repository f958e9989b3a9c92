"""The UNet that is told only the time: DDPM, DDIM, score-SDE, latent diffusion without text."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
from langevin.models.layers.activation import activation
from langevin.models.layers.attention import Attend
from langevin.models.layers.blocks import DownStage, MidStage, UpStage, divisors, size_above
from langevin.models.layers.conditioning import check_labels, check_sample
from langevin.models.layers.embeddings import FourierFeatures, TimestepEmbedding, Timesteps, per_sample
from langevin.models.layers.kinds import DOWN, MID, UP, Options, check_stages, kind_of
from langevin.models.layers.legacy import rename_old_attention
from langevin.models.layers.map_attention import Call
from langevin.outputs import UNet2DOutput

Size = int | tuple[int, int] | None


class UNet2DModel(ModelMixin):
    """A UNet over pictures, told the time and, if built so, a class (Ho et al., 2020; Song et al., 2021).

    Args:
        sample_size: height and width that it was made for; a note, any size that divides runs.
        in_channels, out_channels: of the picture and of the prediction.
        center_input_sample: map the input from [0, 1] to [-1, 1] first.
        time_embedding_type: ``positional``, ``fourier`` (the input is then log-scaled noise levels, and the output is
            divided by them) or ``learned`` (a table of ``num_train_timesteps``).
        down_block_types, mid_block_type, up_block_types: names in :mod:`langevin.models.layers.kinds`.
        block_out_channels: channels of each stage.
        layers_per_block: residual blocks of each stage on the way down; one more on the way up.
        attention_head_dim: width of an attention head; None: one head.
        resnet_time_scale_shift: ``default``, ``scale_shift`` or ``ada_group``: :class:`~.layers.resnet.ResnetBlock`.
        downsample_type, upsample_type: ``conv`` or ``resnet``, for stages with attention.
        class_embed_type: None with ``num_class_embeds`` (a table), ``timestep`` or ``identity``.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: Size = None,
        in_channels: int = 3,
        out_channels: int = 3,
        # the stages
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
        downsample_type: str = "conv",
        downsample_padding: int = 1,
        upsample_type: str = "conv",
        # residual blocks and attention
        act_fn: str = "silu",
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        norm_num_groups: int = 32,
        resnet_time_scale_shift: str = "default",
        mid_block_scale_factor: float = 1,
        add_attention: bool = True,
        attention_head_dim: int | None = 8,
        attn_norm_num_groups: int | None = None,
        # time and class
        center_input_sample: bool = False,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        time_embedding_dim: int | None = None,
        time_embedding_type: str = "positional",
        num_train_timesteps: int | None = None,
        num_class_embeds: int | None = None,
        class_embed_type: str | None = None,
    ) -> None:
        super().__init__()
        channels = tuple(block_out_channels)
        check_stages(down_block_types=down_block_types, up_block_types=up_block_types, block_out_channels=channels)
        self.sample_size = sample_size
        time_dim = time_embedding_dim or channels[0] * 4
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self._embed_time(channels[0], time_dim)
        self._embed_class(time_dim)

        options: dict[str, Any] = {
            "embedding_dim": time_dim,
            "embedding_use": resnet_time_scale_shift,
            "eps": norm_eps,
            "act": act_fn,
            "groups": norm_num_groups,
            "dropout": dropout,
            "head_dim": attention_head_dim,
            "padding": downsample_padding,
        }
        last = len(channels) - 1
        self.down_blocks = nn.ModuleList(
            DownStage(
                kind_of(DOWN, name, "down_block_types"),
                channels[max(i - 1, 0)],
                channels[i],
                layers=layers_per_block,
                downsample=i < last,
                options=Options(**options, resample=downsample_type),
            )
            for i, name in enumerate(down_block_types)
        )
        self.mid_block = None
        if mid_block_type is not None:
            if attn_norm_num_groups is None and resnet_time_scale_shift != "default":
                attn_norm_num_groups = 0  # the published networks of this kind have no norm there
            self.mid_block = MidStage(
                kind_of(MID, mid_block_type, "mid_block_type"),
                channels[-1],
                attention=add_attention,
                options=Options(**options, output_scale=mid_block_scale_factor, attention_groups=attn_norm_num_groups),
            )
        down = channels[::-1]
        self.up_blocks = nn.ModuleList(
            UpStage(
                kind_of(UP, name, "up_block_types"),
                down[max(i - 1, 0)],
                down[i],
                down[min(i + 1, last)],
                layers=layers_per_block + 1,
                upsample=i < last,
                options=Options(**options, resample=upsample_type),
            )
            for i, name in enumerate(up_block_types)
        )
        self._divisor, self._multiple = divisors(self.down_blocks, self.up_blocks)

        groups_out = norm_num_groups if norm_num_groups is not None else min(channels[0] // 4, 32)
        self.conv_norm_out = nn.GroupNorm(groups_out, channels[0], eps=norm_eps)
        self.conv_act = activation("silu")
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    def _embed_time(self, width: int, time_dim: int) -> None:
        """Timesteps to ``time_proj``'s vectors, and those to the embedding that every block gets."""
        c = self.config
        self._time_width = width
        if c.time_embedding_type == "fourier":
            self.time_proj: nn.Module = FourierFeatures(width, scale=16, log=True)
            self._time_width = 2 * width
        elif c.time_embedding_type == "positional":
            self.time_proj = Timesteps(width, c.flip_sin_to_cos, c.freq_shift)
        elif c.time_embedding_type == "learned":
            if c.num_train_timesteps is None:
                raise ValueError("time_embedding_type='learned' is a table; say how long with num_train_timesteps")
            self.time_proj = nn.Embedding(c.num_train_timesteps, width)
        else:
            raise ValueError(
                f"time_embedding_type={c.time_embedding_type!r} is unknown; use 'positional', 'fourier' or 'learned'"
            )
        self.time_embedding = TimestepEmbedding(self._time_width, time_dim)

    def _embed_class(self, time_dim: int) -> None:
        """Class labels to what is added to the time's embedding."""
        c = self.config
        self.class_embedding: Any = None
        if c.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(self._time_width, time_dim)
        elif c.class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        elif c.class_embed_type is not None:
            raise ValueError(f"class_embed_type={c.class_embed_type!r} is unknown; use None, 'timestep' or 'identity'")
        elif c.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(c.num_class_embeds, time_dim)

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the names that old files use, under the present ones."""
        return rename_old_attention(state_dict)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        *,
        attention: Attend | None = None,
    ) -> UNet2DOutput | tuple[Tensor]:
        """
        Args:
            sample: (batch, in_channels, height, width), noised pictures.
            timestep: a number, or a tensor of shape () or (batch,); with ``fourier`` a noise level.
            class_labels: (batch,) for a table or ``timestep``, (batch, width) for ``identity``.
            return_dict: False for a tuple.
            attention: called instead of the fused attention in every layer: ``attention(q, k, v, mask, layer)``.

        Returns:
            The prediction, (batch, out_channels, height, width), in the dtype of ``sample``.
        """
        check_sample(sample, self.config["in_channels"], self._multiple)
        t = per_sample(timestep, sample)
        learned = self.config["time_embedding_type"] == "learned"
        emb = self.time_embedding(self.time_proj(t.long() if learned else t).to(sample.dtype))
        if self.class_embedding is not None:
            labels = check_labels(class_labels, sample)
            if self.config["class_embed_type"] == "timestep":
                labels = self.time_proj(labels).to(sample.dtype)
            emb = emb + self.class_embedding(labels).to(emb.dtype)
        elif class_labels is not None:
            raise ValueError("class_labels were given to a network that is told no class; leave them out")
        call = Call(emb=emb, attention=attention)

        x = 2 * sample - 1.0 if self.config["center_input_sample"] else sample
        pyramid: Tensor | None = x
        x = self.conv_in(x)
        skips: list[Tensor | None] = [x]
        for down in self.down_blocks:
            x, outs, pyramid = down(x, call, pyramid)
            skips += outs
        if self.mid_block is not None:
            x = self.mid_block(x, call)
        pyramid = None
        for up in self.up_blocks:
            x, pyramid = up(x, skips, call, size_above(up, skips, sample, self._divisor), pyramid)

        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        if pyramid is not None:
            x = x + pyramid
        if self.config["time_embedding_type"] == "fourier":
            x = (x / t[:, None, None, None]).to(sample.dtype)
        return UNet2DOutput(sample=x) if return_dict else (x,)
