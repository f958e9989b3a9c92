"""Checkpoints of runs: written beside, moved into place when whole, and held against their manifest when read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langevin.checkpoints.saving import sync_tree
from langevin.training.flags import BadFlags

logger = logging.getLogger(__name__)

MANIFEST = "run.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def partial(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written until it is whole. All processes of a run write there."""
    return folder / f".checkpoint-{step}.partial"


def begin(folder: Path, step: int) -> Path:
    """Make the folder to write into; what a killed run left of others is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".checkpoint-*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    path = partial(folder, step)
    path.mkdir()
    return path


def finish(folder: Path, step: int, state: dict[str, Any], keep: int | None = None) -> Path:
    """Make what was written the checkpoint of a step, and remove older ones than the ``keep`` newest.

    Until the move the older ones stay, so there is a whole one at every moment.

    Args:
        state: is kept in the manifest beside each file's size and hash.
    """
    path, whole = partial(folder, step), folder / f"checkpoint-{step}"
    files = {name: _mark(path / name) for name in _files(path)}
    (path / MANIFEST).write_text(json.dumps({**state, "step": step, "files": files}, indent=2), encoding="utf-8")
    sync_tree(path)
    if whole.exists():  # of an earlier run with another end
        shutil.rmtree(whole)
    os.rename(path, whole)
    sync_tree(folder, deep=False)
    for old in _listed(folder)[keep or len(_listed(folder)) :]:
        shutil.rmtree(old)
    return whole


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint; broken ones are named and passed over."""
    for path in _listed(folder):
        wrong = damage(path)
        if wrong is None:
            return path
        logger.warning("%s is passed over: %s", path, wrong)
    return None


def find(folder: Path, asked: str) -> Path | None:
    """The checkpoint that ``--resume_from_checkpoint`` means: ``latest``, a name in the run's folder, or a folder.

    Raises:
        BadFlags: it is not there, or is not whole.
    """
    if asked == "latest":
        return newest(folder)
    path = folder / Path(asked).name if (folder / Path(asked).name).is_dir() else Path(asked).expanduser()
    if not path.is_dir():
        there = ", ".join(sorted(p.name for p in _listed(folder))) or "none"
        raise BadFlags(f"--resume_from_checkpoint={asked} is not there; checkpoints in {folder}: {there}")
    wrong = damage(path)
    if wrong is not None:
        raise BadFlags(f"--resume_from_checkpoint={asked}: {wrong}")
    return path


def state_of(path: Path) -> dict[str, Any]:
    """What was kept in a checkpoint's manifest."""
    return json.loads((path / MANIFEST).read_text(encoding="utf-8"))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None where nothing is."""
    try:
        state = state_of(path)
        files = state["files"]
        missing = [name for name in files if not (path / name).is_file()]
        if missing:
            return f"{missing[0]} is missing"
        changed = [name for name, mark in files.items() if _mark(path / name) != mark]
        return f"{changed[0]} is not what was written" if changed else None
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read ({type(error).__name__})"


def _listed(folder: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def _files(path: Path) -> Iterator[str]:
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            yield file.relative_to(path).as_posix()


def _mark(file: Path) -> list[Any]:
    """Size and hash."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "blake2b") if hasattr(hashlib, "file_digest") else _hashed(opened)
    return [file.stat().st_size, digest.hexdigest()[:32]]


def _hashed(opened: Any) -> Any:
    digest = hashlib.blake2b()
    while block := opened.read(1 << 20):
        digest.update(block)
    return digest
