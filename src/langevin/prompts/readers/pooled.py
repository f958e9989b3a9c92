"""CLIP's text model with a vector for the prompt as a whole beside its tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from langevin.models.encoders.twin import Watched, twin
from langevin.prompts.encoder import PromptEncoder
from langevin.prompts.readers.base import TextReader


class PooledReader(TextReader):
    """Texts to tokens, and the vector at the mark of the prompt's end: ``"text_embeds"``, projected to where pictures
    are too (of a ``CLIPTextModelWithProjection``), or ``"pooler_output"`` (of a ``CLIPTextModel``).

    The vector is that of the prompt's first window, whatever its words weigh; ``.blend()`` mixes vectors as it mixes
    tokens, of ``.and()`` the first part counts, and ``clip_skip`` leaves it alone.

    Args:
        normed: take the tokens behind the encoder's final norm. The latent upscaler takes them before it.
        more: see :class:`~langevin.prompts.readers.base.TextReader`.

    Example:
        >>> outputs = {"hidden": "tokens", "embeds": "text_embeds", "mask": "filled"}
        >>> reading = PooledReader(pipe.tokenizer, pipe.text_encoder, outputs=outputs).read("a red circle")
    """

    outputs = {"encoder_hidden_states": "tokens", "text_embeds": "text_embeds"}

    def __init__(self, tokenizer: Any, text_encoder: Any, *, normed: bool = True, **more: Any) -> None:
        super().__init__(tokenizer, text_encoder, **more)
        self.normed = normed

    def encoder(self, most: int | None = None) -> PromptEncoder:
        encoder = super().encoder(most)
        text_encoder = _with_end(self.text_encoder, self.tokenizer.eos_token_id)
        if not self.normed:
            name = next(n for n, _ in text_encoder.named_modules() if n.endswith("final_layer_norm"))
            watched = Watched(text_encoder.get_submodule(name))
            text_encoder = twin(text_encoder, {name: watched})
            encoder.tokens_of = lambda output: watched.given
        encoder.text_encoder = text_encoder
        return encoder


def _with_end(text_encoder: Any, end: int) -> Any:
    """A text encoder that knows the mark of a prompt's end. Old configs say 2 for it; transformers then takes the
    highest number for the mark, which a learned word's may be.
    """
    text_encoder = getattr(text_encoder, "_orig_mod", text_encoder)
    for name, module in text_encoder.named_modules():
        if getattr(module, "eos_token_id", end) == 2 != end:
            knowing = twin(module, {})
            knowing.eos_token_id = end
            return twin(text_encoder, {name: knowing})
    return text_encoder


class AlignedReader(PooledReader):
    """Every token projected to where pictures are too, and divided by the length of the prompt's vector: what Versatile
    Diffusion is told (Xu, Wang, Zhang, Wang & Shi 2022, 2211.08332). Of a ``CLIPTextModelWithProjection``.
    """

    outputs = {"encoder_hidden_states": "tokens"}

    def tokens_of(self, output: Any) -> Tensor:
        tokens = self.text_encoder.text_projection(output.last_hidden_state)
        return tokens / output.text_embeds.norm(dim=-1)[:, None, None]
