"""The UNet for videos that is told the time and a text (ModelScope: Wang et al., 2023, 2308.06571)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
from langevin.models.layers.activation import activation
from langevin.models.layers.attention import Attend
from langevin.models.layers.blocks import divisors, size_above
from langevin.models.layers.conditioning import Conditioning
from langevin.models.layers.freeu import FreeUStages
from langevin.models.layers.kinds import Options, check_stages, kind_of
from langevin.models.layers.map_attention import Call
from langevin.models.layers.temporal import (
    DOWN,
    MID,
    UP,
    TemporalTransformer,
    VideoDownStage,
    VideoMidStage,
    VideoUpStage,
)
from langevin.models.layers.transformer import FeedForward
from langevin.models.layers.way_down import known_kwargs, with_residuals
from langevin.outputs import UNet3DConditionOutput


class UNet3DConditionModel(FreeUStages, Conditioning, ModelMixin):
    """A UNet of videos: that of pictures, which sees each frame by itself, with a layer along time behind each of its
    own (Wang et al., 2023, 2308.06571, section 3.2). Options are those of the config files.

    Args:
        sample_size: height and width that it was made for; a note.
        in_channels, out_channels: of the noised input and of the prediction.
        down_block_types, up_block_types: CrossAttnDownBlock3D, DownBlock3D; CrossAttnUpBlock3D, UpBlock3D.
        block_out_channels: channels of each stage; multiples of ``attention_head_dim`` and ``norm_num_groups``.
        attention_head_dim: the width of a head; the first transformer along time has eight of them.
        num_attention_heads: None; no published network has it, and neither has the reference.
        time_cond_proj_dim: width of ``timestep_cond``.

    Example:
        >>> import torch
        >>> from langevin import UNet3DConditionModel
        >>> unet = UNet3DConditionModel(block_out_channels=(64, 64), cross_attention_dim=32,
        ...     down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        ...     up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"))
        >>> video, text = torch.randn(1, 4, 8, 16, 16), torch.randn(1, 77, 32)
        >>> unet(video, 500, text).sample.shape
        torch.Size([1, 4, 8, 16, 16])
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        up_block_types: tuple[str, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        num_attention_heads: int | None = None,
        time_cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.sample_size = sample_size
        channels = tuple(block_out_channels)
        check_stages(down_block_types=down_block_types, up_block_types=up_block_types, block_out_channels=channels)
        self._check_heads(channels)
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self._emb_dim = self._add_conditioning(cross_attention_dim)
        self.transformer_in = TemporalTransformer(
            channels[0], heads=8, head_dim=attention_head_dim, groups=norm_num_groups
        )
        last, layers = len(channels) - 1, layers_per_block
        self.down_blocks = nn.ModuleList(
            VideoDownStage(
                kind_of(DOWN, name, "down_block_types"),
                channels[max(i - 1, 0)],
                channels[i],
                layers=layers,
                downsample=i < last,
                options=self._options(i),
            )
            for i, name in enumerate(down_block_types)
        )
        self.mid_block = VideoMidStage(
            MID, channels[-1], options=self._options(last, output_scale=mid_block_scale_factor)
        )
        self.up_blocks = nn.ModuleList(
            VideoUpStage(
                kind_of(UP, name, "up_block_types"),
                channels[min(i + 1, last)],
                channels[i],
                channels[max(i - 1, 0)],
                layers=layers + 1,
                upsample=i > 0,
                options=self._options(i),
            )
            for i, name in zip(range(last, -1, -1), up_block_types, strict=True)
        )
        self._divisor, _ = divisors(self.down_blocks, self.up_blocks)
        self.disable_freeu()
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, channels[0], eps=norm_eps)
        self.conv_act = activation("silu")  # whatever act_fn is, as in the reference
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    def _check_heads(self, channels: tuple[int, ...]) -> None:
        """Raises ValueError unless heads and groups fit the channels."""
        c = self.config
        if c.num_attention_heads is not None:
            raise ValueError(f"num_attention_heads is {c.num_attention_heads}; leave it out and give a head's width")
        for name in ("attention_head_dim", "norm_num_groups"):
            value = c[name]
            if not isinstance(value, int) or any(width % value for width in channels):
                raise ValueError(f"{name} is {value!r}; a divisor of all block_out_channels {channels} is needed")

    def _options(self, i: int, **more: Any) -> Options:
        """What the config says about stage ``i``; ``more`` takes precedence."""
        c = self.config
        settings: dict[str, Any] = {
            "embedding_dim": self._emb_dim,
            "eps": c.norm_eps,
            "act": c.act_fn,
            "groups": c.norm_num_groups,
            "heads": c.block_out_channels[i] // c.attention_head_dim,
            "context_dim": c.cross_attention_dim,
            "linear": True,
            "padding": c.downsample_padding,
        }
        return Options(**(settings | more))

    def enable_forward_chunking(self, chunk_size: int | None = None, dim: int = 0) -> None:
        """Let the transformers' token-wise layers work through their input in parts: less memory, the same numbers.

        Args:
            chunk_size: of a part, 1 if None.
            dim: 0 cuts between places or frames, 1 between tokens.

        Raises:
            ValueError: there is no such ``dim`` or size.
        """
        size = 1 if chunk_size is None else chunk_size
        if dim not in (0, 1) or size < 1:
            raise ValueError(f"chunk_size is {chunk_size} and dim is {dim}; give a size of at least 1, and 0 or 1")
        self._chunk((size, dim))

    def disable_forward_chunking(self) -> None:
        """Undo :meth:`enable_forward_chunking`."""
        self._chunk(None)

    def _chunk(self, chunk: tuple[int, int] | None) -> None:
        for module in self.modules():
            if isinstance(module, FeedForward):
                module.chunk = chunk

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
        *,
        attention: Attend | None = None,
    ) -> UNet3DConditionOutput | tuple[Tensor]:
        """
        Args:
            sample: (batch, in_channels, frames, height, width).
            timestep: a number, or a tensor of shape () or (batch,).
            encoder_hidden_states: (batch, tokens, cross_attention_dim), the text, the same for all frames.
            class_labels, attention_mask: None; this kind of network has no use for them.
            timestep_cond: (batch, time_cond_proj_dim), added to the time.
            cross_attention_kwargs: ``scale``, of LoRA weights, is taken.
            down_block_additional_residuals: added to the maps for the way up, (batch · frames, channels, h, w) each.
            mid_block_additional_residual: added after the middle.
            return_dict: False for a tuple.
            attention: called instead of the fused attention in every layer: ``attention(q, k, v, mask, layer)``; q has
                batch · frames rows of places in the layers within frames, and batch · places rows of frames along time.

        Returns:
            The prediction, (batch, out_channels, frames, height, width), in the dtype of ``sample``.
        """
        known_kwargs(cross_attention_kwargs)
        self._check(sample, encoder_hidden_states, class_labels=class_labels, attention_mask=attention_mask)
        frames = sample.shape[2]
        emb, _ = self._vector(sample, timestep, timestep_cond)
        assert encoder_hidden_states is not None
        call = Call(
            emb=emb.repeat_interleave(frames, dim=0),
            context=encoder_hidden_states.repeat_interleave(frames, dim=0),
            attention=attention,
            frames=frames,
        )
        x = self.transformer_in(self.conv_in(sample.transpose(1, 2).flatten(0, 1)), frames, attention)
        skips: list[Tensor | None] = [x]
        for stage in self.down_blocks:
            x, outs, _ = stage(x, call)
            skips += outs
        if down_block_additional_residuals is not None:
            skips = with_residuals(skips, down_block_additional_residuals)
        x = self.mid_block(x, call)
        if mid_block_additional_residual is not None:
            x = x + mid_block_additional_residual
        for stage, change in zip(self.up_blocks, self._freeu, strict=True):
            x, _ = stage(x, skips, call, size_above(stage, skips, sample, self._divisor), freeu=change)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        x = x.unflatten(0, (-1, frames)).transpose(1, 2)
        return UNet3DConditionOutput(sample=x) if return_dict else (x,)

    def _check(self, sample: Tensor, text: Tensor | None, **without: Tensor | None) -> None:
        """Raise one line if something was given that this network cannot take."""
        if sample.ndim != 5 or sample.shape[1] != self.config.in_channels:
            wanted = f"(batch, {self.config.in_channels}, frames, height, width)"
            raise ValueError(f"sample has shape {tuple(sample.shape)}; this network takes {wanted}")
        self._check_text(text, sample)
        given = [name for name, value in without.items() if value is not None]
        if given:
            raise ValueError(f"{' and '.join(given)} given; this kind of network has no use for it, leave it out")
