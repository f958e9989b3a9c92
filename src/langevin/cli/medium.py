"""What commands make: pictures or sounds; their files, and how two of them are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langevin.cli.files import EXTENSIONS


@dataclass(frozen=True)
class Medium:
    """What a command makes.

    Args:
        noun: for one of them, for people.
        output: the attribute of a call's output that holds them.
        suffix: of the files that it is saved in where none is named.
        extensions: of those that may be named.
        parts: what it is made of, and ``most``, the largest difference between two of them.
        described: its size, for people.
        difference: of a file and one in memory: (largest difference, differing parts, all parts), or None if their
            sizes differ.
    """

    noun: str
    output: str
    suffix: str
    extensions: tuple[str, ...]
    parts: str
    most: int
    described: Callable[[Any], str]
    difference: Callable[[Path, Any], tuple[int, int, int] | None]


def _pictures_apart(picture: Path, made: Any) -> tuple[int, int, int] | None:
    import numpy as np

    from langevin.media.load import open_safely

    with open_safely(picture) as image:
        before = np.asarray(image if image.mode == made.mode else image.convert(made.mode))
    return _apart(before, np.asarray(made))


def _sounds_apart(sound: Path, made: Any) -> tuple[int, int, int] | None:
    from langevin.media.sound import Sound

    known = Sound.load(sound)
    return _apart(known.pcm(), made.pcm()) if known.sample_rate == made.sample_rate else None


def _apart(before: Any, after: Any) -> tuple[int, int, int] | None:
    import numpy as np

    if before.shape != after.shape:
        return None
    apart = np.abs(before.astype(int) - after.astype(int)).reshape(*before.shape[:2], -1).max(axis=2)
    return int(apart.max(initial=0)), int((apart > 0).sum()), apart.size


PICTURE = Medium(
    noun="picture",
    output="images",
    suffix=".png",
    extensions=EXTENSIONS,
    parts="pixels",
    most=255,
    described=lambda made: f"{made.width}x{made.height}",
    difference=_pictures_apart,
)
SOUND = Medium(
    noun="sound",
    output="sounds",
    suffix=".wav",
    extensions=(".wav",),
    parts="samples",
    most=32768,
    described=lambda made: f"{made.seconds:.2f} s at {made.sample_rate} Hz",
    difference=_sounds_apart,
)


def medium_of(file: Path) -> Medium:
    """Of a file that is there: a sound if it begins as WAV files do, else a picture."""
    from langevin.media.sound import is_wav

    return SOUND if is_wav(file) else PICTURE
