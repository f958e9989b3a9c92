"""Single files of a checkpoint: JSON read and written, and what a folder has, in words."""

from __future__ import annotations

import enum
import json
import os
from pathlib import Path, PurePath
from typing import Any

from langevin.checkpoints.errors import CheckpointError


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: the file is missing, unreadable, or something other than a JSON object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = f"the folder has: {listing(path.parent)}" if path.parent.is_dir() else "nor is there such a folder"
        raise CheckpointError(f"There is no {path.name} in {path.parent}; {there}.") from None
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); the file is damaged or incomplete.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; a config is a JSON object.")
    return value


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
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return ", ".join(names[:most]) + ", …" * (len(names) > most) or "nothing"
