"""Writing checkpoints so that a process killed at any moment leaves either the old folder or the new one, whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langevin.checkpoints.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SAVING = re.compile(r"\.(?P<name>.+)\.saving-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}")
_STEM = r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)"
_WEIGHTS = re.compile(_STEM + r"(\.(?P<v1>[\w-]+?))?(-\d+-of-\d+)?(\.(?P<v2>\w+))?\.(safetensors|bin)")
_INDEX = re.compile(_STEM + r"(\.(?P<v1>[\w-]+))?\.(safetensors|bin)\.index(\.(?P<v2>[\w-]+))?\.json")
_TOKENIZER = {"tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"}
_TOKENIZER |= {"added_tokens.json", "special_tokens_map.json"}


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder, with its parents, if it is not there.

    Raises:
        CheckpointError: there is a file in the way, or no permission.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"Cannot save into {folder}: {error.strerror}; a folder's name is needed.") from None
    return folder


def replace_file(path: Path, content: bytes) -> None:
    """Write a file such that under its name there is always the whole old or the whole new content.

    Raises:
        CheckpointError: it cannot be written (no room, no permission); what was there is still there.
    """
    if _is_staged(path):
        with told(path):
            path.write_bytes(content)
        return
    clear_leftovers(path.parent, path.name)
    staging = path.with_name(staging_name(path.name))
    try:
        with told(path), staging.open("wb") as file, held(file.fileno()):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    _fsync(path.parent)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Inside, what the system refuses is told as a CheckpointError that names ``path``, and the file that it names."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        named = str(error.filename or "")
        where = f" ({named})" if named and named != str(path) and ".saving-" not in named else ""
        raise CheckpointError(
            f"Cannot write {path}: {error.strerror or error}{where}; what was there is untouched."
        ) from None


@contextlib.contextmanager
def held(handle: int) -> Iterator[None]:
    """Lock an open file or folder: a sign of life that processes see which cannot see this one (in containers)."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield


@contextlib.contextmanager
def _held_folder(folder: Path) -> Iterator[None]:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        yield
        return
    try:
        with held(handle):
            yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_version(path: str | os.PathLike) -> Iterator[Path]:
    """Give an empty folder to write into; it becomes the folder ``path`` in one move when the block ends well.

    Files that are already under ``path`` stay: they are hard-linked into the new folder, except those that the new
    ones replace, and weights and tokenizer files that the new ones make stale. Until the move nothing under ``path`` is
    touched. What a killed process left beside the folder is cleared away by the next save.

    The move exchanges two folders, so the parent folder must be writable. Where that cannot be done (a mount point,
    the current directory, a file system without exchange) each file is replaced in one move, ``model_index.json``
    last; then a kill between two files can leave a mixture, though never half a file.

    Raises:
        CheckpointError: the folder cannot be made or written.
    """
    target = Path(path).expanduser()
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"Cannot save into {target}: it is a file; a folder's name is needed.")
    target = target.resolve()
    make_folder(target.parent)
    if _is_staged(target):  # part of a larger save, which takes care of all this
        yield make_folder(target)
        return
    whole = _can_be_exchanged(target)
    staging = (target.parent if whole else target) / staging_name(target.name)
    clear_leftovers(staging.parent, target.name)
    try:
        staging.mkdir()
    except OSError as error:
        raise CheckpointError(f"Cannot save into {target}: {error.strerror} for {staging.parent}.") from None
    try:
        with told(target), _held_folder(staging):
            yield staging
            _make_readable(staging)
            fresh = set(_files(staging))
            sync_tree(staging)  # takes long; what follows is short, so that little can happen in between
            carried: set[Path] = set()
            if whole and target.exists():
                carried = _carry_over(target, staging, fresh)
                shutil.copymode(target, staging)
            if not (whole and _move_in(staging, target, fresh, carried)):
                _replace_each(staging, target, fresh)
    except CheckpointError as error:  # nobody knows the passing name
        raise CheckpointError(str(error).replace(str(staging), str(target))) from error.__cause__
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Give all files the mode that a new file has here; safetensors makes them readable for their owner alone."""
    probe = folder / ".probe"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def _is_staged(path: Path) -> bool:
    """Whether a path lies in a folder that :func:`new_version` gave, and that nobody reads yet."""
    return any(_SAVING.fullmatch(parent.name) for parent in path.parents)


def staging_name(name: str) -> str:
    """A hidden name to write under what will be called ``name``. It says which process on which machine writes."""
    return f".{_cut(name)}.saving-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _cut(name: str) -> str:
    """So much of a name that the staging name is not too long for a file system (255 bytes)."""
    return os.fsencode(name)[:120].decode("utf-8", "ignore")


def _can_be_exchanged(target: Path) -> bool:
    """Whether the folder may be replaced by another one: not by way of a mount, and not under our own feet."""
    if not os.access(target.parent, os.W_OK):
        return False
    with contextlib.suppress(OSError):
        if Path.cwd().resolve().is_relative_to(target):
            return False
    return not target.is_mount()


def _move_in(staging: Path, target: Path, fresh: set[Path], carried: set[Path]) -> bool:
    """Put the new folder in place of the old, and the old in place of the new. False where that cannot be done."""
    if not target.exists():
        with contextlib.suppress(OSError):  # somebody has made it in the meantime
            os.rename(staging, target)
            _fsync(target.parent)
            return True
    if not _exchange(staging, target):
        return False
    _fsync(target.parent)
    _catch_up(staging, target, carried)  # what others changed or removed while the new version was written
    _carry_over(staging, target, fresh)  # what they added
    return True


def _catch_up(old: Path, new: Path, carried: set[Path]) -> None:
    """Have the files that were linked into ``new`` be those that ``old`` had in the end."""
    for rel in carried:
        source, destination = old / rel, new / rel
        try:
            if os.path.samestat(source.lstat(), destination.lstat()):
                continue
            passing = destination.with_name(staging_name(destination.name))
            _link(source, passing)
            os.replace(passing, destination)
        except FileNotFoundError:
            if not os.path.lexists(source):
                destination.unlink(missing_ok=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step (Linux, macOS). False where the system or the file system has no such thing."""
    libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    first, second = os.fsencode(a), os.fsencode(b)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        failed = libc.renameat2(-100, first, -100, second, 2)  # AT_FDCWD, RENAME_EXCHANGE
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(first, second, 2)  # RENAME_SWAP
    else:
        return False
    return not failed


