"""Where pictures are saved: names made from prompts, and no file overwritten by accident."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from langevin.cli.errors import BadUsage, Failure

# Formats that hold a colour picture and that people mean; Pillow knows more, such as PDF and icons.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".tga")


def slug(prompt: str | None, most: int = 50, otherwise: str = "picture") -> str:
    """A file name from a prompt: its words in lower case with "-" between, cut at a word; or ``otherwise``."""
    words = re.findall(r"\w+", (prompt or "").lower())
    name = ""
    for word in words:
        if len(name) + len(word) >= most:
            break
        name = f"{name}-{word}" if name else word
    return name or (words[0][:most] if words else otherwise)


def check_out(
    out: Path | None, beside: Path | None = None, extensions: tuple[str, ...] = EXTENSIONS, noun: str = "picture"
) -> None:
    """Refuse what could not be saved, before any time is spent on making it.

    Args:
        out: the file, or the folder for it, that ``--out`` names.
        beside: where pictures go without; the current folder if None.
        extensions: of the files that may be named.
        noun: what is saved.
    """
    if out is None or out.is_dir():
        _try_folder(out or beside or Path(), noun)
        return
    if out.suffix.lower() not in extensions:
        known = ".png, .jpg or .webp" if extensions == EXTENSIONS else " or ".join(extensions)
        if not out.suffix:
            raise BadUsage(f"--out {out} is neither a folder nor a file name with {known}")
        raise BadUsage(f"--out {out}: {noun}s are not saved as {out.suffix!r}; use {known}")
    if not out.parent.is_dir():
        raise Failure(f"there is no folder {out.parent} to save {out.name} in")
    try:
        os.path.realpath(out, strict=True)
    except FileNotFoundError:
        pass  # a new file
    except OSError as error:  # its name is too long, or a link leads in a circle
        raise Failure(f"cannot save {out.name[:60]}: {error.strerror}") from None
    _try_folder(Path(os.path.realpath(out)).parent, noun)


def _try_folder(folder: Path, noun: str) -> None:
    """Write a file without a name, or one that is gone at once."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Failure(
            f"cannot save {noun}s in {folder.absolute()}: {error.strerror}; name another with --out"
        ) from None


def targets(
    out: Path | None,
    prompt: str | None,
    seeds: list[int],
    force: bool,
    suffix: str = ".png",
    noun: str = "picture",
) -> list[Path]:
    """One path for each picture, all different. Only with ``force`` may one of them exist already."""
    chosen: list[Path] = []
    if out is None or out.is_dir():
        for seed in seeds:
            path = (out or Path()) / f"{slug(prompt, otherwise=noun)}-{seed}{suffix}"
            chosen.append(free(path, chosen, path.stem))
        return chosen
    wanted = [out] if len(seeds) == 1 else [out.with_stem(f"{out.stem}-{k}") for k in range(1, len(seeds) + 1)]
    for path in wanted:
        chosen.append(path if force else free(path, chosen, out.stem))
    return chosen


def free(path: Path, taken: list[Path], stem: str) -> Path:
    """``path``, or the first of ``stem-2``, ``stem-3``, … in its place that is neither a file nor in ``taken``."""
    number = 2
    while path in taken or path.exists() or path.is_symlink():
        path = path.with_stem(f"{stem}-{number}")
        number += 1
    return path
