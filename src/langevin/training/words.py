"""New words that learn: their vectors alone are parameters, so that nothing else of an embedding table can move."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langevin.training.flags import BadFlags

_OBJECTS = [
    f"{kind} of {which}"
    for kind in (
        "a photo",
        "a good photo",
        "a dark photo",
        "a bright photo",
        "a close-up photo",
        "a picture",
        "an image",
    )
    for which in ("a", "the", "my", "one")
]
_STYLES = [f"a {how}{kind}" for how in ("", "small ", "large ", "dark ", "bright ") for kind in ("painting", "picture")]
TEMPLATES = {
    "object": [f"{beginning} {{}}" for beginning in _OBJECTS],
    "style": [f"{beginning} in the style of {{}}" for beginning in _STYLES],
}
"""What training pictures are said to show."""


def initial_vectors(tokenizer: Any, text_encoder: Any, word: str, count: int = 1, first: bool = False) -> Tensor:
    """``(count, dim)``: a known word's vector, for each vector of the new one.

    Args:
        first: of a word of several tokens, take the first one's.

    Raises:
        BadFlags: the word is not a single token.
    """
    tokens = tokenizer.encode(word, add_special_tokens=False)
    if len(tokens) != 1 and not (first and tokens):
        raise BadFlags(f"--initializer_token={word!r} is {len(tokens)} tokens; a word of a single one is needed")
    table = text_encoder.get_input_embeddings().weight
    return table[tokens[0]].detach().float().repeat(count, 1)


class NewWords(nn.Module):
    """The vectors of new words, whose rows are the last of a text encoder's embedding table.

    Args:
        vectors: ``(count, dim)``, what they begin as.
        text_encoder: its table has their rows already.
    """

    def __init__(self, vectors: Tensor, text_encoder: Any) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())
        self._table: list[nn.Embedding] = [text_encoder.get_input_embeddings()]  # a list, so that it is no part of this

    def forward(self) -> Tensor:
        return self.vectors

    @contextlib.contextmanager
    def spoken(self, vectors: Tensor) -> Iterator[None]:
        """Within it, the text encoder looks these vectors up for the words, with gradients."""
        table = self._table[0]
        first = len(table.weight) - len(vectors)

        def look_up(module: nn.Module, arguments: tuple[Tensor, ...], found: Tensor) -> Tensor:
            number = arguments[0] - first
            new = vectors.to(found.dtype)[number.clamp(min=0)]
            return torch.where((number >= 0).unsqueeze(-1), new, found)

        hook = table.register_forward_hook(look_up)
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def settle(self) -> None:
        """Write the vectors into the table."""
        weight = self._table[0].weight
        weight[len(weight) - len(self.vectors) :] = self.vectors.to(weight)


def add_words(pipe: Any, names: Sequence[str], known: Sequence[str]) -> NewWords:
    """Put new words of one vector each into a pipeline's tokenizer and text encoder, to be trained.

    Args:
        known: the words that they begin as; of each the first token.
    """
    pipe.text_encoder.float()
    begin = [initial_vectors(pipe.tokenizer, pipe.text_encoder, word, first=True) for word in known]
    pipe.load_textual_inversion([{name: one} for name, one in zip(names, begin, strict=True)])
    return NewWords(torch.cat(begin), pipe.text_encoder)


def save_words(names: Sequence[str], words: Any, folder: Path) -> None:
    """A file ``<word>.safetensors`` for each word, with its vector ``(dim,)``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, vector in zip(names, words.vectors.detach().cpu(), strict=True):
        save_file({name: vector.clone()}, folder / f"{name}.safetensors")


@torch.no_grad()
def load_words(names: Sequence[str], words: Any, folder: Path) -> None:
    """Put back what :func:`save_words` wrote."""
    words.vectors.copy_(torch.stack([load_file(folder / f"{name}.safetensors")[name] for name in names]))
