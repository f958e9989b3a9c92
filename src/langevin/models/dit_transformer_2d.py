"""The transformer over patches of latents that is told time and class: DiT."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
from langevin.models.layers.attention import Attend
from langevin.models.layers.conditioning import check_labels, check_sample
from langevin.models.layers.embeddings import per_sample
from langevin.models.layers.patches import PatchBlock, PatchEmbedding
from langevin.models.layers.way_down import known_kwargs
from langevin.outputs import Transformer2DModelOutput


class DiTTransformer2DModel(ModelMixin):
    """A transformer over a picture's patches (DiT: Peebles & Xie 2023, 2212.09748).

    Args:
        num_attention_heads, attention_head_dim: tokens are as wide as their product.
        in_channels, out_channels: of what it takes and gives; twice as many where it predicts its variance.
        num_layers: how many blocks.
        attention_bias: queries, keys and values have a bias.
        sample_size: height and width that it was made for.
        patch_size: height and width of a patch.
        activation_fn: ``gelu-approximate``, ``gelu``, ``geglu`` or ``geglu-approximate``.
        num_embeds_ada_norm: how many classes there are. One more stands for no class.
        norm_type: ``ada_norm_zero``.
        norm_num_groups: nothing that this network has.

    Raises:
        ValueError: for another kind of norm, or an unknown activation.

    Example:
        >>> from langevin import DiTTransformer2DModel
        >>> net = DiTTransformer2DModel.from_pretrained("facebook/DiT-XL-2-256", subfolder="transformer")
        >>> net(latents, 500, class_labels=torch.tensor([207])).sample.shape
        torch.Size([1, 8, 32, 32])
    """

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        attention_bias: bool = True,
        sample_size: int = 32,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_zero",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if norm_type != "ada_norm_zero" or num_embeds_ada_norm is None:
            raise ValueError(f"norm_type is {norm_type!r}; 'ada_norm_zero' with num_embeds_ada_norm classes is needed")
        inner = num_attention_heads * attention_head_dim
        self.pos_embed = PatchEmbedding(in_channels, inner, patch_size, sample_size // patch_size)
        self.transformer_blocks = nn.ModuleList(
            PatchBlock(
                inner,
                heads=num_attention_heads,
                head_dim=attention_head_dim,
                classes=num_embeds_ada_norm,
                bias=attention_bias,
                act=activation_fn,
                eps=norm_eps,
                affine=norm_elementwise_affine,
                upcast=upcast_attention,
                dropout_p=dropout,
            )
            for _ in range(num_layers)
        )
        self.proj_out_1 = nn.Linear(inner, 2 * inner)
        self.proj_out_2 = nn.Linear(inner, patch_size**2 * (out_channels or in_channels))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float | int | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        *,
        attention: Attend | None = None,
    ) -> Any:
        """Predict.

        Args:
            hidden_states: (batch, in_channels, height, width), with sides that are multiples of ``patch_size``.
            timestep: a number, or one for each row.
            class_labels: (batch,), whole numbers up to ``num_embeds_ada_norm``, which is no class.
            cross_attention_kwargs: nothing that this network is told.
            return_dict: False for a tuple.
            attention: called instead of the fused attention in every layer: ``attention(q, k, v, mask, layer)``.

        Returns:
            A :class:`~langevin.outputs.Transformer2DModelOutput`, (batch, out_channels, height, width).

        Raises:
            ValueError: something is missing or of another form.
        """
        size = self.config["patch_size"]
        check_sample(hidden_states, self.config["in_channels"], size)
        known_kwargs(cross_attention_kwargs)
        labels = check_labels(class_labels, hidden_states).long()
        if timestep is None:
            raise ValueError("this network is told the time; give a timestep")
        time = per_sample(timestep, hidden_states)
        height, width = (side // size for side in hidden_states.shape[-2:])
        x = self.pos_embed(hidden_states)
        for block in self.transformer_blocks:
            x = block(x, time, labels, attention)
        first: Any = self.transformer_blocks[0]
        shift, scale = self.proj_out_1(F.silu(first.norm1.emb(time, labels)))[:, None].chunk(2, dim=-1)
        x = self.proj_out_2(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        x = x.unflatten(2, (size, size, -1)).unflatten(1, (height, width))
        sample = x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, height * size, width * size)
        return Transformer2DModelOutput(sample) if return_dict else (sample,)
