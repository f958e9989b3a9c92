"""unCLIP's prior: from a text's embeddings to the embedding of a picture that it might belong to."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
from langevin.models.layers.attention import Attend
from langevin.models.layers.embeddings import TimestepEmbedding, Timesteps, per_sample
from langevin.models.layers.transformer import PlainBlock
from langevin.outputs import PriorTransformerOutput

_HIDDEN = -10000.0  # added to the scores of tokens that are not looked at


class PriorTransformer(ModelMixin):
    """A causal transformer over the text's tokens, its vector, the time, the noised picture embedding and a last token,
    at whose place the clean picture embedding is read (Ramesh et al. 2022, 2204.06125, section 2.2).

    Args:
        num_attention_heads, attention_head_dim, num_layers: of the transformer.
        embedding_dim: width of picture embedding and text tokens.
        num_embeddings: tokens of a text.
        additional_embeddings: how many come behind them.
        time_embed_act_fn, time_embed_dim: activation and width inside the time embedding.
        norm_in_type: None or "layer": norm what goes in.
        embedding_proj_norm_type: None or "layer": norm the text's vector.
        encoder_hid_proj_type: "linear", or None where no text tokens are read.
        added_emb_type: "prd", the last token; None reads the answer at the noised embedding's own place.
        embedding_proj_dim: width of the text's vector; ``embedding_dim`` if None.
        clip_embed_dim: width of the answer; ``embedding_dim`` if None.

    ``clip_mean`` and ``clip_std`` are those of picture embeddings; see :meth:`post_process_latents`.

    Raises:
        ValueError: for a type that is none of these.
    """

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 32,
        attention_head_dim: int = 64,
        num_layers: int = 20,
        embedding_dim: int = 768,
        num_embeddings: int = 77,
        additional_embeddings: int = 4,
        dropout: float = 0.0,
        time_embed_act_fn: str = "silu",
        norm_in_type: str | None = None,
        embedding_proj_norm_type: str | None = None,
        encoder_hid_proj_type: str | None = "linear",
        added_emb_type: str | None = "prd",
        time_embed_dim: int | None = None,
        embedding_proj_dim: int | None = None,
        clip_embed_dim: int | None = None,
    ) -> None:
        super().__init__()
        inner = num_attention_heads * attention_head_dim
        vector, answer = embedding_proj_dim or embedding_dim, clip_embed_dim or embedding_dim
        tokens = num_embeddings + additional_embeddings
        for name, value, known in (
            ("norm_in_type", norm_in_type, "layer"),
            ("embedding_proj_norm_type", embedding_proj_norm_type, "layer"),
            ("encoder_hid_proj_type", encoder_hid_proj_type, "linear"),
            ("added_emb_type", added_emb_type, "prd"),
        ):
            if value not in (None, known):
                raise ValueError(f"{name} is {value!r}; it must be {known!r} or None")
        self.time_proj = Timesteps(inner, cos_first=True)
        self.time_embedding = TimestepEmbedding(inner, time_embed_dim or inner, act=time_embed_act_fn, out_dim=inner)
        self.proj_in = nn.Linear(embedding_dim, inner)
        self.embedding_proj_norm = nn.LayerNorm(vector) if embedding_proj_norm_type else None
        self.embedding_proj = nn.Linear(vector, inner)
        self.encoder_hidden_states_proj = nn.Linear(embedding_dim, inner) if encoder_hid_proj_type else None
        self.positional_embedding = nn.Parameter(torch.zeros(1, tokens, inner))
        self.prd_embedding = nn.Parameter(torch.zeros(1, 1, inner)) if added_emb_type else None
        self.transformer_blocks = nn.ModuleList(
            PlainBlock(inner, heads=num_attention_heads, head_dim=attention_head_dim, dropout_p=dropout)
            for _ in range(num_layers)
        )
        self.norm_in = nn.LayerNorm(inner) if norm_in_type else None
        self.norm_out = nn.LayerNorm(inner)
        self.proj_to_clip_embeddings = nn.Linear(inner, answer)
        self.clip_mean = nn.Parameter(torch.zeros(1, answer))
        self.clip_std = nn.Parameter(torch.zeros(1, answer))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float | int,
        proj_embedding: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool = True,
        attention: Attend | None = None,
    ) -> Any:
        """Predict.

        Args:
            hidden_states: the noised picture embedding, ``(batch, embedding_dim)``.
            timestep: a number, or one for each row.
            proj_embedding: the text's vector, ``(batch, embedding_proj_dim)``.
            encoder_hidden_states: the text's tokens, ``(batch, num_embeddings, embedding_dim)``.
            attention_mask: ``(batch, num_embeddings)``, False at padding. Given one, tokens look at those before them
                and no others; without one, at all.
            attention: called instead of scaled_dot_product_attention.

        Returns:
            A :class:`~langevin.outputs.PriorTransformerOutput`, or its entry in a tuple.

        Raises:
            ValueError: text tokens are missing, or of another number than the mask or the network wants.
        """
        rows, like = len(hidden_states), self.proj_in.weight.dtype
        time = self.time_embedding(self.time_proj(per_sample(timestep, hidden_states)).to(like))
        vector = proj_embedding if self.embedding_proj_norm is None else self.embedding_proj_norm(proj_embedding)
        parts = [self.embedding_proj(vector), time, self.proj_in(hidden_states)]
        parts = [part if part.ndim == 3 else part[:, None] for part in parts]
        if self.encoder_hidden_states_proj is not None:
            if encoder_hidden_states is None:
                raise ValueError("encoder_hidden_states are missing; this prior reads the text's tokens")
            encoder_hidden_states = self.encoder_hidden_states_proj(encoder_hidden_states)
        if encoder_hidden_states is not None:
            parts.insert(0, encoder_hidden_states)
        place = sum(part.shape[1] for part in parts[:-1])  # of the noised embedding
        if self.prd_embedding is not None:
            parts.append(self.prd_embedding.expand(rows, -1, -1))
        x = torch.cat(parts, dim=1)
        x = x + self._positions(x.shape[1], place)
        mask = None if attention_mask is None else self._mask(attention_mask, x)
        x = x if self.norm_in is None else self.norm_in(x)
        for block in self.transformer_blocks:
            x = block(x, mask=mask, attention=attention)
        x = self.norm_out(x)
        answer = self.proj_to_clip_embeddings(x[:, place:] if self.prd_embedding is None else x[:, -1])
        return PriorTransformerOutput(answer) if return_dict else (answer,)

    def _positions(self, tokens: int, place: int) -> Tensor:
        """Of all tokens; where there are fewer, they are those of the noised embedding, and the others have none."""
        known = self.positional_embedding.shape[1]
        if known == tokens:
            return self.positional_embedding
        behind = tokens - place - known
        if known > tokens or behind < 0:
            raise ValueError(
                f"there are {tokens} tokens, and this prior knows {known}; give as many text tokens as it wants"
            )
        return F.pad(self.positional_embedding, (0, 0, place, behind))

    def _mask(self, attention_mask: Tensor, x: Tensor) -> Tensor:
        """``(batch, 1, tokens, tokens)``: no token looks at padding, nor at what comes behind it."""
        tokens = x.shape[1]
        shown = F.pad(attention_mask.to(x.dtype), (0, self.config.additional_embeddings), value=1.0)
        if shown.shape[1] != tokens:
            text = tokens - self.config.additional_embeddings
            raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, for {text} text tokens")
        behind = torch.full((tokens, tokens), _HIDDEN, dtype=x.dtype, device=x.device).triu(1)
        return (((1 - shown) * _HIDDEN)[:, None] + behind)[:, None]

    def post_process_latents(self, prior_latents: Tensor) -> Tensor:
        """The picture embedding as CLIP has it, of one with mean 0 and spread 1."""
        return prior_latents * self.clip_std + self.clip_mean
