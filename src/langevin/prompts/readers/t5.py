"""T5's encoder: Raffel et al. 2020 (1910.10683)."""

from __future__ import annotations

from langevin.prompts.readers.base import TextReader


class T5Reader(TextReader):
    """Texts to ``encoder_hidden_states``, ``(rows, tokens, dim)``, with padding hidden from attention.

    T5 itself has no window; 77 tokens is what DeepFloyd IF was trained with.
    """

    window = 77
    mask_padding = True
