"""The sound that a pipeline returns: samples that know their rate and, saved as WAV, the settings that made them.

Settings stand in the file's comment (``ICMT`` in its ``LIST INFO`` chunk), as JSON. Files of other kinds are read with
soundfile, and brought to another rate with soxr: both in the extra "audio".
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from langevin.media.load import printable
from langevin.media.picture import atomic_file
from langevin.media.settings import json_to_settings, settings_to_json

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_MAX_CHUNK = 2**31
_MAX_COMMENT = 2**24
NEEDS = "pip install 'langevin[audio]'"


class WrongSound(ValueError):
    """A file that is no sound, or a sound that cannot be used: one line that says why."""


class Sound:
    """Samples, their rate, and ``settings``: the plain dict that made them, or None.

    ``save`` writes a WAV file with the settings in it, in one move. numpy takes a sound for its samples.

    Args:
        samples: ``(channels, length)``, or ``(length,)`` for one channel, in [-1, 1]; kept as float32.
        sample_rate: samples in a second.
        settings: what made them.

    Raises:
        ValueError: the samples have another shape, or the rate is no positive whole number.

    Example:
        >>> sound = Sound(np.sin(np.arange(16000) / 10), 16000, {"seed": 7})
        >>> sound.save("tone.wav")
        >>> Sound.load("tone.wav").settings["seed"]
        7
    """

    def __init__(self, samples: Any, sample_rate: int, settings: dict[str, Any] | None = None) -> None:
        samples = np.asarray(samples, dtype=np.float32)
        samples = samples[None] if samples.ndim == 1 else samples
        if samples.ndim != 2 or not 1 <= len(samples) <= 64:
            raise ValueError(f"samples are {samples.shape}; they must be (channels, length), or (length,)")
        if isinstance(sample_rate, bool) or sample_rate != int(sample_rate) or not 1 <= sample_rate < 2**31:
            raise ValueError(f"sample_rate is {sample_rate!r}; it must be a whole number of samples in a second")
        self.samples = samples
        self.sample_rate = int(sample_rate)
        self.settings = settings

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.samples.shape[1] / self.sample_rate

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.samples, dtype=dtype) if copy else np.asarray(self.samples, dtype=dtype)

    def __repr__(self) -> str:
        channels, length = self.samples.shape
        return f"Sound({channels} x {length} samples at {self.sample_rate} Hz, {self.seconds:.2f} s)"

    def pcm(self) -> np.ndarray:
        """The samples as a file of 16 bits has them: ``(length, channels)`` of int16; what is beyond [-1, 1] is cut."""
        return np.clip(np.rint(np.nan_to_num(self.samples.T) * 32768), -32768, 32767).astype("<i2")

    def save(self, path: str | os.PathLike) -> None:
        """Write a WAV file of 16 bits, with the settings in it.

        Raises:
            ValueError: the name does not end in .wav.
            OSError: the file cannot be written; an old one is then still there, whole.
        """
        if os.path.splitext(os.fspath(path))[1].lower() != ".wav":
            raise ValueError(f"cannot save {os.fspath(path)!r}: sounds are saved as .wav")
        channels, rate = len(self.samples), self.sample_rate
        chunks = [(b"fmt ", struct.pack("<HHIIHH", _PCM, channels, rate, rate * channels * 2, channels * 2, 16))]
        if self.settings is not None:
            program = f"langevin {self.settings.get('langevin', '')}".strip()
            texts = ((b"ISFT", program), (b"ICMT", settings_to_json(self.settings)))
            chunks.append((b"LIST", b"INFO" + b"".join(_chunk(name, text.encode() + b"\0") for name, text in texts)))
        chunks.append((b"data", self.pcm().tobytes()))
        body = b"WAVE" + b"".join(_chunk(name, content) for name, content in chunks)
        with atomic_file(path) as file:
            file.write(_chunk(b"RIFF", body))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Sound:
        """Read a sound, with its settings if it carries some: WAV, or with soundfile whatever that knows.

        Raises:
            FileNotFoundError: there is no such file.
            WrongSound: it is no sound, or is damaged.
        """
        if is_wav(path):
            found = dict(_chunks(path))
            if int.from_bytes(found.get(b"fmt ", b"")[:2], "little") in (_PCM, _FLOAT, _EXTENSIBLE):
                return cls(*_samples(path, found), _settings(found))
        elif not os.path.isfile(path):
            raise (FileNotFoundError if not os.path.exists(path) else WrongSound)(f"there is no file {os.fspath(path)}")
        try:
            import soundfile
        except ModuleNotFoundError:
            raise WrongSound(f"{os.fspath(path)} is no plain WAV file, and reading others needs: {NEEDS}") from None
        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            return cls(samples.T, rate)
        except (RuntimeError, ValueError) as error:
            raise WrongSound(f"{os.fspath(path)} is not a sound that can be read ({error})") from None

    def mono(self, sample_rate: int | None = None) -> np.ndarray:
        """The mean of the channels, ``(length,)``, brought to another rate with soxr where one is named.

        Raises:
            WrongSound: soxr is needed and not there.
        """
        samples = self.samples.mean(axis=0)
        if sample_rate in (None, self.sample_rate):
            return samples
        try:
            import soxr
        except ModuleNotFoundError:
            raise WrongSound(f"bringing {self.sample_rate} Hz to {sample_rate} Hz needs: {NEEDS}") from None
        length = -(-samples.size * int(sample_rate) // self.sample_rate)
        made = soxr.resample(samples, self.sample_rate, sample_rate, quality="HQ")[:length]
        return np.pad(made, (0, length - made.size))


class SoundFile:
    """A sound's file among a call's arguments: recorded as ``{"sound": …, "sha256": …}``, of its bytes."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.path.abspath(os.fspath(path))

    def fingerprint(self) -> str:
        """SHA-256 of the file. Raises FileNotFoundError if it is not there, ValueError if it is no regular file."""
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise ValueError(f"{printable(self.path)} is no regular file")
        with open(self.path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()


def sound_file(record: Mapping[str, str]) -> str:
    """The path of a sound that was recorded.

    Raises:
        FileNotFoundError: it is not there.
        OSError, ValueError: it is no regular file, or another one than it was.
    """
    file = SoundFile(record["sound"])
    if file.fingerprint() != record["sha256"]:
        raise ValueError(f"the sound {printable(file.path)} has changed since")
    return file.path


def is_wav(path: str | os.PathLike) -> bool:
    """Whether a file is there and begins as WAV files do."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WAVE"


def wav_settings(path: str | os.PathLike) -> dict[str, Any] | None:
    """The settings that a WAV file carries, or None."""
    return _settings(dict(_chunks(path, but=(b"data",))))


def _chunk(name: bytes, content: bytes) -> bytes:
    """A chunk, filled up to an even length."""
    if len(content) >= _MAX_CHUNK:
        raise ValueError(f"the sound takes {len(content)} bytes; a WAV file holds at most {_MAX_CHUNK}")
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _chunks(path: str | os.PathLike, but: tuple[bytes, ...] = ()) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a WAV file, as far as it goes; those in ``but`` are passed over."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(12)
        while len(head := file.read(8)) == 8:
            name, length = head[:4], min(struct.unpack("<I", head[4:])[0], size - file.tell())
            if name in but:
                file.seek(length, os.SEEK_CUR)
            else:
                yield name, file.read(length)
            file.seek(length % 2, os.SEEK_CUR)


def _samples(path: str | os.PathLike, found: dict[bytes, bytes]) -> tuple[np.ndarray, int]:
    """``(channels, length)`` in [-1, 1], and the rate."""
    form, data = found[b"fmt "], found.get(b"data", b"")
    if len(form) < 16:
        raise WrongSound(f"{os.fspath(path)} is damaged: it does not say what its samples are")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if kind == _EXTENSIBLE and len(form) >= 26:
        kind = struct.unpack("<H", form[24:26])[0]
    width = bits // 8
    known = bits in (32, 64) if kind == _FLOAT else bits in (8, 16, 24, 32) and kind == _PCM
    if not known or not 1 <= channels <= 64 or not 0 < rate < 2**31:
        raise WrongSound(
            f"{os.fspath(path)} has {channels} channels of {bits} bits of kind {kind} at {rate} Hz, which is not read"
        )
    data = data[: len(data) // (width * channels) * width * channels]
    if kind == _FLOAT:
        samples: Any = np.frombuffer(data, f"<f{width}").astype(np.float32)
    elif bits == 8:
        samples = (np.frombuffer(data, "u1").astype(np.float32) - 128) / 128
    elif bits == 24:
        wide = np.zeros((len(data) // 3, 4), "u1")
        wide[:, 1:] = np.frombuffer(data, "u1").reshape(-1, 3)
        samples = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    else:
        samples = np.frombuffer(data, f"<i{width}").astype(np.float32) / 2 ** (bits - 1)
    return samples.reshape(-1, channels).T, rate


def _settings(found: dict[bytes, bytes]) -> dict[str, Any] | None:
    """Of a file's comment; None where it says something else."""
    info = found.get(b"LIST", b"")
    at = 4 if info[:4] == b"INFO" else len(info)
    while at + 8 <= len(info):
        name, length = info[at : at + 4], struct.unpack("<I", info[at + 4 : at + 8])[0]
        if name == b"ICMT" and length <= _MAX_COMMENT:
            return json_to_settings(info[at + 8 : at + 8 + length].decode("utf-8", "replace").rstrip("\0"))
        at += 8 + length + length % 2
    return None
