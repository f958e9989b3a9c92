"""CLIP's text model as Stable Diffusion uses it: the tokens of the last layer, normed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from langevin.prompts.readers.base import TextReader


class CLIPReader(TextReader):
    """Texts to ``encoder_hidden_states``, ``(rows, tokens, dim)``."""


class UnitReader(TextReader):
    """The same with every token brought to length 1: what VQ-Diffusion is told (Gu et al. 2022, 2111.14822)."""

    def tokens_of(self, output: Any) -> Tensor:
        tokens = super().tokens_of(output)
        return tokens / tokens.norm(dim=-1, keepdim=True)
