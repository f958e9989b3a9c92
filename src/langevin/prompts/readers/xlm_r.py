"""AltDiffusion's text encoder: XLM-R that speaks as CLIP does; see :mod:`langevin.models.encoders.roberta_series`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from langevin.prompts.readers.base import TextReader


class XLMRReader(TextReader):
    """Texts in many languages to ``encoder_hidden_states``, ``(rows, tokens, project_dim)``.

    Padding is hidden from attention where the encoder's config says ``use_attention_mask``.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, **more: Any) -> None:
        super().__init__(tokenizer, text_encoder, **more)
        if self.mask_padding is None and text_encoder is not None:
            self.mask_padding = bool(getattr(text_encoder.config, "use_attention_mask", False))

    def tokens_of(self, output: Any) -> Tensor:
        return output.projection_state
