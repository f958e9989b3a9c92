"""The border that every part of a checkpoint passes: whatever is wrong with it is one clear line on the other side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from langevin.checkpoints.errors import CheckpointError


@contextlib.contextmanager
def reading(what: str, advice: str = "fetch it again, or use another") -> Iterator[None]:
    """Inside, every error that reading a checkpoint can cause becomes a CheckpointError of one line.

    Readers of strangers' files (JSON, safetensors, pickles, tokenizers, constructors that are given settings) raise
    whatever they like, Rust's panics included, which are no Exceptions. What the user does (Ctrl-C) goes through.

    Args:
        what: what is read, with its place: ``"the scheduler in /models/sd/scheduler"``.
        advice: what to do about it.

    Raises:
        CheckpointError: anything went wrong inside.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"Cannot read {what}: {first_line(error)}; {advice}.") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"Cannot read {what}: {first_line(error)}; {advice}.") from None


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, in one short line without a full stop; its kind where it says nothing."""
    lines = [line.strip() for line in _text(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    if isinstance(error, KeyError):
        line = f"no entry {line}"
    return (line[:most] + "…" * (len(line) > most)).rstrip(".")


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        return str(error)
    except Exception:  # an error that cannot even say what it is
        return ""
