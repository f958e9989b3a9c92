"""From a prompt's tree to embeddings: what weights, ``.blend()`` and ``.and()`` do to what the encoder gives.

With z the embedding of a token, z₀ the one at the same place of the empty prompt, w the token's weight, there are
three arithmetics:

- compel:  z₀ + w·(z - z₀); and for every fragment with w < 1 the result is drawn towards that of the prompt from
  which the fragment is hidden: tan((1 - w)·π/2) parts of it to one part of the prompt itself.
- a1111:   w·z, then each chunk is scaled so that its mean is what it was.
- comfyui: z₀ + w·(z - z₀).

They differ also in where a long text is parted (:mod:`langevin.prompts.chunks`). Sources: compel 2.5 as measured;
for the other two, what AUTOMATIC1111's stable-diffusion-webui 1.10 and ComfyUI are known to compute.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from langevin.prompts.chunks import Chunks, Part, chunk_text, part_at_comma, part_at_sentence, part_at_word
from langevin.prompts.compel import parse_compel
from langevin.prompts.encoder import PromptEncoder
from langevin.prompts.tree import And, Blend, Fragment, Text

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 16
"""Windows with something hidden that are encoded in one go: hundreds of weights must not fill the memory."""
_LEAST_WEIGHT = 1e-5
"""Smaller weights are taken for this in tan((1 - w)·π/2), which is infinite at w = 0. compel's number."""


class Embedded(NamedTuple):
    """What the encoder says of one prompt.

    Attributes:
        tokens: ``(1, windows · window, dim)``.
        filled: ``(1, windows · window)``, False at padding.
        vectors: of the prompt as a whole, ``(1, dim)`` each, by their names in the encoder's output. They are those of
            the first window, and weights of words do not change them: one vector has no place of its own for each
            word. ``.blend()`` mixes them as it does the tokens; of ``.and()`` the first part counts.
    """

    tokens: Tensor
    filled: Tensor
    vectors: dict[str, Tensor]


