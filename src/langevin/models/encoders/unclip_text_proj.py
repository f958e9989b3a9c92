"""What unCLIP's decoder is told, made of a text and the vector of a picture (Ramesh et al. 2022, 2204.06125, section
2.1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin


class UnCLIPTextProjModel(ModelMixin):
    """A picture's CLIP vector becomes a few tokens before the text's, and part of the time embedding.

    Args:
        clip_extra_context_tokens: how many tokens.
        clip_embeddings_dim: width of CLIP's vectors, and of the text's tokens.
        time_embed_dim: width of the decoder's time embedding.
        cross_attention_dim: width of the tokens that the decoder looks at.

    ``learned_classifier_free_guidance_embeddings``, ``(clip_embeddings_dim,)``, stands for no picture.

    Example:
        >>> from langevin import UnCLIPTextProjModel
        >>> project = UnCLIPTextProjModel.from_pretrained("kakaobrain/karlo-v1-alpha", subfolder="text_proj")
        >>> tokens, time = project(
        ...     image_embeddings=vectors, prompt_embeds=text_vectors, text_encoder_hidden_states=text_tokens
        ... )
    """

    library_name = "unclip"

    @register_to_config
    def __init__(
        self,
        *,
        clip_extra_context_tokens: int = 4,
        clip_embeddings_dim: int = 768,
        time_embed_dim: int,
        cross_attention_dim: int,
    ) -> None:
        super().__init__()
        vector, tokens = clip_embeddings_dim, clip_extra_context_tokens
        self.learned_classifier_free_guidance_embeddings = nn.Parameter(torch.zeros(vector))
        self.embedding_proj = nn.Linear(vector, time_embed_dim)
        self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(vector, time_embed_dim)
        self.clip_extra_context_tokens_proj = nn.Linear(vector, tokens * cross_attention_dim)
        self.encoder_hidden_states_proj = nn.Linear(vector, cross_attention_dim)
        self.text_encoder_hidden_states_norm = nn.LayerNorm(cross_attention_dim)

    def forward(
        self,
        *,
        image_embeddings: Tensor,
        prompt_embeds: Tensor,
        text_encoder_hidden_states: Tensor,
        do_classifier_free_guidance: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Project.

        Args:
            image_embeddings: of pictures, ``(rows, clip_embeddings_dim)``.
            prompt_embeds: the texts' vectors, ``(rows, clip_embeddings_dim)``.
            text_encoder_hidden_states: the texts' tokens, ``(rows, tokens, clip_embeddings_dim)``.
            do_classifier_free_guidance: rows for no picture come first: there are twice as many of texts.

        Returns:
            Tokens, ``(rows, clip_extra_context_tokens + tokens, cross_attention_dim)``, and what is added to the time
            embedding, ``(rows, time_embed_dim)``.

        Raises:
            ValueError: for different numbers of rows.
        """
        vectors = image_embeddings
        if do_classifier_free_guidance:
            nothing = self.learned_classifier_free_guidance_embeddings.expand(len(vectors), -1)
            vectors = torch.cat([nothing, vectors])
        if not len(vectors) == len(prompt_embeds) == len(text_encoder_hidden_states):
            counts = f"{len(vectors)} of pictures, {len(prompt_embeds)} and {len(text_encoder_hidden_states)} of texts"
            raise ValueError(f"there are rows of different number: {counts}; each picture needs its text")
        time = self.embedding_proj(prompt_embeds) + self.clip_image_embeddings_project_to_time_embeddings(vectors)
        extra = self.clip_extra_context_tokens_proj(vectors)
        extra = extra.unflatten(1, (-1, self.config.clip_extra_context_tokens)).transpose(1, 2)
        text = self.text_encoder_hidden_states_norm(self.encoder_hidden_states_proj(text_encoder_hidden_states))
        return torch.cat([extra, text], dim=1), time
