"""Files of videos, as far as no library is needed: the comment in an MP4, where settings are. Nothing is decoded."""

from __future__ import annotations

import os
import stat
from typing import IO

VIDEO_EXTENSIONS = (".mp4", ".gif", ".webp", ".png")
"""What videos' files may end with."""
_BRANDS = (b"iso", b"mp4", b"avc1", b"M4V", b"qt", b"3gp", b"dash", b"f4v")
"""How the first box says that the rest is a video; AVIF and HEIC pictures lie in such boxes too."""
_WAY = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")
"""The boxes in which the comment lies, one in the other (ISO/IEC 14496-12; the last ones are Apple's)."""
_BEFORE = {b"meta": 4, b"data": 8}  # bytes before a box's own content
_MOST = 2**24
_BOXES = 10_000


def is_mp4(path: str | os.PathLike) -> bool:
    """Whether it is a regular file that begins as an MP4 does."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return False
    with open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:].startswith(_BRANDS)


def mp4_comment(path: str | os.PathLike) -> str | None:
    """The comment that an MP4 carries, or None; damaged files have none."""
    with open(path, "rb") as file:
        begin, end = 0, os.fstat(file.fileno()).st_size
        for kind in _WAY:
            found = _inside(file, kind, begin, end)
            if found is None:
                return None
            begin, end = found
        if end - begin > _MOST:
            return None
        file.seek(begin)
        return file.read(end - begin).decode("utf-8", "replace")


def _inside(file: IO[bytes], wanted: bytes, begin: int, end: int) -> tuple[int, int] | None:
    """Where the content of the first box of a kind begins and ends, between two places of the file."""
    for _ in range(_BOXES):
        if end - begin < 8:
            return None
        file.seek(begin)
        head = file.read(16)
        size, kind, length = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1:
            size, length = int.from_bytes(head[8:16], "big"), 16
        last = end if size == 0 else begin + size
        if last > end or last < begin + length:
            return None
        if kind == wanted:
            return min(begin + length + _BEFORE.get(kind, 0), last), last
        begin = last
    return None