def _replace_each(staging: Path, target: Path, fresh: set[Path]) -> None:
    """Replace files one by one, each in one move; then remove what they made stale."""
    stale = [rel for rel in _files(target) if _is_stale(rel, fresh)] if target.exists() else []
    for rel in sorted(fresh, key=lambda rel: rel.name == "model_index.json"):
        make_folder((target / rel).parent)
        os.replace(staging / rel, target / rel)
    for rel in stale:
        (target / rel).unlink(missing_ok=True)
    sync_tree(target)


def _carry_over(old: Path, new: Path, fresh: set[Path]) -> set[Path]:
    """Link the files of ``old`` into ``new``, except those that ``fresh`` (what was written) replaces.

    Returns:
        Which files were linked.
    """
    linked = set()
    for rel in _files(old):
        source, destination = old / rel, new / rel
        if os.path.lexists(destination) or _is_stale(rel, fresh):
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its owner has removed it in the meantime
            _link(source, destination)
            linked.add(rel)
    for folder, names, _ in os.walk(old):
        for name in names:
            empty = Path(folder) / name
            if not _SAVING.fullmatch(name) and not empty.is_symlink():
                (new / empty.relative_to(old)).mkdir(exist_ok=True, parents=True)
    return linked


def _link(source: Path, destination: Path) -> None:
    """Have a second name for a file; a copy where the file system has no such thing."""
    if source.is_symlink():
        destination.symlink_to(os.readlink(source))
        return
    try:
        os.link(source, destination)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.EACCES):
            raise
        shutil.copy2(source, destination)


def _files(root: Path) -> list[Path]:
    """Relative paths of all files and links below ``root``, but not those of a save under way."""
    found = []
    for folder, names, files in os.walk(root):
        linked = [name for name in names if os.path.islink(os.path.join(folder, name))]
        names[:] = [name for name in names if name not in linked and not _SAVING.fullmatch(name)]
        found += [Path(folder, name).relative_to(root) for name in [*files, *linked] if not _SAVING.fullmatch(name)]
    return found


def _is_stale(rel: Path, fresh: set[Path]) -> bool:
    """Whether an old file is what was written in another shape: other shards, other format, other tokenizer."""
    if rel in fresh:
        return False
    beside = [path.name for path in fresh if path.parent == rel.parent]
    if rel.name in _TOKENIZER and "tokenizer_config.json" in beside:
        return True
    kind = weights_kind(rel.name)
    return kind is not None and kind in map(weights_kind, beside)


def weights_kind(name: str) -> tuple[str, str | None] | None:
    """``(family, variant)`` of a weight file or shard index by its name, None for other files.

    The family is ``"diffusers"`` or ``"transformers"``; both spellings of shard names are known.
    """
    match = _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name)
    if not match:
        return None
    family = "diffusers" if match["stem"] == "diffusion_pytorch_model" else "transformers"
    return family, match["v1"] or match["v2"]


def clear_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove staging files and folders of processes on this machine that are no more.

    Args:
        parent: where they lie.
        name: of what was written; anything where None.
    """
    for path in parent.glob(".*.saving-*"):
        match = _SAVING.fullmatch(path.name)
        if not match or match["host"] != socket.gethostname() or (name and match["name"] != _cut(name)):
            continue
        try:
            os.kill(int(match["pid"]), 0)
        except ProcessLookupError:
            if not _is_held(path):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        except (OSError, OverflowError):
            pass


def _is_held(path: Path) -> bool:
    """Whether some living process writes there: one whose number means nothing here, in another container."""
    if fcntl is None:
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _fsync(path: Path) -> None:
    with contextlib.suppress(OSError):  # folders cannot be opened everywhere
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_tree(root: Path, deep: bool = True) -> None:
    """Have a folder and all that is in it on the disk; not ``deep``: its list of names alone."""
    if not deep:
        _fsync(root)
        return
    for folder, _, files in os.walk(root):
        for name in files:
            _fsync(Path(folder, name))
        _fsync(Path(folder))
