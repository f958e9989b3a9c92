"""The picture that a pipeline returns: a PIL image that knows, and saves, the settings that made it."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from langevin.checkpoints.saving import clear_leftovers, held, staging_name, told
from langevin.media.settings import (
    EXIF_IFD,
    MAKER,
    MAKER_NOTE,
    USER_COMMENT,
    encode_user_comment,
    settings_to_json,
    settings_to_text,
)

_EXIF_LIMIT = 65_000  # bytes in one JPEG segment, with room for the frame around them
_cleared: set[str] = set()  # folders from which this process has removed what killed ones left


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A file that appears at ``path``, whole, when the block ends without error; otherwise nothing changes.

    It is written beside ``path`` under a hidden name and moved over. What a killed process left under such a name is
    removed by the next process that saves into the folder. A symlink stays one and its target is
    replaced; the old file's permissions are kept.
    """
    target = os.path.realpath(os.fspath(path))
    if os.path.isdir(target):
        raise IsADirectoryError(f"cannot save a file at {target}: it is a folder")
    folder, name = os.path.split(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"cannot save {name}: there is no folder {folder}")
    if os.path.exists(target) and not os.path.isfile(target):  # /dev/stdout, a named pipe
        with told(Path(target)), open(target, "wb") as file:
            yield file
        return
    if folder not in _cleared:  # once: a folder may hold very many pictures
        _cleared.add(folder)
        clear_leftovers(Path(folder))
    passing = os.path.join(folder, staging_name(name))
    try:
        with told(Path(target)):
            with open(passing, "x+b") as fresh, held(fresh.fileno()):
                yield fresh
                fresh.flush()
                os.fsync(fresh.fileno())
            if os.path.exists(target):
                with contextlib.suppress(OSError):
                    os.chmod(passing, os.stat(target).st_mode & 0o7777)
            os.replace(passing, target)
    except BaseException:  # also Ctrl-C: no half file stays behind
        with contextlib.suppress(FileNotFoundError):
            os.unlink(passing)
        raise


