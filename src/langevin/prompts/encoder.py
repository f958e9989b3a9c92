"""One small interface over tokenizer and text encoder, whatever their kind: CLIP, T5, XLM-R or BERT."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from langevin.models.encoders.twin import twin
from langevin.prompts.textual_inversion import word_expander

_NO_LIMIT = 10**6
"""Tokenizers that know no window of their own name a number far above this."""

_HALF = re.compile("[\ud800-\udfff]")


class PromptEncoder:
    """Texts to tokens, and windows of tokens to embeddings.

    Args:
        tokenizer: of transformers.
        text_encoder: of transformers: CLIP's text model with or without projection, T5's encoder, XLM-R and its kin.
        window: tokens in one run of the encoder, those that mark beginning and end among them. The tokenizer's
            ``model_max_length`` if None.
        mask_padding: hide padding from the encoder's attention. If None: CLIP as its config's ``use_attention_mask``
            says (Stable Diffusion's models saw padding in training), all others yes.
        tokens_of: takes the tokens' embeddings, ``(windows, window, dim)``, out of what the encoder returns. Its
            ``last_hidden_state`` if None.

    Attributes:
        bos, eos: ids that begin and end every window; empty where the kind has none (T5 has no beginning).
        pad: id that fills windows; SD 2's is 0, which is "!".
        room: tokens of text that fit a window.

    Raises:
        ValueError: no window is given or known, or it leaves no room for text.
    """

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        *,
        window: int | None = None,
        mask_padding: bool | None = None,
        tokens_of: Callable[[Any], Tensor] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.tokenizer, self.text_encoder, self.device = tokenizer, text_encoder, device
        self.tokens_of = tokens_of or operator.attrgetter("last_hidden_state")
        self.window = window or tokenizer.model_max_length
        if self.window > _NO_LIMIT:
            raise ValueError("this tokenizer does not name its model_max_length; give the window's number of tokens")
        marks = tokenizer("").input_ids
        self.eos = marks[-1:]
        self.bos = marks[:-1]
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos[0]
        self.room = self.window - len(marks)
        if self.room < 1:
            raise ValueError(f"a window of {self.window} tokens leaves no room for text; at least {len(marks) + 1}")
        clip = text_encoder.config.model_type.startswith("clip")
        if mask_padding is None:
            mask_padding = bool(getattr(text_encoder.config, "use_attention_mask", False)) or not clip
        self.mask_padding = mask_padding

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, however long, without those of beginning and end. A learned word gets all of its tokens.

        Raises:
            ValueError: a text has half a character (a lone surrogate), which no tokenizer reads.
        """
        if not texts:
            return []
        for text in texts:
            if half := _HALF.search(text):
                where = f"U+{ord(half[0]):X} at place {half.start()}"
                raise ValueError(f"the text {text[:40]!a} has half a character, {where}; take it out")
        expanded = list(map(word_expander(self.tokenizer), texts))
        return self.tokenizer(expanded, add_special_tokens=False, truncation=False, verbose=False).input_ids

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """How the vocabulary spells each id, with the kind's mark of where words end or begin."""
        return self.tokenizer.convert_ids_to_tokens(list(ids))

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of some ids."""
        return self.tokenizer.decode(list(ids))

    def ends_word(self, pieces: Sequence[str], at: int) -> bool:
        """Whether a word ends with piece ``at``: CLIP marks the last piece of a word, T5 and XLM-R the first, BERT all
        but the first.
        """
        if pieces[at].endswith("</w>"):
            return True
        follows = pieces[at + 1] if at + 1 < len(pieces) else ""
        return follows.startswith("▁") or (self._joins and bool(follows) and not follows.startswith("##"))

    @functools.cached_property
    def _joins(self) -> bool:
        """Whether the vocabulary is BERT's, whose words go on with ``##``."""
        words = list(getattr(self.tokenizer, "get_vocab", dict)())
        return any(word.startswith("##") for word in words) and not any(word.endswith("</w>") for word in words)

    def fill(self, ids: Sequence[int]) -> list[int]:
        """A window of up to ``room`` ids: beginning, ids, end, padding."""
        filled = [*self.bos, *ids, *self.eos]
        return filled + [self.pad] * (self.window - len(filled))

    def embed(self, ids: Tensor, mask: Tensor | None = None, clip_skip: int | None = None) -> Tensor:
        """The embeddings of the tokens: the last hidden state, unless the encoder is read in another way.

        Args:
            ids: ``(windows, window)``.
            mask: the same shape, 0 where attention does not look; None to look everywhere.
            clip_skip: how many of the encoder's last layers to leave out; a final norm is applied all the same.

        Returns:
            ``(windows, window, dim)`` in the encoder's dtype.

        Raises:
            ValueError: if ``clip_skip`` leaves no layer.
        """
        return self.tokens_of(self.run(ids, mask, clip_skip))

    def run(self, ids: Tensor, mask: Tensor | None = None, clip_skip: int | None = None) -> Any:
        """All that the encoder gives for some windows; see :meth:`embed`."""
        encoder = self._shortened(clip_skip) if clip_skip is not None else self.text_encoder
        # to hand out states of its layers, transformers would put hooks into the encoder that stay there
        wordy = ("output_hidden_states", "output_attentions")
        quiet = {name: False for name in wordy if getattr(self.text_encoder.config, name, False)}
        return encoder(ids.to(self.device), attention_mask=None if mask is None else mask.to(self.device), **quiet)

    def _shortened(self, clip_skip: int) -> Any:
        """The encoder without its last layers."""
        layers = self.text_encoder.config.num_hidden_layers
        if not 0 <= clip_skip <= layers:
            raise ValueError(
                f"clip_skip is {clip_skip}; this text encoder has {layers} layers, so 0 to {layers} are allowed"
            )
        if clip_skip == 0:
            return self.text_encoder
        for name, module in self.text_encoder.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == layers:
                return twin(self.text_encoder, {name.removeprefix("_orig_mod."): module[: layers - clip_skip]})
        raise ValueError(f"clip_skip is {clip_skip}; a {type(self.text_encoder).__name__} has no layers to leave out")
