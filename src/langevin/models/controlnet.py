"""ControlNet: a copy of a UNet's first half reads a hint and tells the UNet what to change (Zhang et al., 2023)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
from langevin.models.layers.activation import activation
from langevin.models.layers.attention import Attend
from langevin.models.layers.legacy import rename_old_attention
from langevin.models.layers.way_down import WayDown, known_kwargs
from langevin.models.unet_2d_condition import PerStage, UNet2DConditionModel
from langevin.outputs import ControlNetOutput

Self = TypeVar("Self", bound="ControlNetModel")

# what a ControlNet has in common with its UNet
_COPIED = ("conv_in", "time_embedding", "class_embedding", "add_embedding", "encoder_hid_proj")
_STAGES = ("down_blocks", "mid_block")
# settings of a UNet that do not matter to the weights of its first half
_NOTES = ("sample_size", "dropout")
_SECOND_HALF = ("out_channels", "up_block_types", "reverse_transformer_layers_per_block", "conv_out_kernel")


def _silent(conv: nn.Conv2d) -> nn.Conv2d:
    """``conv`` with weights of zero, so that training starts from the UNet as it is (section 3.1 of the paper)."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class HintEmbedding(nn.Module):
    """A hint in pixels as a map of the latents' size (section 3.2 of the paper).

    (batch, channels, f·h, f·w) -> (batch, out_channels, h, w) with f = 2^(len(widths) - 1).
    """

    def __init__(self, channels: int, widths: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.factor = 2 ** (len(widths) - 1)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = _silent(nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    def forward(self, hint: Tensor) -> Tensor:
        x = F.silu(self.conv_in(hint))
        for conv in self.blocks:
            x = F.silu(conv(x))
        return self.conv_out(x)


class ControlNetModel(WayDown, ModelMixin):
    """Reads a hint (edges, depth, a pose, …) beside the noised latents and gives what to add to a UNet's maps.

    The options that :class:`~langevin.models.unet_2d_condition.UNet2DConditionModel` has too mean the same.

    Args:
        in_channels: of the noised latents.
        conditioning_channels: of the hint.
        controlnet_conditioning_channel_order: order of the channels that the weights were trained with; a hint is
            always given as ``rgb`` and turned round for ``bgr``.
        conditioning_embedding_out_channels: widths on the hint's way to the latents' size; each after the first halves
            height and width.
        global_pool_conditions: give one number per channel, the mean over height and width.

    Two things are as in checkpoints of the original, where a UNet does otherwise: a text that already has a width of
    ``cross_attention_dim`` goes past ``encoder_hid_proj``, and ``addition_embed_type="text_image"`` has weights that
    nothing reads.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        # the hint
        conditioning_channels: int = 3,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256),
        global_pool_conditions: bool = False,
        # the stages
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: PerStage = 2,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        # residual blocks
        act_fn: str = "silu",
        norm_eps: float = 1e-5,
        norm_num_groups: int | None = 32,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        resnet_time_scale_shift: str = "default",
        # attention, and what it looks at
        attention_head_dim: PerStage = 8,
        num_attention_heads: PerStage | None = None,
        transformer_layers_per_block: int | tuple[Any, ...] = 1,
        use_linear_projection: bool = False,
        upcast_attention: bool = False,
        cross_attention_dim: PerStage = 1280,
        only_cross_attention: bool | tuple[bool, ...] = False,
        encoder_hid_dim_type: str | None = None,
        encoder_hid_dim: int | None = None,
        # time, and what is added to it
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        num_class_embeds: int | None = None,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_embed_type_num_heads: int = 64,
        addition_time_embed_dim: int | None = None,
        projection_class_embeddings_input_dim: int | None = None,
    ) -> None:
        super().__init__()
        if controlnet_conditioning_channel_order not in ("rgb", "bgr"):
            raise ValueError(
                f"controlnet_conditioning_channel_order={controlnet_conditioning_channel_order!r} is unknown; "
                "use 'rgb' or 'bgr'"
            )
        self._add_way_down()
        if class_embed_type == "timestep":
            self.class_embedding.act = activation("silu")  # whatever act_fn says, as in the original
        stages: Any = self.down_blocks
        odd = [name for name, stage in zip(down_block_types, stages, strict=True) if stage.kind.family != "plain"]
        if odd:
            raise ValueError(f"down_block_types: a ControlNet cannot read the maps of {odd[0]}; choose another stage")
        self._looks_at_text = any(stage.has_cross_attention for stage in (*stages, self.mid_block) if stage is not None)
        self.controlnet_cond_embedding = HintEmbedding(
            conditioning_channels, conditioning_embedding_out_channels, block_out_channels[0]
        )
        widths = [block_out_channels[0]]
        for channels, stage in zip(block_out_channels, stages, strict=True):
            widths += [channels] * (len(stage.resnets) + len(stage.downsamplers or ()))
        self.controlnet_down_blocks = nn.ModuleList(_silent(nn.Conv2d(width, width, 1)) for width in widths)
        self.controlnet_mid_block = _silent(nn.Conv2d(block_out_channels[-1], block_out_channels[-1], 1))

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the names that old files use, under the present ones."""
        return rename_old_attention(state_dict)

    @classmethod
    def from_unet(
        cls: type[Self],
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:
        """A ControlNet for a UNet, with a copy of its weights: where training starts. It changes nothing yet.

        It is made in float32 on the CPU, whatever the UNet is, and in training mode.

        Args:
            unet: the network that will be told.
            load_weights_from_unet: False keeps the random ones.
            controlnet_conditioning_channel_order, conditioning_embedding_out_channels, conditioning_channels: as in
                the constructor.

        Raises:
            ValueError: the UNet's first half has a setting that a ControlNet does not have.
        """
        known = cls._settings_names()
        others = inspect.signature(type(unet).__init__).parameters
        differs = [
            f"{name}={unet.config[name]!r}"
            for name, parameter in others.items()
            if name not in (*known, *_NOTES, *_SECOND_HALF)
            and unet.config.get(name)
            and unet.config[name] != parameter.default
        ]
        if differs and load_weights_from_unet:
            raise ValueError(
                f"this UNet has {', '.join(differs)}, for which a ControlNet has no setting, so its weights cannot be "
                "copied; load_weights_from_unet=False starts from random ones"
            )
        net = cls(
            **{name: unet.config[name] for name in known if name in unet.config},
            controlnet_conditioning_channel_order=controlnet_conditioning_channel_order,
            conditioning_embedding_out_channels=tuple(conditioning_embedding_out_channels),
            conditioning_channels=conditioning_channels,
        )
        if load_weights_from_unet:
            for name in (*_COPIED, *_STAGES):
                if getattr(net, name) is not None:
                    getattr(net, name).load_state_dict(getattr(unet, name).state_dict())
        return net

    def embed_condition(self, controlnet_cond: Tensor) -> Tensor:
        """A hint as a map that is added to the first map: (batch, block_out_channels[0], h, w).

        It does not depend on the latents or the time, so one run needs it once: :meth:`forward` takes it as
        ``embedded_cond``.

        Args:
            controlnet_cond: (batch, conditioning_channels, H, W) in [0, 1], RGB; H and W are those of the latents times
                2^(len(conditioning_embedding_out_channels) - 1), for Stable Diffusion those of the picture.

        Raises:
            ValueError: it has another number of dimensions or channels.
        """
        channels = self.config["conditioning_channels"]
        if controlnet_cond.ndim != 4 or controlnet_cond.shape[1] != channels:
            raise ValueError(
                f"controlnet_cond has shape {tuple(controlnet_cond.shape)}; "
                f"this network takes (batch, {channels}, height, width)"
            )
        if self.config["controlnet_conditioning_channel_order"] == "bgr":
            controlnet_cond = controlnet_cond.flip(1)
        return self.controlnet_cond_embedding(controlnet_cond)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None,
        controlnet_cond: Tensor | None = None,
        conditioning_scale: float | Tensor = 1.0,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
        *,
        embedded_cond: Tensor | None = None,
        attention: Attend | None = None,
    ) -> ControlNetOutput | tuple[Sequence[Tensor], Tensor]:
        """
        Args:
            sample: (batch, in_channels, height, width), the noised latents.
            timestep: a number, or a tensor of shape () or (batch,).
            encoder_hidden_states: (batch, tokens, width), the text.
            controlnet_cond: the hint, as in :meth:`embed_condition`; (1, …) for one hint for the whole batch.
            conditioning_scale: what is given is multiplied by it: a number, or (batch, 1, 1, 1), one per picture.
            class_labels, timestep_cond, attention_mask, added_cond_kwargs: as for the UNet.
            cross_attention_kwargs: as for the UNet; ``gligen`` and ``dual`` are the UNet's own business.
            guess_mode: scale the maps from 0.1 for the first to 1 for the middle, evenly in the logarithm: for prompts
                that say nothing (the paper's "guess mode"). Nothing changes with ``global_pool_conditions``.
            return_dict: False for a tuple.
            embedded_cond: what :meth:`embed_condition` gave, instead of ``controlnet_cond``.
            attention: called instead of the fused attention in every layer: ``attention(q, k, v, mask, layer)``.

        Returns:
            What to add to the UNet's maps, ``down_block_additional_residuals`` and ``mid_block_additional_residual``.

        Raises:
            ValueError: both or none of ``controlnet_cond`` and ``embedded_cond``, or a hint that does not fit
                ``sample``.
        """
        known_kwargs(cross_attention_kwargs)
        if (controlnet_cond is None) == (embedded_cond is None):
            raise ValueError(
                "a ControlNet needs one of controlnet_cond (the hint) and embedded_cond (embed_condition's)"
            )
        x, call = self._begin(
            sample,
            timestep,
            encoder_hidden_states,
            class_labels=class_labels,
            timestep_cond=timestep_cond,
            attention_mask=attention_mask,
            added=added_cond_kwargs,
            attention=attention,
        )
        hint = self.embed_condition(controlnet_cond) if embedded_cond is None else embedded_cond  # type: ignore[arg-type]
        self._check_hint(hint, x, controlnet_cond)
        x, maps = self._go_down(x + hint, call)
        down = [conv(m) for conv, m in zip(self.controlnet_down_blocks, maps, strict=True)]
        mid = self.controlnet_mid_block(x)

        pooled = self.config["global_pool_conditions"]
        scales: list[Any] = [conditioning_scale] * (len(down) + 1)
        if guess_mode and not pooled:
            scales = [scale * 10 ** (i / len(down) - 1) for i, scale in enumerate(scales)]
        down = [m * scale for m, scale in zip(down, scales[:-1], strict=True)]
        mid = mid * scales[-1]
        if pooled:
            down, mid = [m.mean(dim=(2, 3), keepdim=True) for m in down], mid.mean(dim=(2, 3), keepdim=True)
        return ControlNetOutput(down, mid) if return_dict else (down, mid)

    def _check_hint(self, hint: Tensor, x: Tensor, pixels: Tensor | None) -> None:
        """Raise one line if an embedded hint cannot be added to the first map; ``pixels`` is what it was made of."""
        name, given, factor = "embedded_cond", hint, 1
        if pixels is not None:
            name, given, factor = "controlnet_cond", pixels, self.controlnet_cond_embedding.factor
        height, width = x.shape[-2:]
        if hint.shape[-2:] != (height, width):
            raise ValueError(
                f"{name} is {given.shape[-2]} high and {given.shape[-1]} wide; "
                f"for this sample it has to be {height * factor} high and {width * factor} wide"
            )
        if hint.ndim != 4 or hint.shape[1] != x.shape[1] or hint.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}; "
                f"give ({x.shape[0]} or 1, {given.shape[1] if pixels is not None else x.shape[1]}, {height * factor}, "
                f"{width * factor})"
            )

    # -- where the original's ControlNet is told otherwise than its UNet

    def _projected(self, text: Tensor | None) -> bool:
        """Whether a text has the width that the layers look at already."""
        if text is None or text.ndim != 3 or self.config["encoder_hid_dim_type"] == "image_proj":
            return False
        return text.shape[2] == self._per_stage("cross_attention_dim")[0]

    def _check_text(self, text: Tensor | None, sample: Tensor) -> None:
        if text is None or not self._projected(text) or text.shape[0] != sample.shape[0]:
            super()._check_text(text, sample)

    def _tokens(self, text: Tensor | None, added: Any = None) -> Tensor | None:
        return text if self._projected(text) else super()._tokens(text, added)

    def _add_to(self, emb: Tensor, added: Any, text: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.config["addition_embed_type"] == "text_image":
            return emb, None
        return super()._add_to(emb, added, text)
