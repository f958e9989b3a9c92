"""The first half of a network that looks at a text: what a UNet and a ControlNet share, the middle included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from langevin.models.layers.attention import Attend
from langevin.models.layers.blocks import DownStage, MidStage
from langevin.models.layers.conditioning import Conditioning, attention_bias, check_sample
from langevin.models.layers.kinds import DOWN, MID, Options, check_stages, kind_of
from langevin.models.layers.map_attention import Call
from langevin.models.layers.transformer import Mix


class WayDown(Conditioning):
    """Gives a network its first convolution, what it is told, the stages on the way down and the middle.

    As in :class:`Conditioning` they are built from the network's config, which may leave out what it does not use, and
    are modules of the network itself.
    """

    _emb_dim: int
    _looks_at_text = True
    _multiple = 1

    def _per_stage(self, name: str) -> tuple[Any, ...]:
        """A setting that is one value or one per stage, as one per stage."""
        value, channels = self.config[name], tuple(self.config["block_out_channels"])
        if not isinstance(value, Sequence):
            return (value,) * len(channels)
        check_stages(block_out_channels=channels, **{name: value})
        return tuple(value)

    def _options(self, i: int, **more: Any) -> Options:
        """What the config says about stage ``i``; ``more`` takes precedence."""
        c: Mapping[str, Any] = self.config
        head_dims = self._per_stage("attention_head_dim")
        heads = head_dims if c["num_attention_heads"] is None else self._per_stage("num_attention_heads")
        settings: dict[str, Any] = {
            "embedding_dim": self._emb_dim,
            "embedding_use": c["resnet_time_scale_shift"],
            "activate_embedding": not c.get("resnet_skip_time_act", False),
            "output_scale": c.get("resnet_out_scale_factor", 1.0),
            "eps": c["norm_eps"],
            "act": c["act_fn"],
            "groups": c["norm_num_groups"],
            "dropout": c.get("dropout", 0.0),
            "head_dim": head_dims[i],
            "heads": heads[i],
            "depth": self._per_stage("transformer_layers_per_block")[i],
            "context_dim": self._per_stage("cross_attention_dim")[i],
            "context_norm": c.get("cross_attention_norm"),
            "only_context": self._per_stage("only_cross_attention")[i],
            "linear": c["use_linear_projection"],
            "upcast": c["upcast_attention"],
            "gated": c.get("attention_type", "default") != "default",
            "dual": c.get("dual_cross_attention", False),
            "padding": c["downsample_padding"],
        }
        return Options(**(settings | more))

    def _add_way_down(self) -> None:
        """Build the modules."""
        c: Mapping[str, Any] = self.config
        channels, names = tuple(c["block_out_channels"]), c["down_block_types"]
        check_stages(down_block_types=names, block_out_channels=channels)
        last = len(channels) - 1
        self.conv_in = self._first_layer(channels[0])
        self._emb_dim = self._add_conditioning(self._per_stage("cross_attention_dim")[0])
        layers = self._per_stage("layers_per_block")
        self.down_blocks = nn.ModuleList(
            DownStage(
                kind_of(DOWN, name, "down_block_types"),
                channels[max(i - 1, 0)],
                channels[i],
                layers=layers[i],
                downsample=i < last,
                options=self._options(i),
            )
            for i, name in enumerate(names)
        )
        self.mid_block = None
        if c["mid_block_type"] is None:
            return
        only_context = c.get("mid_block_only_cross_attention")
        if only_context is None:
            only_context = c["only_cross_attention"] if isinstance(c["only_cross_attention"], bool) else False
        mid = kind_of(MID, c["mid_block_type"], "mid_block_type")
        self.mid_block = MidStage(
            mid,
            channels[-1],
            layers=0 if mid.attention in (None, "self") else 1,
            options=self._options(
                last,
                output_scale=c["mid_block_scale_factor"],
                only_context=only_context and mid.attention == "added",
            ),
        )

    def _first_layer(self, width: int) -> nn.Module:
        """From what is given to the first map, of so many channels."""
        kernel = self.config.get("conv_in_kernel", 3)
        return nn.Conv2d(self.config["in_channels"], width, kernel, padding=(kernel - 1) // 2)

    def _check_sample(self, sample: Tensor) -> None:
        """Raise one line if the first layer cannot take it."""
        hint_channels = 4 if self.config["addition_embed_type"] == "image_hint" else 0
        check_sample(sample, self.config["in_channels"] - hint_channels, self._multiple)

    def _begin(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        text: Tensor | None,
        *,
        class_labels: Tensor | None,
        timestep_cond: Tensor | None,
        attention_mask: Tensor | None,
        added: Mapping[str, Tensor] | None,
        attention: Attend | None,
        encoder_attention_mask: Tensor | None = None,
        grounding: Tensor | None = None,
        mix: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Call]:
        """The first map, (batch, block_out_channels[0], height, width), and what all layers are told."""
        c: Mapping[str, Any] = self.config
        if self._looks_at_text:
            self._check_text(text, sample)
        self._check_sample(sample)
        emb, hint = self._vector(sample, timestep, timestep_cond, class_labels, added, text)
        x = 2 * sample - 1.0 if c.get("center_input_sample") else sample
        if hint is not None:
            x = torch.cat([x, hint], dim=1)
        call = Call(
            emb=emb,
            context=self._tokens(text, added),
            mask=attention_bias(attention_mask, sample, "attention_mask"),
            context_mask=attention_bias(encoder_attention_mask, sample, "encoder_attention_mask"),
            attention=attention,
            grounding=grounding,
            mix=Mix(**mix or {}),
        )
        return self.conv_in(x), call

    def _go_down(self, x: Tensor, call: Call, adapter: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor | None]]:
        """The map after the middle, and the maps for the way up, the first one included.

        ``adapter`` is added to each stage's last layer, one map per stage (T2I-Adapter: Mou et al., 2023).
        """
        left = list(adapter)[::-1]
        skips: list[Tensor | None] = [x]
        stage: Any
        for stage in self.down_blocks:
            if stage.has_cross_attention:
                x, outs, _ = stage(x, call, residual=left.pop() if left else None)
            else:
                x, outs, _ = stage(x, call)
                if left:
                    x = x + left.pop()
                    if stage.downsamplers is None or stage.kind.family != "k":
                        outs[-1] = x
            skips += outs
        if self.mid_block is not None:
            x = self.mid_block(x, call)
            if left and left[-1].shape == x.shape:
                x = x + left.pop()
        return x, skips


def with_residuals(skips: Sequence[Tensor | None], more: Sequence[Tensor]) -> list[Tensor | None]:
    """Maps for the way up, with what another network adds to them (ControlNet: Zhang et al., 2023)."""
    if len(more) != len(skips):
        raise ValueError(f"down_block_additional_residuals has {len(more)} maps; this network hands over {len(skips)}")
    return [skip + one for skip, one in zip(skips, more, strict=True)]  # type: ignore[operator]


def known_kwargs(kwargs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """``cross_attention_kwargs`` with nothing unknown in it, or one line about what is."""
    unknown = set(kwargs or ()) - {"gligen", "dual", "scale"}
    if unknown:
        raise ValueError(
            f"cross_attention_kwargs has {', '.join(sorted(unknown))}; known are: gligen, dual, scale (of LoRA weights)"
        )
    return kwargs or {}
