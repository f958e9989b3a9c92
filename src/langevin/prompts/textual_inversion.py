"""Learned words: textual-inversion embeddings (Gal et al. 2022, 2208.01618) under names that prompts can use.

A word of one vector is one new token of the tokenizer and one new row of the text encoder's embedding table. A word of
n vectors is n tokens, ``<cat>``, ``<cat>_1``, …, ``<cat>_{n-1}``; prompts say ``<cat>`` and :func:`expand_words`
puts the others after it. Names and ids are those of the reference, so pipelines saved here work there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.checkpoints import folders, small, weights
from langevin.checkpoints.errors import CheckpointError

logger = logging.getLogger(__name__)

FILE_STEM = "learned_embeds"
"""The reference's name for a file of learned words, before ``.safetensors`` or ``.bin``."""

Source = str | os.PathLike | Mapping[str, Any] | Tensor


def expand_words(tokenizer: Any, text: str) -> str:
    """The text with every learned word of several vectors followed by its other tokens.

    ``"a <cat>!"`` becomes ``"a <cat> <cat>_1!"`` where ``<cat>`` has two vectors. Text that is expanded already, or
    names no such word, comes back as it is. A word is found wherever the tokenizer finds it, inside others too. Where a
    grammar gives weights to parts of a prompt, expand the parts, so that all of a word's tokens have its weight.
    """
    return word_expander(tokenizer)(text)


def word_expander(tokenizer: Any) -> Callable[[str], str]:
    """:func:`expand_words` for many texts: what the tokenizer knows is looked up once."""
    added = tokenizer.added_tokens_encoder
    words = {word: _parts(word, added) for word in added if f"{word}_1" in added}
    if not words:
        return str
    # CLIP's tokenizers read small and capital letters as the same
    any_case = any(tokenizer.tokenize(word.swapcase()) == [word] for word in words if word != word.swapcase())
    fold = str.lower if any_case else str
    whole = {fold(word): " ".join(parts) for word, parts in words.items()}
    names = sorted({part for parts in words.values() for part in parts}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names)), re.IGNORECASE if any_case else 0)

    def expanded(found: re.Match[str]) -> str:
        word = fold(found[0])
        follows = f" {word}_1"
        after = found.string[found.end() : found.end() + len(follows)]
        return found[0] if word not in whole or fold(after) == follows else whole[word]

    return lambda text: pattern.sub(expanded, text)


def _parts(word: str, known: Mapping[str, Any]) -> list[str]:
    """The tokens of a word: itself, and those that are numbered after it."""
    parts = [word]
    while f"{word}_{len(parts)}" in known:
        parts.append(f"{word}_{len(parts)}")
    return parts


