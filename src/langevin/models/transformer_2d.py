"""The transformer over pictures as a network of its own: VQ-Diffusion's, over codes, and one over maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
from langevin.models.dit_transformer_2d import DiTTransformer2DModel
from langevin.models.layers.attention import Attend
from langevin.models.layers.conditioning import attention_bias, check_sample
from langevin.models.layers.embeddings import CodeEmbedding, per_sample
from langevin.models.layers.transformer import TransformerBlock, added_to_map, to_tokens
from langevin.models.layers.way_down import known_kwargs
from langevin.outputs import Transformer2DModelOutput


class Transformer2DModel(ModelMixin):
    """A transformer over codes, whose answer is log p of each place's code (VQ-Diffusion: Gu et al. 2022, 2111.14822),
    or over the places of a map, to which its answer is added (Rombach et al. 2022, 2112.10752).

    Args:
        num_attention_heads, attention_head_dim: tokens are as wide as their product.
        in_channels, out_channels: of maps, both the same; None for codes.
        num_layers: how many blocks.
        norm_num_groups: of the norm in front of a map's tokens.
        cross_attention_dim: width of what is looked at; None without.
        attention_bias: queries, keys and values have a bias.
        sample_size: height and width in codes; of maps a note.
        num_vector_embeds: how many codes there are, the mask among them, which is the last; None for maps.
        activation_fn: ``geglu``, ``gelu``, ``gelu-approximate`` or ``geglu-approximate``.
        num_embeds_ada_norm: how many timesteps the norms know (``norm_type`` ``ada_norm``, which it implies); None for
            a network that is told no time.
        use_linear_projection: the layers between map and tokens are linear ones and not convolutions.
        only_cross_attention: the first attention looks at the text too.
        double_self_attention: the second looks at the tokens themselves too.
        attention_type: ``gated`` for GLIGEN.
        patch_size, caption_channels, interpolation_scale, use_additional_conditions: of transformers over patches,
            which are networks of their own; None.

    Raises:
        ValueError: settings are of neither kind, or of another network.

    Example:
        >>> from langevin import Transformer2DModel
        >>> net = Transformer2DModel.from_pretrained("microsoft/vq-diffusion-ithq", subfolder="transformer")
        >>> log_p = net(codes, text, timestep=99).sample  # (batch, 1024) -> (batch, 4096, 1024)
    """

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 88,
        in_channels: int | None = None,
        out_channels: int | None = None,
        num_layers: int = 1,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        cross_attention_dim: int | None = None,
        attention_bias: bool = False,
        sample_size: int | None = None,
        num_vector_embeds: int | None = None,
        patch_size: int | None = None,
        activation_fn: str = "geglu",
        num_embeds_ada_norm: int | None = None,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
        double_self_attention: bool = False,
        upcast_attention: bool = False,
        norm_type: str = "layer_norm",
        norm_elementwise_affine: bool = True,
        norm_eps: float = 1e-5,
        attention_type: str = "default",
        caption_channels: int | None = None,
        interpolation_scale: float | None = None,
        use_additional_conditions: bool | None = None,
    ) -> None:
        super().__init__()
        self._check_kind()
        inner = num_attention_heads * attention_head_dim
        self.linear = use_linear_projection
        if num_vector_embeds is not None:
            assert sample_size is not None
            self.latent_image_embedding = CodeEmbedding(num_vector_embeds, inner, sample_size, sample_size)
        else:
            assert in_channels is not None
            self.norm = nn.GroupNorm(norm_num_groups, in_channels, eps=1e-6)
            self.proj_in = nn.Linear(in_channels, inner) if self.linear else nn.Conv2d(in_channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(
                inner,
                heads=num_attention_heads,
                head_dim=attention_head_dim,
                context_dim=None if double_self_attention else cross_attention_dim,
                second=cross_attention_dim is not None or double_self_attention,
                only_context=only_cross_attention,
                upcast=upcast_attention,
                gated=attention_type != "default",
                dropout_p=dropout,
                timesteps=num_embeds_ada_norm,
                bias=attention_bias,
                act=activation_fn,
                eps=norm_eps,
                affine=norm_elementwise_affine,
            )
            for _ in range(num_layers)
        )
        if num_vector_embeds is not None:
            self.norm_out = nn.LayerNorm(inner)
            self.out = nn.Linear(inner, num_vector_embeds - 1)
        else:
            assert in_channels is not None
            self.proj_out = nn.Linear(inner, in_channels) if self.linear else nn.Conv2d(inner, in_channels, 1)

    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """As everywhere; but a config of a transformer over patches, which once was of this class too, gives a
        :class:`~langevin.DiTTransformer2DModel`.
        """
        config = config if isinstance(config, dict) else cls.load_config(config)
        if config.get("norm_type") == "ada_norm_zero":
            return DiTTransformer2DModel.from_config(config, return_unused_kwargs, **overrides)
        return super().from_config(config, return_unused_kwargs, **overrides)

    def _check_kind(self) -> None:
        """Raises ValueError, one line, where settings make no network."""
        c: Mapping[str, Any] = self.config
        odd = [n for n in ("caption_channels", "interpolation_scale", "use_additional_conditions") if c[n] is not None]
        if c["patch_size"] is not None or odd or c["norm_type"] not in ("layer_norm", "ada_norm"):
            name = "patch_size" if c["patch_size"] is not None else odd[0] if odd else "norm_type"
            raise ValueError(f"{name}={c[name]!r} is of a transformer over patches; this one is over codes or maps")
        if (c["num_vector_embeds"] is None) == (c["in_channels"] is None):
            given = "neither" if c["in_channels"] is None else "both"
            raise ValueError(f"{given} of in_channels (maps) and num_vector_embeds (codes) given; give exactly one")
        if c["num_vector_embeds"] is not None and c["sample_size"] is None:
            raise ValueError("num_vector_embeds needs a sample_size, the codes' height and width")
        if c["out_channels"] not in (None, c["in_channels"]):
            raise ValueError(f"out_channels is {c['out_channels']}; the answer is added to a map of {c['in_channels']}")
        if c["norm_type"] == "ada_norm" and c["num_embeds_ada_norm"] is None:
            raise ValueError("norm_type='ada_norm' needs num_embeds_ada_norm, the number of timesteps")
        if c["attention_type"] not in ("default", "gated", "gated-text-image"):
            raise ValueError(f"attention_type={c['attention_type']!r} is unknown; use 'default' or 'gated'")

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | float | int | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        *,
        attention: Attend | None = None,
    ) -> Any:
        """Predict.

        Args:
            hidden_states: codes, (batch, places), whole numbers; or a map, (batch, in_channels, height, width).
            encoder_hidden_states: (batch, tokens, cross_attention_dim), what is looked at.
            timestep: a number, or one for each row, where the norms are told it.
            added_cond_kwargs, class_labels: nothing that this network is told.
            cross_attention_kwargs: ``gligen``: ``{"objs": (batch, objects, width)}``.
            attention_mask: (batch, places), 1 for those that may be looked at.
            encoder_attention_mask: (batch, tokens), the same for what is looked at.
            return_dict: False for a tuple.
            attention: called instead of the fused attention in every layer: ``attention(q, k, v, mask, layer)``.

        Returns:
            A :class:`~langevin.outputs.Transformer2DModelOutput`: log p of the codes without the mask,
            (batch, num_vector_embeds - 1, places), in float32; or a map like the one given.

        Raises:
            ValueError: something is missing or of another form.
        """
        codes = self.config["num_vector_embeds"] is not None
        if codes:
            h = self.latent_image_embedding(hidden_states)
        else:
            check_sample(hidden_states, self.config["in_channels"])
            h = to_tokens(self, hidden_states)
        told = (
            self._text(encoder_hidden_states, h),
            attention_bias(attention_mask, h, "attention_mask"),
            attention_bias(encoder_attention_mask, h, "encoder_attention_mask"),
            attention,
            (known_kwargs(cross_attention_kwargs).get("gligen") or {}).get("objs"),
            self._time(timestep, h),
        )
        for block in self.transformer_blocks:
            h = block(h, *told)
        if codes:
            said = self.out(self.norm_out(h)).transpose(1, 2)
            sample = F.log_softmax(said.double(), dim=1).float()
        else:
            sample = added_to_map(self, h, hidden_states)
        return Transformer2DModelOutput(sample) if return_dict else (sample,)

    def _text(self, text: Tensor | None, h: Tensor) -> Tensor | None:
        """What is looked at, held against what the network can look at."""
        width = self.config["cross_attention_dim"]
        if width is None or self.config["double_self_attention"]:
            return None
        if text is None or text.ndim != 3 or len(text) != len(h) or text.shape[2] != width:
            given = "None" if text is None else f"of shape {tuple(text.shape)}"
            raise ValueError(f"encoder_hidden_states is {given}; the network takes ({len(h)}, tokens, {width}) here")
        return text

    def _time(self, timestep: Tensor | float | int | None, h: Tensor) -> Tensor | None:
        """The timestep of each row, where the norms are told it."""
        if self.config["num_embeds_ada_norm"] is None:
            return None
        if timestep is None:
            raise ValueError("this network is told the time; give a timestep")
        return per_sample(timestep, h).long()


class TimeByName:
    """A network whose second argument is not the timestep, as loops call it: ``network(x, t, **told)``. All else
    (config, device, layers) is the network's.
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, x: Tensor, timestep: Any, **told: Any) -> Any:
        return self.network(x, timestep=timestep, **told)
