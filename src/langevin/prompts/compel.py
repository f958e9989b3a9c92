"""compel's prompt grammar, read into the tree of :mod:`langevin.prompts.tree`.

===================================  ====================================================================
``word+``, ``word---``               1.1 per plus, 0.9 per minus; no space in between
``(some words)++``, ``"some words"-``  the same for several words; brackets may nest, and factors multiply
``(some words)1.3``                  a number, right after the bracket or the quotation mark
``word.attend(1.3)``                 the same, written out; takes ``++`` or a number
``("a", "b").blend(0.7, 0.3)``       one embedding, mixed; weights made to sum to 1, unless ``no_normalize`` is last
``("a", "b").and(1, 0.5)``           embeddings one after the other, each with its weight; ``.add`` is the same
``\\(``, ``\\)``, ``\\"``                the characters themselves; before another sign, as in ``\\+``, the backslash
                                     stays in the text, but the sign is no operator
===================================  ====================================================================

What does not fit is text: an unbalanced bracket, a bracket with a sign in it that stands alone (``(a - b)1.3``) or
an ``=``, an operator with nothing before it. So is the rest of a word with a point in it (``v1.5+``). Only what compel
refuses too, or reads and then drops, is an error.

These rules were measured on compel 2.5 (Damian Stewart, https://github.com/damian0815/compel). The reader here is one
pass with a stack and remembers how brackets ended, so that its time is linear in the prompt's length.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from langevin.prompts.tree import And, Blend, Fragment, PromptSyntaxError, Text, finite

_UP, _DOWN = 1.1, 0.9
_MOST = 1e6
"""Weights grow up to this and no further, so that thousands of plus signs are not infinity."""
_MOST_SIGNS = 1000
"""More signs than this change nothing: 1.1 to that power is over ``_MOST``, and 0.9 to it is 0 in single precision."""

_SPACE = r" \t\n\r\x0b\x0c"
_SIGNS = r"()\",.+\-="
"""Characters with a meaning, as the inside of a regular expression's brackets."""
_BLANK = re.compile(rf"[{_SPACE}]*")
_FREE = re.compile(rf"[^{_SPACE}]+")
_WORD = re.compile(rf"(?:\\[{_SIGNS}]|[+\-](?![{_SPACE}{_SIGNS}]|\Z)|[^{_SPACE}{_SIGNS}])+")
_QUOTED = re.compile(r'"((?:\\"|[^"\n\r])*)"')
_NUMBER = r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+)|-?[0-9]+"
_WEIGHT = re.compile(r"(?P<signs>\++|-+)|(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_PLUSES = re.compile(r"(?P<signs>\++|-+)")
_ATTEND = re.compile(rf"[{_SPACE}]*\.attend[{_SPACE}]*\([{_SPACE}]*(?:{_WEIGHT.pattern})[{_SPACE}]*\)")
_SWAP = re.compile(rf"[{_SPACE}]*\.swap[{_SPACE}]*\(")
_NAME = r"[A-Za-z0-9_\-]+"
_LORA = re.compile(
    rf"(?:use|with)Lora[{_SPACE}]*\([{_SPACE}]*{_NAME}[{_SPACE}]*(?:,[{_SPACE}]*(?:{_NUMBER})[{_SPACE}]*)?\)"
)
_COMMA = re.compile(rf"[{_SPACE}]*,")
_COMPOSING = ("blend", "and", "add")
_COMPOSE = re.compile(rf"[{_SPACE}]*\)[{_SPACE}]*\.(?P<name>{'|'.join(_COMPOSING)})[{_SPACE}]*\([{_SPACE}]*")
_OPTION = re.compile(
    rf"[{_SPACE}]*(?:(?P<key>{_NAME}[{_SPACE}]*=[{_SPACE}]*(?:{_NUMBER}|{_NAME}))"
    rf"|(?P<number>{_NUMBER})|(?P<flag>{_NAME}))"
)
_CLOSE = re.compile(rf"[{_SPACE}]*\)")
_ESCAPED = re.compile(r'(?<!\\)\\+([()"])')  # from the run's first backslash on only, lest long runs be tried n times
_TIGHT_COMMA = re.compile(r",(\S)")


def parse_compel(prompt: str) -> And:
    """Read a prompt in compel's grammar.

    Args:
        prompt: any text.

    Returns:
        One :class:`Text` or :class:`Blend` in an :class:`And`, or several for ``.and()``. A prompt that uses nothing
        of the grammar is one fragment: the prompt itself, character for character. Otherwise words are separated by
        one blank, and neighbours of one weight are one fragment; ``start`` is where its first word stands.

    Raises:
        PromptSyntaxError: weights that do not fit their prompts, something after ``.blend()`` or ``.and()``,
            ``.swap()``, ``withLora()``.

    Example:
        >>> [(f.text, f.weight) for f in parse_compel("a (red cat)1.3").parts[0].fragments]
        [('a', 1.0), ('red cat', 1.3)]
    """
    return _Reader(prompt).read()


@dataclass
class _Group:
    """What is inside brackets or quotation marks, and the factor for all of it."""

    children: list[_Group | Fragment]
    factor: float = 1.0


@dataclass
class _Open:
    """Brackets that are being read: where they began, and what they hold so far."""

    start: int
    children: list[_Group | Fragment] = field(default_factory=list)


_Match = tuple[list[_Group | Fragment], int]
"""What brackets or quotation marks hold, and where the text goes on behind them."""


class _Reader:
    """One prompt while it is read. Positions are of ``text``, in which a blank follows every comma."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.inserted = [found.start() + 1 + n for n, found in enumerate(_TIGHT_COMMA.finditer(prompt))]
        self.text = _TIGHT_COMMA.sub(r", \1", prompt)
        self.brackets: dict[tuple[int, int], _Match | None] = {}
        self.quotes: dict[tuple[int, int], _Match | None] = {}
        self.plain = True  # nothing of the grammar was met so far

    def read(self) -> And:
        composed = self.composed()
        if composed is not None:
            return composed
        self.plain = True
        nodes = self.prompt_nodes(0, len(self.text))
        if self.plain:
            return And((Text((Fragment(self.prompt),)),), (1.0,))
        return And((Text(_fragments(nodes)),), (1.0,))

    def error(self, position: int, expected: str) -> PromptSyntaxError:
        return PromptSyntaxError(self.prompt, self.origin(position), expected)

    def origin(self, position: int) -> int:
        """Where in the prompt a position of ``text`` is: blanks put in before it do not count."""
        return position - bisect_left(self.inserted, position)

    def leaf(self, text: str, start: int) -> Fragment:
        shown = _ESCAPED.sub(r"\1", text)
        if shown != text:
            self.plain = False
        return Fragment(shown, start=self.origin(start))

    # --- a prompt without .blend and .and: constructs, and between them words that may hold anything

    def prompt_nodes(self, at: int, end: int) -> list[_Group | Fragment]:
        nodes: list[_Group | Fragment] = []
        while (at := self.skip(at, end)) < end:
            found = self.construct(at, end)
            if found is not None:
                self.plain = False
                nodes.append(found[0])
                at = found[1]
            else:
                free = _FREE.match(self.text, at, end)
                assert free is not None
                nodes.append(self.leaf(free[0], at))
                at = free.end()
        return nodes

    def construct(self, at: int, end: int) -> tuple[_Group, int] | None:
        """Brackets, quotation marks, or a word with an operator."""
        self.refuse_lora(at, end)
        if self.text[at] in '("':
            group = self.bracket(at, end) if self.text[at] == "(" else self.quoted(at, end)
            return None if group is None else self.weighed(*group, end)
        word = _WORD.match(self.text, at, end)
        if word is None:
            return None
        group_and_end = self.weighed([self.leaf(word[0], at)], word.end(), end, word=True)
        return group_and_end if group_and_end[1] > word.end() else None

    def weighed(
        self, children: list[_Group | Fragment], at: int, end: int, *, word: bool = False
    ) -> tuple[_Group, int]:
        """The group with the operator that follows it, if one does; a word takes no bare number."""
        if _SWAP.match(self.text, at, end):
            raise self.error(at, ".swap() is not supported; write the prompt that you want")
        operator = _PLUSES if word else _WEIGHT
        found = _ATTEND.match(self.text, at, end) or operator.match(self.text, at, end)
        return (_Group(children), at) if found is None else (_Group(children, _factor(found)), found.end())

    def refuse_lora(self, at: int, end: int) -> None:
        if _LORA.match(self.text, at, end):
            raise self.error(at, "withLora() is not supported in a prompt; load the LoRA with load_lora_weights")

    def skip(self, at: int, end: int) -> int:
        blank = _BLANK.match(self.text, at, end)
        assert blank is not None
        return blank.end()

    # --- the inside of brackets and quotation marks, where a character that fits nowhere spoils the whole

    def bracket(self, start: int, end: int) -> _Match | None:
        """The bracket that opens at ``start``, or None if what follows is not the inside of one."""
        if (start, end) not in self.brackets:
            self.brackets[start, end] = None  # until it is known better
            self.inside(start + 1, end, _Open(start))
        return self.brackets[start, end]

    def quoted(self, start: int, end: int) -> _Match | None:
        """The words between the quotation mark at ``start`` and the next, if they read like the inside of brackets."""
        if (start, end) not in self.quotes:
            found = _QUOTED.match(self.text, start, end)
            if found is None:
                self.quotes[start, end] = None
            elif not found[1].strip():
                self.quotes[start, end] = [self.leaf("", start + 1)], found.end()
            else:
                whole = self.inside(found.start(1), found.end(1), None)
                self.quotes[start, end] = None if whole is None else (whole, found.end())
        return self.quotes[start, end]

    def inside(self, at: int, end: int, opened: _Open | None) -> list[_Group | Fragment] | None:
        """Read to the end of the bracket ``opened``, or to ``end`` without one; note every bracket on the way.

        Returns what was read to ``end``, or None: for a bracket, whose contents are noted, and where text does not fit.
        """
        whole = _Open(at)
        stack = [whole] if opened is None else [opened]
        while True:
            at = self.skip(at, end)
            if at == end:
                if stack[-1] is whole:
                    return whole.children
                break
            sign = self.text[at]
            if sign == ")":
                if stack[-1] is whole:
                    break
                done = stack.pop()
                self.brackets[done.start, end] = (done.children, at + 1)
                if not stack:
                    return None
                group, at = self.weighed(done.children, at + 1, end)
                stack[-1].children.append(group)
            elif sign == "(" and (at, end) not in self.brackets:
                stack.append(_Open(at))
                at += 1
            elif sign in '("':
                known = self.brackets[at, end] if sign == "(" else self.quoted(at, end)
                if known is None:
                    break
                group, at = self.weighed(*known, end)
                stack[-1].children.append(group)
            elif sign in ",.":
                stack[-1].children.append(self.leaf(sign, at))
                at += 1
            else:
                self.refuse_lora(at, end)
                word = _WORD.match(self.text, at, end)
                if word is None:
                    break
                group, at = self.weighed([self.leaf(word[0], at)], word.end(), end, word=True)
                stack[-1].children.append(group)
        for never_closed in stack:
            if never_closed is not whole:
                self.brackets[never_closed.start, end] = None
        return None

    # --- ("a", "b").blend(…) and .and(…), which stand for a whole prompt

    def composed(self) -> And | None:
        end = len(self.text)
        start = self.skip(0, end)
        if self.text[start : start + 1] != "(" or not any(f".{name}" in self.text for name in _COMPOSING):
            return None
        parts: list[tuple[_Group | Fragment, ...]] = []
        at = start + 1
        while True:
            at = self.skip(at, end)
            target = self.target(at, end)
            if target is None:
                return None
            parts.append(tuple(target[0]))
            comma = _COMMA.match(self.text, target[1], end)
            if comma is None:
                break
            at = comma.end()
        operator = _COMPOSE.match(self.text, target[1], end)
        options = operator and self.options(operator.end(), end)
        if not operator or options is None:
            return None
        found, after = options
        rest = self.skip(after, end)
        if rest < end:
            self.refuse_lora(rest, end)
            raise self.error(rest, f"nothing may follow .{operator['name']}(); put the words into its prompts")
        return self.compose(operator, parts, found)

    def target(self, at: int, end: int) -> _Match | None:
        """One of the prompts in the brackets: in quotation marks, in brackets, or one word."""
        if self.text[at : at + 1] == '"':
            found = self.quoted(at, end)
            quoted = _QUOTED.match(self.text, at, end)
            if found is None and quoted is not None:  # then as a prompt, whose words may hold anything
                return self.prompt_nodes(quoted.start(1), quoted.end(1)), quoted.end()
            return found
        if self.text[at : at + 1] == "(":
            return self.bracket(at, end)
        word = _WORD.match(self.text, at, end)
        return None if word is None else ([self.leaf(word[0], at)], word.end())

    def options(self, at: int, end: int) -> tuple[list[re.Match[str]], int] | None:
        """What is in an operator's brackets, and where the text goes on."""
        found: list[re.Match[str]] = []
        option = _OPTION.match(self.text, at, end)
        while option is not None:
            found.append(option)
            at = option.end()
            comma = _COMMA.match(self.text, at, end)
            if comma is None:
                break
            at = comma.end()
            option = _OPTION.match(self.text, at, end)
            if option is None:
                return None  # a comma at the end
        close = _CLOSE.match(self.text, at, end)
        return None if close is None else (found, close.end())

    def compose(
        self, operator: re.Match[str], parts: list[tuple[_Group | Fragment, ...]], options: list[re.Match[str]]
    ) -> And:
        name = operator["name"]
        blend = name == "blend"
        normalise = True
        if blend and options and options[-1]["flag"] == "no_normalize":
            normalise = False
            options = options[:-1]
        weights = [self.composing_weight(option, blend) for option in options] or [1.0] * len(parts)
        if len(weights) != len(parts):
            raise self.error(
                operator.start("name"), f".{name}() has {len(weights)} weights for {len(parts)} prompts; give one each"
            )
        texts = [Text(_fragments(list(part))) for part in parts]
        if not blend:
            kept = [(text, weight) for text, weight in zip(texts, weights, strict=True) if text.fragments]
            kept = kept or [(Text(), 1.0)]
            return And(tuple(text for text, _ in kept), tuple(weight for _, weight in kept))
        if normalise and sum(weights) == 0:
            raise self.error(
                operator.end(), "the weights sum to 0, so they cannot be made to sum to 1; add no_normalize"
            )
        return And((Blend(tuple(texts), tuple(weights), normalise),), (1.0,))

    def composing_weight(self, option: re.Match[str], blend: bool) -> float:
        weight = math.inf if option["number"] is None else float(option["number"])
        if abs(weight) > _MOST:
            flags = "; the word no_normalize may come last" if blend else ""
            at = option.end() - len(option[0].strip())
            said = option[0].strip() if len(option[0]) < 40 else f"{option[0].strip()[:40]}…"
            raise self.error(at, f"{said!r} is no weight; numbers up to {_MOST:,.0f} are expected here{flags}")
        return weight


def _factor(operator: re.Match[str]) -> float:
    """What an operator multiplies by."""
    signs = operator["signs"]
    if signs is None:
        return finite(operator["number"])
    return float(math.pow(_UP if signs[0] == "+" else _DOWN, min(len(signs), _MOST_SIGNS)))


def _fragments(nodes: list[_Group | Fragment]) -> tuple[Fragment, ...]:
    """The leaves with their weights, neighbours of one weight joined."""
    runs: list[tuple[list[str], float, int]] = []
    for leaf in _leaves(nodes):
        if runs and runs[-1][1] == leaf.weight:
            runs[-1][0].append(leaf.text)
        else:
            runs.append(([leaf.text], leaf.weight, leaf.start))
    return tuple(Fragment(" ".join(texts), weight, start) for texts, weight, start in runs)


def _leaves(nodes: list[_Group | Fragment]) -> Iterator[Fragment]:
    """From left to right. No recursion: brackets may be nested thousands deep."""
    levels: list[tuple[Iterator[_Group | Fragment], float]] = [(iter(nodes), 1.0)]
    while levels:
        siblings, weight = levels[-1]
        node = next(siblings, None)
        if node is None:
            levels.pop()
        elif isinstance(node, Fragment):
            yield Fragment(node.text, weight, node.start)
        else:
            levels.append((iter(node.children), min(weight * node.factor, _MOST)))