class Encoding:
    """The encoder in one call: with its ``clip_skip``, and the empty prompt encoded once, when first needed.

    Args:
        vectors: what is wanted of the encoder's output besides tokens. The last layers are never left out for them.
    """

    def __init__(self, encoder: PromptEncoder, clip_skip: int | None = None, vectors: Sequence[str] = ()) -> None:
        self.encoder, self.clip_skip, self.vectors = encoder, clip_skip, vectors

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.encoder.embed(ids, self._seen(mask), self.clip_skip)

    def whole(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens as by calling this, and the vectors of each window."""
        if not self.vectors:
            return self(ids, mask), {}
        output = self.encoder.run(ids, self._seen(mask))
        tokens = self(ids, mask) if self.clip_skip else self.encoder.tokens_of(output)
        return tokens, {name: getattr(output, name) for name in self.vectors}

    def _seen(self, mask: Tensor) -> Tensor | None:
        return None if not self.encoder.mask_padding and bool(mask.all()) else mask

    @functools.cached_property
    def empty(self) -> Tensor:
        """The empty prompt, ``(1, window, dim)``."""
        nothing = chunk_text(self.encoder, Text())
        return self(nothing.ids(), nothing.mask())

    @functools.cached_property
    def empty_filled(self) -> Tensor:
        """Where the empty prompt is not padding, ``(1, window)``."""
        return chunk_text(self.encoder, Text()).filled()

    def padded(self, embeds: Tensor, tokens: int) -> Tensor:
        """``(batch, any, dim)`` made ``tokens`` long with empty prompts, if whole windows are missing."""
        return self._longer(embeds, tokens, lambda: self.empty)

    def padded_filled(self, filled: Tensor, tokens: int) -> Tensor:
        """The same for ``(batch, any)`` of :attr:`Embedded.filled`."""
        return self._longer(filled, tokens, lambda: self.empty_filled)

    def _longer(self, value: Tensor, tokens: int, empty: Callable[[], Tensor]) -> Tensor:
        missing, part = divmod(tokens - value.shape[1], self.encoder.window)
        if missing < 1 or part:
            return value
        more = empty().to(value)
        return torch.cat([value, *[more.expand(value.shape[0], *more.shape[1:])] * missing], dim=1)


Weigh = Callable[[Tensor, Chunks, Encoding], Tensor]
"""``(chunks, window, dim)`` as encoded -> the same with weights applied."""


class Arithmetic(NamedTuple):
    """What weights do, where long texts are parted, and the pieces in which a fragment is given to the tokenizer."""

    weigh: Weigh
    part: Part
    words: Callable[[str], list[str]] = lambda text: [text]


class Grammar(NamedTuple):
    """One choice of ``prompt_weighting``: how a prompt is read, and what its weights do."""

    parse: Callable[[str], And]
    arithmetic: Arithmetic


def weigh_from_empty(z: Tensor, chunks: Chunks, encode: Encoding) -> Tensor:
    """ComfyUI's: z₀ + w·(z - z₀)."""
    return _from_empty(z, chunks.token_weights(), encode) if chunks.weighted else z


def _from_empty(z: Tensor, w: Tensor, encode: Encoding) -> Tensor:
    w = w.to(z)
    return torch.where(w == 1, z, encode.empty + w * (z - encode.empty))  # tokens that weigh 1 stay exact


def weigh_keeping_mean(z: Tensor, chunks: Chunks, encode: Encoding) -> Tensor:
    """AUTOMATIC1111's: w·z, then the mean of each chunk made what it was.

    The web UI takes the mean over all prompts that it encodes together; here it is each prompt's own, as if it were
    alone, so that a picture does not depend on its neighbours.
    """
    if not chunks.weighted:
        return z
    heavy = z.float() * chunks.token_weights().to(z.device)
    before, after = z.float().mean((1, 2), keepdim=True), heavy.mean((1, 2), keepdim=True)
    return (heavy * torch.where(after == 0, 1, before / after)).to(z.dtype)


def weigh_and_hide(
    z: Tensor, chunks: Chunks, encode: Encoding, downweight: Literal["mask", "remove"] = "mask"
) -> Tensor:
    """compel's: z₀ + w·(z - z₀), and what weighs less than 1 draws the result towards the prompt without it.

    Args:
        downweight: "mask" hides the words from attention; "remove" takes them out, and those behind move up.
    """
    base = weigh_from_empty(z, chunks, encode)
    light = [k for k, span in enumerate(chunks.spans) if span is not None and chunks.weights[k] < 1]
    if not light:
        return base
    parts = [math.tan((1 - max(chunks.weights[k], _LEAST_WEIGHT)) * math.pi / 2) for k in light]
    shares = [part / (1 + sum(parts)) for part in parts]
    mixed = base.float().clone()
    if downweight == "mask":
        for k, row, hidden in _hidden(light, chunks, encode):
            mixed[row] += shares[k] * (hidden - base[row]).float()
        return mixed.to(z.dtype)
    for share, k in zip(shares, light, strict=True):
        fewer = chunks.without(k)
        removed = weigh_from_empty(encode(fewer.ids(), fewer.mask()), fewer, encode)
        windows = torch.cat([removed, *[encode.empty] * (len(base) - len(removed))])[: len(base)]
        mixed += share * (windows - base).float()
    return mixed.to(z.dtype)


def _hidden(light: Sequence[int], chunks: Chunks, encode: Encoding) -> Iterator[tuple[int, int, Tensor]]:
    """Each chunk with each of the ``light`` fragments in it hidden: the place in ``light``, the row, the embeddings."""
    window = chunks.encoder.window
    ids, weights, seen = chunks.ids(), chunks.token_weights(), chunks.mask()
    jobs = []
    for place, k in enumerate(light):
        first, last = chunks.spans[k] or (0, -1)
        for row in range(first // window, last // window + 1):
            mask = seen[row].clone()
            mask[max(first - row * window, 0) : last + 1 - row * window] = 0
            if not chunks.lost:  # of a fragment that goes on in the next chunk, the window's edges stay seen
                mask[0], mask[-1] = seen[row, 0], seen[row, -1]
            jobs.append((place, row, mask))
    for start in range(0, len(jobs), _ROWS_AT_ONCE):
        places, rows, masks = zip(*jobs[start : start + _ROWS_AT_ONCE], strict=True)
        z = _from_empty(encode(ids[list(rows)], torch.stack(masks)), weights[list(rows)], encode)
        yield from zip(places, rows, z, strict=True)


def grammar(name: str) -> Grammar:
    """One of ``GRAMMARS``.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in GRAMMARS:
        raise ValueError(f"prompt_weighting is {name!r}; allowed: {', '.join(map(repr, GRAMMARS))}")
    return GRAMMARS[name]


def embed_trees(encode: Encoding, trees: Sequence[And], arithmetic: Arithmetic, *, cut: bool = False) -> list[Tensor]:
    """Embeddings of each prompt, ``(1, windows · window, dim)``; see :func:`encode_trees`."""
    return [embedded.tokens for embedded in encode_trees(encode, trees, arithmetic, cut=cut)]


def encode_trees(
    encode: Encoding, trees: Sequence[And], arithmetic: Arithmetic, *, cut: bool = False
) -> list[Embedded]:
    """Each prompt, encoded; all of them go through the encoder together.

    Args:
        cut: give each text one window, and name the words lost in a warning.
    """
    places = {tree: place for place, tree in enumerate(dict.fromkeys(trees))}
    if len(places) < len(trees):  # the same negative prompt for many pictures, say
        made = encode_trees(encode, list(places), arithmetic, cut=cut)
        return [made[places[tree]] for tree in trees]
    texts = [text for tree in trees for text in _texts(tree)]
    encoder = encode.encoder
    all_chunks = [chunk_text(encoder, t, arithmetic.part, cut=cut, words=arithmetic.words) for t in texts]
    for chunks in all_chunks:
        if chunks.lost:
            lost = encoder.decode(chunks.lost)
            logger.warning("The prompt is longer than the text encoder's %d tokens; not seen: %r", encoder.window, lost)
    if not texts:
        return []
    z, vectors = encode.whole(torch.cat([c.ids() for c in all_chunks]), torch.cat([c.mask() for c in all_chunks]))
    sizes = [len(chunks.tokens) for chunks in all_chunks]
    firsts = [sum(sizes[:k]) for k in range(len(sizes))]
    embedded = (
        Embedded(
            arithmetic.weigh(rows, chunks, encode).flatten(0, 1)[None],
            chunks.filled().flatten()[None],
            {name: vector[first : first + 1] for name, vector in vectors.items()},
        )
        for rows, first, chunks in zip(z.split(sizes), firsts, all_chunks, strict=True)
    )
    return [_combined(tree, embedded, encode) for tree in trees]


def _texts(tree: And | Blend | Text) -> Iterator[Text]:
    if isinstance(tree, Text):
        yield tree
    else:
        for part in tree.parts:
            yield from _texts(part)


def _combined(tree: And | Blend | Text, embedded: Iterator[Embedded], encode: Encoding) -> Embedded:
    """A tree, whose texts come in order."""
    if isinstance(tree, Text):
        return next(embedded)
    parts = [_combined(part, embedded, encode) for part in tree.parts]
    if isinstance(tree, And):
        lighter = [
            part.tokens
            if weight == 1
            else torch.lerp(encode.padded(encode.empty, part.tokens.shape[1]), part.tokens, weight)
            for part, weight in zip(parts, tree.weights, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]._replace(tokens=lighter[0])
        return Embedded(torch.cat(lighter, 1), torch.cat([part.filled for part in parts], 1), parts[0].vectors)
    total = sum(tree.weights) if tree.normalise else 1
    longest = max(part.tokens.shape[1] for part in parts)

    def mixed(tensors: Sequence[Tensor]) -> Tensor:
        shares = zip(tensors, tree.weights, strict=True)
        return torch.stack([tensor * (weight / total) for tensor, weight in shares]).sum(0)

    return Embedded(
        mixed([encode.padded(part.tokens, longest) for part in parts]),
        torch.stack([encode.padded_filled(part.filled, longest) for part in parts]).any(0),
        {name: mixed([part.vectors[name] for part in parts]) for name in parts[0].vectors},
    )


def _literal(prompt: str) -> And:
    return And((Text((Fragment(prompt),)),), (1.0,))


def _webui(dialect: str) -> Callable[[str], And]:
    def parse(prompt: str) -> And:
        from langevin.prompts.webui import parse_webui

        return parse_webui(prompt, dialect)

    return parse


def _blank_separated(text: str) -> list[str]:
    return [word for word in text.replace("\n", " ").split(" ") if word]


_COMPEL = Arithmetic(weigh_and_hide, part_at_sentence)

GRAMMARS: dict[str, Grammar] = {
    "compel": Grammar(parse_compel, _COMPEL),
    "a1111": Grammar(_webui("a1111"), Arithmetic(weigh_keeping_mean, part_at_comma)),
    "comfyui": Grammar(_webui("comfyui"), Arithmetic(weigh_from_empty, part_at_word, _blank_separated)),
    "none": Grammar(_literal, _COMPEL),
}
"""The choices of ``prompt_weighting``."""
