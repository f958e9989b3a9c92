"""Latent diffusion's text encoder, over BERT's tokens; see :mod:`langevin.models.encoders.ldm_bert`."""

from __future__ import annotations

from langevin.prompts.readers.base import TextReader


class BertReader(TextReader):
    """Texts to ``encoder_hidden_states``, ``(rows, tokens, dim)``, in windows of 77 tokens; padding is seen."""

    window = 77
    mask_padding = False
