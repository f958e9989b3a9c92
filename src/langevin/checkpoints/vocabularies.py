"""Files that transformers and tokenizers read with code of their own: their size, and what they would make of a prompt,
are looked at before. A tokenizer is a small program, and nothing else stops one that never ends or fills the memory.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import names_in, read_json

LARGEST = {".json": 64_000_000, ".txt": 16_000_000, ".model": 16_000_000}
"""The most bytes of a file with such an ending; the largest vocabularies in use have half of that."""

_MOST = {
    "steps": (100, "steps of normalising, cutting and joining texts"),
    "growth": (1000, "letters for one letter, by its normalizer"),
    "added": (20_000, "added tokens"),
    "copies": (4, "copies of each text, by its template"),
    "extra": (10_000, "extra tokens"),
}
_COUNTED = ("extra_ids", "offset", "num_extra_tokens")  # settings by which classes of transformers make up tokens
_SIDES = {"size", "crop_size", "height", "width", "shortest_edge", "longest_edge"}
_SIDE = 4096
_PROGRAM = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_sizes(folder: Path, what: str) -> None:
    """Refuse files of words and settings that are too large to be any.

    Raises:
        CheckpointError: there is one; the message names it.
    """
    for name in names_in(folder):
        most = LARGEST.get(Path(name).suffix)
        if most is None or not (folder / name).is_file():
            continue
        size = (folder / name).stat().st_size
        if size > most:
            raise CheckpointError(f"{what}: {name} has {size:,} bytes, where {most:,} are the most; it is not read.")


def check_tokenizer(folder: Path, what: str) -> None:
    """Refuse a tokenizer that would make far too much of a short text.

    Raises:
        CheckpointError: it would, or its files are no JSON.
    """
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    found: dict[str, float] = {"added": _length(settings.get("added_tokens_decoder"))}
    found["extra"] = max(
        (settings[name] for name in _COUNTED if isinstance(settings.get(name), (int, float))), default=0
    )
    if (folder / "tokenizer.json").is_file():
        program = read_json(folder / "tokenizer.json")
        parts = [part for name in _PROGRAM for part in _parts(program.get(name))]
        found["added"] = max(found["added"], _length(program.get("added_tokens")))
        found["steps"] = sum("type" in part or "type_id" in part for part in parts)
        found["growth"] = math.prod(map(_growth, _parts(program.get("normalizer"))))
        found["copies"] = math.prod(map(_copies, parts))
    for kind, count in found.items():
        most, words = _MOST[kind]
        if count > most:
            raise CheckpointError(f"{what} has {count:,.0f} {words}; {most:,} are the most. It is damaged or hostile.")


def check_processor(folder: Path, what: str) -> None:
    """Refuse an image processor that would make far too large pictures.

    Raises:
        CheckpointError: it would, or its file is no JSON.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        for part in _parts(read_json(folder / name)) if (folder / name).is_file() else ():
            for key in _SIDES & part.keys():
                if isinstance(part[key], (int, float)) and not abs(part[key]) <= _SIDE:
                    raise CheckpointError(
                        f"{what}: {key} is {part[key]} in {name}; {_SIDE:,} are the most. Correct it."
                    )


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (dict, list)) else 0


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """All objects in a value, itself first."""
    if isinstance(value, Mapping):
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _parts(inner)


def _growth(part: Mapping[str, Any]) -> float:
    """How many letters a step of a normalizer may make of one."""
    kind, content = part.get("type"), str(part.get("content", ""))
    if kind == "Replace":
        pattern = part.get("pattern")
        plain = pattern.get("String") if isinstance(pattern, Mapping) else None
        # a regular expression, and nothing, may be found between any two letters
        return max(1.0, len(content) / len(plain)) if isinstance(plain, str) and plain else 1.0 + len(content)
    if kind == "Prepend":
        return 1.0 + len(str(part.get("prepend", "")))
    if kind == "Precompiled":
        return _longest_replacement(str(part.get("precompiled_charsmap") or ""))
    return 1.0


def _longest_replacement(charsmap: str) -> float:
    """Of a table of replacements, as SentencePiece makes them: the length of a trie, the trie, then texts."""
    try:
        table = base64.b64decode(charsmap)
    except ValueError:
        return 1.0  # its reader will say so
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(1, *map(len, texts.split(b"\0")))  # 33 in everybody's table: a greeting in Arabic that is one sign


def _copies(part: Mapping[str, Any]) -> int:
    """How often a template has one text."""
    return max(1, sum("Sequence" in one for one in _parts(part["single"]))) if "single" in part else 1
