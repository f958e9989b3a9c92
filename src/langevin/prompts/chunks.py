"""A text of weighted fragments as tokens in windows of the encoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from langevin.prompts.encoder import PromptEncoder
from langevin.prompts.tree import Text

_COMMA_REACH = 20
"""How many tokens before the end of a chunk a1111 looks for a comma to part at."""
_LONG_WORD = 8
"""Words of at least so many tokens are parted by comfyui; shorter ones go to the next chunk whole."""


class Token(NamedTuple):
    """One token of a text: its id, its weight, and the numbers of its fragment and of its word."""

    id: int
    weight: float
    fragment: int
    word: int


Part = Callable[[Sequence[Token], PromptEncoder], int]
"""How many of the tokens, too many for one chunk, the next chunk takes: 1 to the encoder's room."""


@dataclass(frozen=True)
class Chunks:
    """A text's tokens, spread over windows of the encoder.

    Attributes:
        encoder: whose windows they are.
        tokens: those of each window, without beginning, end and padding. At least one window, which may be empty.
        weights: of each fragment.
        spans: first and last place of each fragment, counted through all windows with their marks and padding; None
            for fragments without a token in any.
        lost: the ids that did not fit, where only one window was allowed.
        without: the chunks of the same text without a fragment, given its number.
    """

    encoder: PromptEncoder
    tokens: tuple[tuple[Token, ...], ...]
    weights: tuple[float, ...]
    spans: tuple[tuple[int, int] | None, ...]
    lost: tuple[int, ...]
    without: Callable[[int], Chunks]

    @property
    def weighted(self) -> bool:
        """Whether any token weighs anything but 1."""
        return any(token.weight != 1 for chunk in self.tokens for token in chunk)

    def ids(self) -> Tensor:
        """``(chunks, window)``."""
        return torch.tensor([self.encoder.fill([token.id for token in chunk]) for chunk in self.tokens])

    def token_weights(self) -> Tensor:
        """``(chunks, window, 1)``; marks and padding weigh 1."""
        weights = torch.ones(len(self.tokens), self.encoder.window, 1)
        first = len(self.encoder.bos)
        for row, chunk in zip(weights, self.tokens, strict=True):
            row[first : first + len(chunk), 0] = torch.tensor([token.weight for token in chunk])
        return weights

    def mask(self) -> Tensor:
        """``(chunks, window)``, 0 at padding where the encoder is not to see it, else 1."""
        if not self.encoder.mask_padding:
            return torch.ones(len(self.tokens), self.encoder.window, dtype=torch.long)
        return self.filled().long()

    def filled(self) -> Tensor:
        """``(chunks, window)``, False at padding."""
        marks = len(self.encoder.bos) + len(self.encoder.eos)
        lengths = torch.tensor([len(chunk) + marks for chunk in self.tokens])
        return torch.arange(self.encoder.window) < lengths[:, None]


def chunk_text(
    encoder: PromptEncoder,
    text: Text,
    part: Part | None = None,
    *,
    cut: bool = False,
    words: Callable[[str], list[str]] = lambda text: [text],
) -> Chunks:
    """Tokens of a text in as many windows as it needs.

    Args:
        part: where to part what is too long for a window; :func:`part_at_sentence` if None.
        cut: one window, and the rest is ``lost``.
        words: the pieces in which a fragment is given to the tokenizer.
    """
    fragments = text.fragments
    pieces = [(k, piece) for k, fragment in enumerate(fragments) for piece in words(fragment.text)]
    # Blanks at the edges of a fragment are tokens to some tokenizers; a text that is one fragment is left as it is.
    all_ids = encoder.tokenise([piece if len(fragments) == 1 else piece.strip() for _, piece in pieces])
    tokens = [
        Token(id, fragments[k].weight, k, word)
        for word, ((k, _), ids) in enumerate(zip(pieces, all_ids, strict=True))
        for id in ids
    ]
    weights = tuple(fragment.weight for fragment in fragments)
    return _spread(encoder, tokens, weights, text.breaks, part or part_at_sentence, cut)


def _spread(
    encoder: PromptEncoder,
    tokens: Sequence[Token],
    weights: tuple[float, ...],
    breaks: Sequence[int],
    part: Part,
    cut: bool,
) -> Chunks:
    edges = [0, *breaks, len(weights)]
    chunks: list[tuple[Token, ...]] = []
    at = 0
    for first, last in itertools.pairwise(edges):
        start = at
        while at < len(tokens) and first <= tokens[at].fragment < last:
            at += 1
        rest = tokens[start:at]
        while len(rest) > encoder.room:
            size = encoder.room if cut else part(rest, encoder)
            chunks.append(tuple(rest[:size]))
            rest = rest[size:]
        chunks.append(tuple(rest))
    lost: tuple[int, ...] = ()
    if cut:
        lost = tuple(token.id for chunk in chunks[1:] for token in chunk)
        chunks = chunks[:1]

    def without(fragment: int) -> Chunks:
        kept = [token for token in tokens if token.fragment != fragment]
        return _spread(encoder, kept, weights, breaks, part, cut)

    return Chunks(encoder, tuple(chunks), weights, _spans(encoder, tokens, chunks, len(weights)), lost, without)


def _spans(
    encoder: PromptEncoder, tokens: Sequence[Token], chunks: Sequence[Sequence[Token]], fragments: int
) -> tuple[tuple[int, int] | None, ...]:
    spans: list[tuple[int, int] | None] = [None] * fragments
    sizes, kept = [0] * fragments, [0] * fragments
    for token in tokens:
        sizes[token.fragment] += 1
    for row, chunk in enumerate(chunks):
        for column, token in enumerate(chunk, row * encoder.window + len(encoder.bos)):
            known = spans[token.fragment]
            spans[token.fragment] = (known[0] if known else column, column)
            kept[token.fragment] += 1
    for k, span in enumerate(spans):
        # compel counts the end mark to a fragment that is cut short, if it would fit a window of its own
        if span and kept[k] < min(sizes[k], encoder.room):
            spans[k] = (span[0], encoder.window - 1)
    return tuple(spans)


def part_at_sentence(tokens: Sequence[Token], encoder: PromptEncoder) -> int:
    """compel's: after the last full stop that fits, else after the last ``, ; :``, else after the last word."""
    pieces = encoder.pieces([token.id for token in tokens[: encoder.room + 1]])
    ends = [k for k in range(encoder.room) if encoder.ends_word(pieces, k)]
    for signs in (".", ".,;:"):
        for k in reversed(ends):
            if pieces[k].removesuffix("</w>") in tuple(signs):
                return k + 1
    return ends[-1] + 1 if ends else encoder.room


def part_at_comma(tokens: Sequence[Token], encoder: PromptEncoder) -> int:
    """AUTOMATIC1111's: where the room ends, or after the last of its commas if that is near and the next is none."""
    pieces = [p.removesuffix("</w>") for p in encoder.pieces([token.id for token in tokens[: encoder.room + 1]])]
    if pieces[-1] != ",":
        for size in range(encoder.room, max(encoder.room - _COMMA_REACH, 0), -1):
            if pieces[size - 1] == ",":
                return size
    return encoder.room


def part_at_word(tokens: Sequence[Token], encoder: PromptEncoder) -> int:
    """ComfyUI's: before the word that does not fit, or through it if it is long."""
    word = tokens[encoder.room].word
    start = encoder.room
    while start and tokens[start - 1].word == word:
        start -= 1
    size = sum(token.word == word for token in tokens[start:])
    return encoder.room if size >= _LONG_WORD or not start else start
