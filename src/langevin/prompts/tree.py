"""What a prompt means once its grammar is read: weighted fragments of text, and how several texts are put together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fragment:
    """Some words and how much they weigh; 1 is as written without any grammar. ``start`` is where they stand."""

    text: str
    weight: float = 1.0
    start: int = 0


@dataclass(frozen=True)
class Text:
    """One text for the encoder. ``breaks`` are the numbers of the fragments before which a new chunk begins."""

    fragments: tuple[Fragment, ...] = ()
    breaks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Blend:
    """Embeddings mixed into one: Σ weight·embedding, with weights made to sum to 1 if ``normalise``."""

    parts: tuple[Text | Blend, ...]
    weights: tuple[float, ...]
    normalise: bool = True


@dataclass(frozen=True)
class And:
    """Embeddings one after the other along the tokens, each times its weight. Every parsed prompt is one of these."""

    parts: tuple[Text | Blend, ...]
    weights: tuple[float, ...]


class PromptSyntaxError(ValueError):
    """A prompt that its grammar does not allow. The message shows the line with a caret under the character."""

    def __init__(self, prompt: str, position: int, expected: str) -> None:
        self.prompt, self.position, self.expected = prompt, position, expected
        begin = prompt.rfind("\n", 0, position) + 1
        line = prompt[begin:].split("\n", 1)[0]
        first = max(0, position - begin - 40)
        shown = line[first : first + 80]
        shown = shown.encode(errors="replace").decode()  # half a character could not be printed
        super().__init__(f"{expected}\n  {shown}\n  {' ' * (position - begin - first)}^")

    def __reduce__(self) -> tuple:  # errors are pickled by their message, and this one is made of other things
        return type(self), (self.prompt, self.position, self.expected)


def finite(number: str) -> float:
    """The number that digits spell; hundreds of them are no infinity, which times 0 would be no number."""
    return max(-1e300, min(float(number), 1e300))
