"""Single files of a checkpoint: JSON read and written, and what a folder has, in words."""

from __future__ import annotations

import enum
import json
import os
import stat
from pathlib import Path, PurePath
from typing import Any

from langevin.checkpoints.boundary import first_line
from langevin.checkpoints.errors import CheckpointError

LONGEST = 64_000_000
"""No JSON file of a checkpoint has more bytes; the largest vocabularies in use have half of that."""
MOST_ENTRIES = 4_000_000
"""None has more entries, each of which takes some hundred bytes of memory."""


def plain(path: Path) -> Path:
    """``path``, if it is a file that can be read to its end.

    Raises:
        CheckpointError: it is a folder, a named pipe, a device, or a link that leads nowhere.
        FileNotFoundError: there is nothing.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a loop of links, a name too long or with a zero in it
        raise CheckpointError(f"Cannot read {_shown(path)}: {first_line(error)}; put the file itself there.") from None
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise CheckpointError(f"{path} is {kind}, where a file is needed; it is not opened. Put the file itself there.")
    return path


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted.

    Raises:
        CheckpointError: there is no such folder, or it may not be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read the folder {_shown(folder)}: {first_line(error)}.") from None


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: the file is missing, unreadable, longer than 64 MB, or something other than a JSON object.
    """
    path = Path(path)
    try:
        size = plain(path).stat().st_size
        if size > LONGEST:
            raise CheckpointError(f"{path} has {size:,} bytes; a config has {LONGEST:,} at most. It is no config.")
        text = path.read_bytes()
        if size > MOST_ENTRIES and sum(map(text.count, (b",", b"[", b"{"))) > MOST_ENTRIES:
            raise CheckpointError(f"{path} has more than {MOST_ENTRIES:,} entries. It is no config.")
        value = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        there = f"the folder has: {listing(path.parent)}" if path.parent.is_dir() else "nor is there such a folder"
        raise CheckpointError(f"There is no {path.name} in {path.parent}; {there}.") from None
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of thousands of digits, too deep
        why = first_line(error)
        raise CheckpointError(f"{path} is not valid JSON ({why}); the file is damaged or incomplete.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; a config is a JSON object.")
    return value


def _shown(path: Path, most: int = 200) -> str:
    """A path as it can be printed in one line."""
    text = str(path)
    text = repr(text) if not text.isprintable() else text
    return text if len(text) <= most else text[:most] + "…"


def to_json(entries: dict[str, Any]) -> str:
    """A config as JSON text: sorted keys, two spaces, arrays and tuples as lists, paths and dtypes as text.

    Raises:
        CheckpointError: a value has no JSON form; the message names its key.
    """
    plain = {key: _plain(value, key) for key, value in entries.items()}
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def _plain(value: Any, key: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return [_plain(v, key) for v in items]
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, enum.Enum):
        return _plain(value.value, key)
    if isinstance(value, (bool, int, float, str)):  # subclasses, such as torch.Size's or numpy's
        return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
    if hasattr(value, "tolist"):  # numpy arrays and scalars, tensors
        return _plain(value.tolist(), key)
    if str(value).startswith("torch."):  # a dtype or device
        return str(value).removeprefix("torch.")
    raise CheckpointError(f"The setting {key!r} is a {type(value).__name__}, which has no JSON form.")


def listing(folder: Path, most: int = 8) -> str:
    """The names in a folder, for error messages."""
    try:
        found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    except OSError as error:
        return f"what cannot be read ({error.strerror})"
    return ", ".join(found[:most]) + ", …" * (len(found) > most) or "nothing"
