"""The prompt grammars of the web UIs, read into the tree of :mod:`langevin.prompts.tree`.

AUTOMATIC1111's (``dialect="a1111"``), as its own examples show it:

- ``(word)`` weighs 1.1, ``((word))`` 1.1², ``[word]`` 1/1.1, ``(word:1.3)`` 1.3; what is nested multiplies.
- ``\\(``, ``\\)``, ``\\[``, ``\\]`` and ``\\\\`` are the characters themselves; any other backslash is dropped.
- ``BREAK`` in capitals ends a chunk of the encoder's window.
- A bracket that is never closed holds to the end; one that was never opened is a character.
- ``AND`` in capitals asks for a prediction of its own for each part, which embeddings cannot stand for: an error.

ComfyUI's (``dialect="comfyui"``) differs: square brackets, ``BREAK`` and ``AND`` are plain text, ``(word:1.3)``
inside other brackets weighs 1.3 whatever is around it, only round brackets can be escaped, and after a bracket that
is never closed everything is plain text.

Both read any text in time linear in its length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from langevin.prompts.tree import And, Fragment, PromptSyntaxError, Text, finite

DIALECTS = ("a1111", "comfyui")

_UP, _DOWN = 1.1, 1 / 1.1
_MOST = 1e6
"""Weights grow up to this and no further, so that thousands of brackets are not infinity."""

# \d+(\.\d*)? and not \d+\.?\d*, which would try each way of sharing a long run of digits
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_A1111 = re.compile(rf"\\[()\[\]\\]?|:\s*(?P<number>{_NUMBER})\s*\)|[()\[\]:]|[^\\()\[\]:]+")
_COMFYUI = re.compile(rf"\\[()]|:(?P<number>\s*{_NUMBER}(?:[eE][+-]?\d+)?\s*)\)|[()\\:]|[^\\():]+")
_BREAK = re.compile(r"\bBREAK\b\s*")  # with blanks before it, every run of blanks would be tried from each of them
_AND = re.compile(r"\bAND\b")

Piece = tuple[int, str, float]
"""Where a run of text begins in the prompt, the text, and its weight."""


def parse_webui(prompt: str, dialect: str = "a1111") -> And:
    """Read a prompt as a web UI does.

    Prompt editing (``[red:blue:0.4]``) is not part of this: :mod:`langevin.prompts.editing` comes before it.

    Args:
        prompt: any text. Brackets need not balance.
        dialect: ``"a1111"`` or ``"comfyui"``.

    Returns:
        One :class:`Text`, in an :class:`And` as every prompt is. Neighbours of one weight are one fragment, an empty
        chunk is one empty fragment.

    Raises:
        PromptSyntaxError: a1111's ``AND``.
        ValueError: there is no such dialect.

    Example:
        >>> [(f.text, f.weight) for f in parse_webui("a (red:1.3) cat").parts[0].fragments]
        [('a ', 1.0), ('red', 1.3), (' cat', 1.0)]
    """
    if dialect not in DIALECTS:
        raise ValueError(f"there is no web UI dialect {dialect!r}; there are: {', '.join(DIALECTS)}")
    if dialect == "comfyui":
        return And((_text([list(_comfyui(prompt))]),), (1.0,))
    if found := _AND.search(prompt):
        raise PromptSyntaxError(
            prompt,
            found.start(),
            "AND mixes predictions, not texts, and is not supported; for the plain word write it in small letters",
        )
    return And((_text(_chunks(_a1111(prompt))),), (1.0,))


def _a1111(prompt: str) -> Iterator[Piece]:
    """Runs of text with their weights. Round and square brackets are matched independently of each other."""
    tokens = list(_A1111.finditer(prompt))
    factors = _a1111_factors(tokens)
    weights: dict[str, list[float]] = {"round": [1.0], "square": [1.0]}  # of what is open, from the outside in
    for n, token in enumerate(tokens):
        said = token[0]
        if n not in factors:
            text = said[1:] if said[0] == "\\" else said
            yield token.start(), text, weights["round"][-1] * weights["square"][-1]
            continue
        kind = "square" if said in "[]" else "round"
        if said in "([":
            weights[kind].append(_bounded(weights[kind][-1] * factors[n]))
        else:
            weights[kind].pop()


def _a1111_factors(tokens: list[re.Match[str]]) -> dict[int, float]:
    """What each opening bracket multiplies by; closing ones that end something are listed too."""
    factors: dict[int, float] = {}
    opened: dict[str, list[int]] = {")": [], "]": []}
    for n, token in enumerate(tokens):
        said = token[0]
        if said in ("(", "["):
            closer, usual = (")", _UP) if said == "(" else ("]", _DOWN)
            opened[closer].append(n)
            factors[n] = usual
        elif said[-1] in opened and said[0] != "\\" and opened[said[-1]]:
            start = opened[said[-1]].pop()
            factors[n] = 1.0
            if token["number"]:
                factors[start] = finite(token["number"])
    return factors


def _comfyui(prompt: str) -> Iterator[Piece]:
    """Runs of text with their weights."""
    tokens = list(_COMFYUI.finditer(prompt))
    ends, opened, stray = {}, [], 0
    for n, token in enumerate(tokens):
        said = token[0]
        if said == "(" and stray:
            stray -= 1  # a stray closing bracket makes the next opening one stray too
        elif said == "(":
            opened.append(n)
        elif said[-1] == ")" and said[0] != "\\":
            if opened:
                ends[opened.pop()] = n
            else:
                stray += 1
    last = opened[0] if opened else len(tokens)  # from the first that stays open on, all is text
    closers = {end for start, end in ends.items() if start < last}

    weights = [1.0]
    for n, token in enumerate(tokens):
        said = token[0]
        if n < last and n in ends:
            closing = tokens[ends[n]]
            # without words before the colon there is nothing that the number could belong to
            number = closing["number"] if closing.start() > token.end() else None
            weights.append(_bounded(float(number) if number else weights[-1] * _UP))
        elif n in closers:
            if len(said) > 1 and tokens[n - 1][0] == "(":
                yield token.start(), said[:-1], weights[-1]
            weights.pop()
        else:
            yield token.start(), said[1:] if said in ("\\(", "\\)") else said, weights[-1]


def _chunks(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """The pieces between ``BREAK`` and ``BREAK``."""
    chunks: list[list[Piece]] = [[]]
    for start, text, weight in pieces:
        at = 0
        for found in _BREAK.finditer(text):
            chunks[-1].append((start + at, text[at : found.start()].rstrip(), weight))
            chunks.append([])
            at = found.end()
        chunks[-1].append((start + at, text[at:], weight))
    if len(chunks) > 1 and not any(text for _, text, _ in chunks[-1]):
        chunks.pop()  # nothing follows the last BREAK
    return chunks


def _text(chunks: list[list[Piece]]) -> Text:
    """Fragments of the chunks, neighbours of one weight joined."""
    fragments: list[Fragment] = []
    breaks = []
    for number, chunk in enumerate(chunks):
        if number:
            breaks.append(len(fragments))
        runs: list[tuple[int, list[str], float]] = []
        for start, text, weight in chunk:
            if not text:
                continue
            if runs and runs[-1][2] == weight:
                runs[-1][1].append(text)
            else:
                runs.append((start, [text], weight))
        fragments += [Fragment("".join(texts), weight, start) for start, texts, weight in runs]
        if not runs:
            fragments.append(Fragment("", start=chunk[0][0] if chunk else 0))
    return Text(tuple(fragments), tuple(breaks))


def _bounded(weight: float) -> float:
    return math.copysign(min(abs(weight), _MOST), weight)