def _writable(text: str) -> str:
    """Text as files can hold it: lone surrogates have no encoding, and a zero byte ends a PNG text."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def png_text(settings: dict[str, Any], given: PngInfo | None = None) -> PngInfo:
    """PNG text chunks that hold ``settings`` ("parameters" and "langevin"), after those in ``given``.

    A keyword that ``given`` already has is left as it is; ``given`` itself is not changed.
    """
    info = PngInfo()
    info.chunks = list(given.chunks) if given is not None else []
    taken = {data.split(b"\0", 1)[0] for kind, data, *_ in info.chunks if kind in (b"tEXt", b"zTXt", b"iTXt")}
    for keyword, to_text in (("parameters", settings_to_text), ("langevin", settings_to_json)):
        if keyword.encode() not in taken:
            info.add_text(keyword, _writable(to_text(settings)))
    return info


def exif_text(settings: dict[str, Any], given: bytes | Image.Exif | None = None) -> bytes:
    """An EXIF block that holds ``settings``: the text as UserComment (as A1111 does), the JSON as MakerNote.

    Entries that ``given`` already has stay. What would not fit into a JPEG is left out, with a warning.
    """
    exif = Image.Exif()
    if given is not None:
        exif.load(given if isinstance(given, bytes) else given.tobytes())
    ifd = dict(exif.get_ifd(EXIF_IFD))
    ifd.setdefault(USER_COMMENT, encode_user_comment(_writable(settings_to_text(settings))))
    ifd.setdefault(MAKER_NOTE, MAKER + settings_to_json(settings).encode("ascii"))
    for dropped in ([], [USER_COMMENT], [USER_COMMENT, MAKER_NOTE]):
        exif[EXIF_IFD] = {tag: value for tag, value in ifd.items() if tag not in dropped}
        if len(exif.tobytes()) <= _EXIF_LIMIT:
            break
    if dropped:
        warnings.warn("the settings are too long for this file's EXIF; use PNG to keep them all", stacklevel=3)
    return exif.tobytes()


class Picture(Image.Image):
    """A PIL image with ``settings``: the plain dict that made it, or None.

    ``save`` writes the settings into PNG, JPEG, WebP, AVIF and TIFF files (see
    :mod:`langevin.media.settings`) and is atomic. ``copy`` and pickling keep the settings. Pictures derived
    by other methods (``resize``, ``crop``) are ordinary PIL images, since the settings would not make them
    again. Comparison with ``==`` is PIL's, by pixels and ``info``, and does not look at the settings.

        >>> picture = Picture.from_array(np.zeros((64, 64, 3), np.uint8), {"prompt": "night", "seed": 7})
        >>> picture.save("night.png")
        >>> read_settings("night.png")["seed"]
        7
    """

    settings: dict[str, Any] | None = None

    def __init__(self, image: Image.Image | None = None, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        if image is not None:
            self._adopt(Image.Image.copy(image) if type(image) is not Picture else image._plain_copy())
        self.settings = settings

    @classmethod
    def from_array(cls, array: np.ndarray, settings: dict[str, Any] | None = None) -> Picture:
        """From uint8 pixels, (height, width), or (height, width, channels) with 1, 3 or 4 channels.

        Raises ValueError for another dtype or shape.
        """
        array = np.asarray(array)
        channels = array.shape[2] if array.ndim == 3 else 1
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
            raise ValueError(
                "a Picture is made of uint8 pixels (height, width[, 1, 3 or 4]), "
                f"not {array.dtype} {array.shape}; numpy_to_pil takes floats in [0, 1]"
            )
        if array.ndim == 3 and channels == 1:
            array = array[:, :, 0]
        plain = Image.fromarray(np.ascontiguousarray(array))
        picture = cls(settings=settings)
        picture._adopt(plain.copy() if plain.readonly else plain)  # read-only: shares memory with the array
        return picture

    def _adopt(self, plain: Image.Image) -> None:
        # All state of a loaded PIL image is in its attributes; taking them over costs no copy of the pixels.
        self.__dict__.update(plain.__dict__)

    def _plain_copy(self) -> Image.Image:
        return super().copy()

    def copy(self) -> Picture:
        return Picture(self, copy.deepcopy(self.settings))

    __copy__ = copy

    def __getstate__(self) -> list[Any]:
        return [*super().__getstate__(), self.settings]

    def __setstate__(self, state: list[Any]) -> None:
        super().__setstate__(state[:-1])
        self.settings = state[-1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image.Image):
            return NotImplemented
        mine, theirs = ((x.mode, x.size, x.info, x.getpalette(), x.tobytes()) for x in (self, other))
        return mine == theirs

    __hash__ = None  # type: ignore[assignment]  # as PIL's images, which can be changed in place

    def save(self, fp: str | bytes | os.PathLike | IO[bytes], format: str | None = None, **params: Any) -> None:
        """PIL's ``save`` (same arguments), with the settings written in and the file replaced in one move.

        ``pnginfo`` and ``exif`` are merged with the settings; what they already say under the same name wins.
        Raises ValueError for an unknown file extension, and OSError if the file cannot be written (a CheckpointError
        that names it, where the disk is full or the folder closed); an old file is then still there, whole.
        """
        path = os.fsdecode(fp) if isinstance(fp, (str, bytes, os.PathLike)) else None
        if format is None and path is not None:
            extension = os.path.splitext(path)[1].lower()
            format = Image.registered_extensions().get(extension)
            if format is None:
                known = "no extension" if not extension else f"the unknown extension {extension!r}"
                raise ValueError(f"cannot save {path!r}, which has {known}: use .png, .jpg or .webp")
        kind = (format or os.path.splitext(str(getattr(fp, "name", "")))[1].lstrip(".")).upper()
        if self.settings is not None:
            if kind == "PNG":
                params["pnginfo"] = png_text(self.settings, params.get("pnginfo"))
            elif kind in ("JPEG", "JPG", "WEBP", "AVIF", "TIFF"):
                params["exif"] = exif_text(self.settings, params.get("exif"))
        if path is None or params.get("append"):
            file: Any = sys.stdout.buffer if fp is sys.stdout else fp  # type: ignore[union-attr]
            super().save(file, format, **params)
            return
        with atomic_file(path) as file:
            # not at once: PIL writes some formats to open files in C, and does not look whether all of it was taken
            super().save(whole := io.BytesIO(), format, **params)
            file.write(whole.getbuffer())