class TextualInversionLoaderMixin:
    """Learned words for pipelines with a ``tokenizer`` and a ``text_encoder``."""

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Source | list[Source],
        token: str | list[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        **kwargs: Any,
    ) -> None:
        """Teach the pipeline words.

        Known formats: the reference's ``{"<cat>": vectors}``; AUTOMATIC1111's ``.pt`` with ``string_to_param`` and
        ``name``, and its ``{"emb_params": vectors}``, whose word is the file's name. ``vectors`` is ``(dim,)`` or
        ``(n, dim)``. Nothing in a file is ever run.

        Args:
            pretrained_model_name_or_path: a file; a folder or hub id with ``learned_embeds.safetensors`` or ``.bin``;
                a dict as the files have it; the vectors themselves; or a list of these.
            token: the word, instead of the one in the file; a list for a list. A list of n words for one tensor of n
                vectors gives each word one vector.
            tokenizer, text_encoder: instead of the pipeline's own, for pipelines with several.
            kwargs: ``weight_name`` (the file in a folder or on the hub), ``subfolder``, ``use_safetensors``,
                ``hf_token``, and the other options of :func:`langevin.checkpoints.folders.resolve`.

        Raises:
            ValueError: a word that is taken, vectors of another width than the encoder's, or arguments that do not fit
                together. Nothing is changed then.
            CheckpointError: there is no such file, or it is damaged or holds more than tensors.

        Example:
            >>> pipe.load_textual_inversion("./cat-toy.pt", token="<cat-toy>")
            >>> pipe("a <cat-toy>++ on a shelf")
        """
        tokenizer, text_encoder = self._speaking_parts("load_textual_inversion", tokenizer, text_encoder)
        sources = _listed(pretrained_model_name_or_path)
        words = _listed(token)
        if words == [None]:
            words = [None] * len(sources)
        if len(sources) > 1 and len(sources) != len(words):
            raise ValueError(f"{len(sources)} embeddings and {len(words)} tokens given; give one token for each")
        named = [word for word in words if word is not None]
        if len(set(named)) < len(named):
            raise ValueError(f"the tokens {named} contain duplicates; each word needs a name of its own")
        where = {name: kwargs.pop(name, None) for name in ("weight_name", "subfolder", "use_safetensors")}
        if "hf_token" in kwargs:
            kwargs["token"] = kwargs.pop("hf_token")
        hub = folders.take_options(kwargs)
        if kwargs:
            raise TypeError(f"load_textual_inversion() got unexpected arguments: {', '.join(kwargs)}")
        loaded = [_load(source, hub, **where) for source in sources]
        if len(loaded) == 1 and len(words) > 1:
            loaded = _one_each(loaded[0], words)

        vocabulary = tokenizer.get_vocab()
        width = text_encoder.get_input_embeddings().weight.shape[-1]
        learned: dict[str, Tensor] = {}
        for (own, vectors), given in zip(loaded, words, strict=True):
            word = own if given is None else given
            if given is not None and own not in (None, given):
                logger.info("The word %r is learned under the name %r.", own, given)
            for part, vector in _named(word, vectors, width).items():
                if part in vocabulary or part in learned:
                    raise ValueError(
                        f"Token {part} is already in the tokenizer's vocabulary; give another name with token=…, or "
                        "remove the word with unload_textual_inversion"
                    )
                learned[part] = vector
            base, _, number = str(word).rpartition("_")
            part_of_another = number.isdigit() and (base in tokenizer.added_tokens_encoder or base in learned)
            if f"{word}_1" in vocabulary or part_of_another:
                raise ValueError(
                    f"Token {word} would be mixed up with a part of a multi-vector word; give another name with token=…"
                )
        with at_home(self):
            _add(tokenizer, text_encoder, learned)

    def unload_textual_inversion(
        self, tokens: str | list[str] | None = None, tokenizer: Any = None, text_encoder: Any = None
    ) -> None:
        """Forget learned words, all of them or those named; a word of several vectors goes as a whole.

        Raises:
            ValueError: none of the named words is there.
        """
        tokenizer, text_encoder = self._speaking_parts("unload_textual_inversion", tokenizer, text_encoder)
        added = {t.content: n for n, t in tokenizer.added_tokens_decoder.items() if not t.special}
        named = list(added) if not tokens else [part for word in _listed(tokens) for part in _parts(word, added)]
        gone = {word: added[word] for word in named if word in added}
        if tokens and not gone:
            raise ValueError(f"No tokens to remove found: {tokens}; learned are: {', '.join(added) or 'none'}")
        if gone:
            with at_home(self):
                _remove(tokenizer, text_encoder, gone)

    def maybe_convert_prompt(self, prompt: str | list[str], tokenizer: Any) -> Any:
        """The prompt or prompts with learned words expanded; see :func:`expand_words`."""
        if isinstance(prompt, list):
            return [expand_words(tokenizer, text) for text in prompt]
        return expand_words(tokenizer, prompt)

    def _speaking_parts(self, method: str, tokenizer: Any, text_encoder: Any) -> tuple[Any, Any]:
        tokenizer = tokenizer if tokenizer is not None else getattr(self, "tokenizer", None)
        text_encoder = text_encoder if text_encoder is not None else getattr(self, "text_encoder", None)
        for name, part in (("tokenizer", tokenizer), ("text_encoder", text_encoder)):
            if part is None:
                raise ValueError(f"{type(self).__name__} has no {name}; {method} requires one: pass {name}=…")
        return tokenizer, text_encoder


# -- reading


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _load(source: Source, hub: dict[str, Any], **where: Any) -> tuple[str | None, Tensor]:
    """The word that a source names, if it does, and its vectors."""
    if isinstance(source, Tensor):
        return None, source
    stem, held = None, source
    if not isinstance(source, Mapping):
        path = small.find(source, [FILE_STEM], hub, **where)
        stem, held = path.stem, _read(path)
        if isinstance(held, Tensor):
            return stem, held
    return _entry(dict(held), stem)  # type: ignore[arg-type]  # a mapping by now


def _entry(held: dict[str, Any], stem: str | None) -> tuple[str | None, Any]:
    """The word and vectors in a dict of any of the known formats; ``stem`` is the file's name, where there is one."""
    if "string_to_param" in held:
        params = held["string_to_param"]
        params = dict(params.named_parameters()) if isinstance(params, nn.Module) else dict(params)
        return held.get("name") or stem, params.get("*")
    tensors = [name for name, value in held.items() if isinstance(value, Tensor)]
    if tensors == ["emb_params"]:
        return stem, held["emb_params"]
    if len(held) != 1 or len(tensors) != 1:
        names = ", ".join(map(str, list(held)[:6])) or "nothing"
        hint = "; give one of them, such as state_dict['clip_l'] with token=…" if "clip_l" in held else ""
        raise ValueError(f"a file of a learned word has a single entry, or 'string_to_param'; this has {names}{hint}")
    return tensors[0], held[tensors[0]]


