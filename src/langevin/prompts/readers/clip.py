"""CLIP's text model as Stable Diffusion uses it: the tokens of the last layer, normed."""

from __future__ import annotations

from langevin.prompts.readers.base import TextReader


class CLIPReader(TextReader):
    """Texts to ``encoder_hidden_states``, ``(rows, tokens, dim)``."""
