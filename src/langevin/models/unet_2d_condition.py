"""The UNet that is told the time and a text (or an image): Stable Diffusion, IF, unCLIP and their relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.lora.adapters import scaled
from langevin.models.base import ModelMixin
from langevin.models.layers.activation import activation
from langevin.models.layers.attention import Attend
from langevin.models.layers.blocks import UpStage, divisors, size_above
from langevin.models.layers.freeu import FreeUStages
from langevin.models.layers.grounding import BoxProjection
from langevin.models.layers.kinds import UP, check_stages, kind_of
from langevin.models.layers.legacy import rename_old_attention
from langevin.models.layers.way_down import WayDown, known_kwargs, with_residuals
from langevin.models.unet_2d import Size
from langevin.outputs import UNet2DConditionOutput

PerStage = int | tuple[int, ...]


class UNet2DConditionModel(FreeUStages, WayDown, ModelMixin):
    """A UNet whose layers look at a text (Rombach et al., 2022, section 3.3). Options are those of the config files.

    Args:
        sample_size: height and width that it was made for; a note.
        in_channels, out_channels: of the noised input (with masks, depth or low-resolution pictures joined on) and of
            the prediction.
        down_block_types, mid_block_type, up_block_types: names in :mod:`langevin.models.layers.kinds`.
        block_out_channels: channels of each stage. ``layers_per_block``, ``cross_attention_dim``,
            ``attention_head_dim``, ``only_cross_attention`` and ``transformer_layers_per_block`` are one value or one
            per stage.
        attention_head_dim: in stages with a transformer the *number* of heads, whatever its name says; in the others
            the width of one.
        transformer_layers_per_block: transformer blocks in each transformer; an entry may be a list, one per layer, and
            then ``reverse_transformer_layers_per_block`` says the same for the way up.
        encoder_hid_dim, encoder_hid_dim_type: bring what it is given to ``cross_attention_dim`` first: ``text_proj``,
            ``text_image_proj`` or ``image_proj``.
        class_embed_type: None with ``num_class_embeds`` (a table), ``timestep``, ``identity``, ``projection`` or
            ``simple_projection``; ``class_embeddings_concat`` joins it to the time embedding instead of adding it.
        addition_embed_type: one more thing added to the time embedding: ``text``, ``text_time`` (SDXL), ``text_image``,
            ``image`` or ``image_hint``.
        time_embedding_type: ``positional`` or ``fourier``.
        time_cond_proj_dim: width of ``timestep_cond``.
        resnet_time_scale_shift: ``default`` or ``scale_shift``: :class:`~.layers.resnet.ResnetBlock`.
        attention_type: ``gated`` or ``gated-text-image`` for GLIGEN.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: Size = None,
        in_channels: int = 4,
        out_channels: int = 4,
        # the stages
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: PerStage = 2,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        # residual blocks
        act_fn: str = "silu",
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        norm_num_groups: int | None = 32,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        resnet_out_scale_factor: float = 1.0,
        resnet_skip_time_act: bool = False,
        resnet_time_scale_shift: str = "default",
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        # attention
        attention_head_dim: PerStage = 8,
        num_attention_heads: PerStage | None = None,
        transformer_layers_per_block: int | tuple[Any, ...] = 1,
        reverse_transformer_layers_per_block: tuple[Any, ...] | None = None,
        use_linear_projection: bool = False,
        upcast_attention: bool = False,
        attention_type: str = "default",
        # what attention looks at
        cross_attention_dim: PerStage = 1280,
        cross_attention_norm: str | None = None,
        dual_cross_attention: bool = False,
        only_cross_attention: bool | tuple[bool, ...] = False,
        mid_block_only_cross_attention: bool | None = None,
        encoder_hid_dim_type: str | None = None,
        encoder_hid_dim: int | None = None,
        # time, and what is added to it
        center_input_sample: bool = False,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        time_embedding_dim: int | None = None,
        time_embedding_type: str = "positional",
        time_embedding_act_fn: str | None = None,
        time_cond_proj_dim: int | None = None,
        timestep_post_act: str | None = None,
        num_class_embeds: int | None = None,
        class_embed_type: str | None = None,
        class_embeddings_concat: bool = False,
        addition_embed_type: str | None = None,
        addition_embed_type_num_heads: int = 64,
        addition_time_embed_dim: int | None = None,
        projection_class_embeddings_input_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.sample_size = sample_size
        channels = tuple(block_out_channels)
        last = len(channels) - 1
        check_stages(down_block_types=down_block_types, up_block_types=up_block_types, block_out_channels=channels)
        gated = attention_type in ("gated", "gated-text-image")
        if not gated and attention_type != "default":
            raise ValueError(
                f"attention_type={attention_type!r} is unknown; use 'default', 'gated' or 'gated-text-image'"
            )
        layers = self._per_stage("layers_per_block")
        depths = self._per_stage("transformer_layers_per_block")
        if reverse_transformer_layers_per_block is not None:
            up_depths = self._per_stage("reverse_transformer_layers_per_block")
        elif any(isinstance(d, Sequence) for d in depths):
            raise ValueError(
                "transformer_layers_per_block has an entry per layer, and the way up has one layer more; "
                "say its depths with reverse_transformer_layers_per_block"
            )
        else:
            up_depths = depths[::-1]

        self._add_way_down()
        if gated:
            context_dim = self._per_stage("cross_attention_dim")[0]
            self.position_net = BoxProjection(
                context_dim if isinstance(cross_attention_dim, int) else 768,
                context_dim,
                with_images=attention_type == "gated-text-image",
            )
        up = range(last, -1, -1)
        self.up_blocks = nn.ModuleList(
            UpStage(
                kind_of(UP, name, "up_block_types"),
                channels[min(i + 1, last)],
                channels[i],
                channels[max(i - 1, 0)],
                layers=layers[i] + 1,
                upsample=i > 0,
                options=self._options(i, depth=up_depths[last - i]),
            )
            for i, name in zip(up, up_block_types, strict=True)
        )
        self._check_families({stage.kind.family for stage in (*self.down_blocks, *self.up_blocks)})
        self._divisor, self._multiple = divisors(self.down_blocks, self.up_blocks)
        self._looks_at_text = any(stage.has_cross_attention for stage in (*self.down_blocks, *self.up_blocks))
        self.disable_freeu()

        self.conv_norm_out: Any = None
        self.conv_act: Any = None
        if norm_num_groups is not None:
            self.conv_norm_out = self._norm(norm_num_groups, channels[0], eps=norm_eps)
            self.conv_act = activation(act_fn)
        self.conv_out = self._last_layer(channels[0])

    _norm: type[nn.GroupNorm] = nn.GroupNorm

    def _last_layer(self, width: int) -> nn.Module:
        kernel = self.config["conv_out_kernel"]
        return nn.Conv2d(width, self.config["out_channels"], kernel, padding=(kernel - 1) // 2)

    @staticmethod
    def _check_families(families: set[str]) -> None:
        if "ncsn" in families:
            raise ValueError("stages with a picture pyramid (Skip in their name) are for UNet2DModel; choose others")
        if "flat" in families:
            raise ValueError("stages for vectors (Flat in their name) are for UNetFlatConditionModel; choose others")

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the names that old files use, under the present ones."""
        return rename_old_attention(state_dict)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        *,
        attention: Attend | None = None,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """
        Args:
            sample: (batch, in_channels, height, width).
            timestep: a number, or a tensor of shape () or (batch,).
            encoder_hidden_states: (batch, tokens, width), the text.
            class_labels: (batch,) class numbers or noise levels, or (batch, width) vectors, by ``class_embed_type``.
            timestep_cond: (batch, time_cond_proj_dim), added to the time.
            attention_mask: (batch, keys), 1 for what self-attention may look at.
            cross_attention_kwargs: ``gligen``: arguments of :class:`~.layers.grounding.BoxProjection`; ``dual``: fields
                of :class:`~.layers.transformer.Mix`; ``scale``: times the weights of its LoRAs.
            added_cond_kwargs: what ``addition_embed_type`` and ``encoder_hid_dim_type`` want: ``text_embeds``,
                ``time_ids``, ``image_embeds``, ``hint``.
            down_block_additional_residuals: added to the maps for the way up (ControlNet: Zhang et al., 2023).
            mid_block_additional_residual: added after the middle.
            down_intrablock_additional_residuals: added to each stage's last layer (T2I-Adapter: Mou et al., 2023).
            encoder_attention_mask: (batch, tokens), 1 for the tokens that may be looked at.
            return_dict: False for a tuple.
            attention: called instead of the fused attention in every layer: ``attention(q, k, v, mask, layer)``.

        Returns:
            The prediction, (batch, out_channels, height, width), in the dtype of ``sample``.
        """
        kwargs = known_kwargs(cross_attention_kwargs)
        self = scaled(self, kwargs.get("scale"))
        x, call = self._begin(
            sample,
            timestep,
            encoder_hidden_states,
            class_labels=class_labels,
            timestep_cond=timestep_cond,
            attention_mask=attention_mask,
            added=added_cond_kwargs,
            attention=attention,
            encoder_attention_mask=encoder_attention_mask,
            grounding=self._ground(kwargs.get("gligen")),
            mix=kwargs.get("dual"),
        )
        adapter, control = down_intrablock_additional_residuals, down_block_additional_residuals
        if control is not None and mid_block_additional_residual is None and not adapter:
            adapter, control = control, None  # the old way to hand over a T2I-Adapter's maps

        x, skips = self._go_down(x, call, adapter or ())
        if control is not None:
            skips = with_residuals(skips, control)
            if mid_block_additional_residual is not None:
                x = x + mid_block_additional_residual

        for stage, change in zip(self.up_blocks, self._freeu, strict=True):
            size = size_above(stage, skips, sample, self._divisor)
            x, _ = stage(x, skips, call, size, freeu=change)

        if self.conv_norm_out is not None:
            x = self.conv_act(self.conv_norm_out(x))
        x = self.conv_out(x)
        return UNet2DConditionOutput(sample=x) if return_dict else (x,)

    def _ground(self, objects: dict[str, Tensor] | None) -> Tensor | None:
        if objects is None:
            return None
        if self.config["attention_type"] == "default":
            raise ValueError(
                "cross_attention_kwargs['gligen'] is for networks with attention_type='gated'; leave it out"
            )
        return self.position_net(**objects)