def _read(path: Path) -> Any:
    """What a file holds. Pickles may hold tensors and plain values only."""
    if path.suffix == ".safetensors":
        return weights.read([path])
    # the first textual inversions kept their vectors in one of these: a container, with no code of its own to run
    allow = getattr(torch.serialization, "safe_globals", None)
    try:
        with allow([nn.ParameterDict]) if allow else contextlib.nullcontext():
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise whatever they like
        code = re.search(r"(?:GLOBAL|global) (\S+)", str(error)) if "nsupported" in str(error) else None
        why = f"holds Python code ({code[1]}) besides tensors" if code else "is damaged, or no file of tensors"
        raise CheckpointError(f"{path} {why}, and is not opened; ask for a .safetensors file.") from None
    if not isinstance(held, (Mapping, Tensor)):
        raise CheckpointError(f"{path} holds a {type(held).__name__}; a learned word is a tensor or a dict.")
    return held


def _one_each(loaded: tuple[str | None, Tensor], words: list[str]) -> list[tuple[str | None, Tensor]]:
    """One tensor of n vectors for n words, taken apart."""
    vectors = loaded[1]
    count = len(vectors) if vectors.ndim == 2 else 1
    if count != len(words):
        raise ValueError(f"{count} vectors and {len(words)} tokens given; give one token for each vector")
    return [(None, vector) for vector in vectors]


def _named(word: str | None, vectors: Any, width: int) -> dict[str, Tensor]:
    """The tokens of a word, and the vector of each."""
    if not word:
        raise ValueError("this embedding has no name of its own; give the word it stands for with token=…")
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or vectors.numel() == 0:
        what = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ValueError(f"the embedding of {word} is {what}; (dim,) or (vectors, dim) is needed")
    if vectors.shape[-1] != width:
        raise ValueError(
            f"the embedding of {word} has width {vectors.shape[-1]}, and this text encoder's are {width} wide; it was "
            "learned for another model"
        )
    rows = vectors.detach().reshape(-1, width)
    return {word if n == 0 else f"{word}_{n}": row for n, row in enumerate(rows)}


# -- tokenizer and text encoder


@contextlib.contextmanager
def at_home(pipeline: Any):
    """With a pipeline's networks on the CPU if they are offloaded, and offloaded again after."""
    device = getattr(pipeline, "_offload_device", None)
    if device is None:
        yield
        return
    again = pipeline.enable_model_cpu_offload if pipeline.__dict__.get("_hooks") else None
    again = again or pipeline.enable_sequential_cpu_offload
    pipeline.remove_all_hooks()
    try:
        yield
    finally:
        again(device=device)


def _add(tokenizer: Any, text_encoder: Any, learned: Mapping[str, Tensor]) -> None:
    text_encoder.resize_token_embeddings(len(tokenizer) + len(learned), mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight
    for word, vector in learned.items():
        tokenizer.add_tokens(word)
        table.data[tokenizer.convert_tokens_to_ids(word)] = vector.to(table.device, table.dtype)


def _remove(tokenizer: Any, text_encoder: Any, gone: Mapping[str, int]) -> None:
    """Take tokens out; those after them move up, in the tokenizer and in the table."""
    removed = sorted(gone.values())

    def moved(index: int) -> int:
        return index - sum(other < index for other in removed)

    if hasattr(tokenizer, "_tokenizer"):
        from tokenizers import Tokenizer

        state = json.loads(tokenizer._tokenizer.to_str())
        kept = [entry for entry in state["added_tokens"] if entry["content"] not in gone]
        state["added_tokens"] = [{**entry, "id": moved(entry["id"])} for entry in kept]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    else:
        left = {moved(n): t for n, t in tokenizer._added_tokens_decoder.items() if t.content not in gone}
        tokenizer._added_tokens_decoder = left
        tokenizer._added_tokens_encoder = {t.content: n for n, t in left.items()}
        for name in ("_update_trie", "_update_total_vocab_size"):
            getattr(tokenizer, name, lambda: None)()
    rows = text_encoder.get_input_embeddings().weight.data
    stays = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    stays[[n for n in removed if n < len(rows)]] = False
    rows = rows[stays]
    text_encoder.resize_token_embeddings(len(rows), mean_resizing=False)
    text_encoder.get_input_embeddings().weight.data.copy_(rows)
