"""Sound as grey pictures, and back: mel spectrograms in decibels, low tones in the first rows.

A picture says how loud each tone is, but not its phase, and fewer tones than a spectrum has. So the way back guesses:
the spectrum that fits best without being negative anywhere, by accelerated gradient descent (Beck & Teboulle 2009, "A
Fast Iterative Shrinkage-Thresholding Algorithm"), then phases that fit each other (Perraudin et al. 2013, "A fast
Griffin-Lim algorithm"). They begin at the same random phases each time: a picture always sounds alike.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from langevin.checkpoints.config import ConfigMixin, register_to_config
from langevin.media.sound import Sound
from langevin.randomness import Noise

_FLOOR = 1e-10  # power that counts as silence
_FIT_STEPS = 50
_MOMENTUM = 0.99


class Mel(ConfigMixin):
    """Turns slices of a sound into grey pictures of one size, and pictures into sound.

    As a codec it takes sounds ``(batch, 1, samples)`` to pictures ``(batch, 1, y_res, x_res)`` in [-1, 1].

    Args:
        x_res, y_res: width and height of the pictures: moments, and tones.
        sample_rate: of the sounds.
        n_fft: samples that a moment's spectrum is taken of.
        hop_length: samples from one moment to the next.
        top_db: white is the loudest of a slice, black so many decibels below, and what is quieter.
        n_iter: rounds in which phases are made to fit.

    Raises:
        ValueError: a number is not positive, or moments do not overlap.

    Example:
        >>> mel = Mel(x_res=64, y_res=64)
        >>> mel.load_audio("piano.wav")
        >>> audio = mel.image_to_audio(mel.audio_slice_to_image(0))
    """

    config_name = "mel_config.json"
    channels, axes, scale_factor = 1, 2, 1

    @register_to_config
    def __init__(
        self,
        x_res: int = 256,
        y_res: int = 256,
        sample_rate: int = 22050,
        n_fft: int = 2048,
        hop_length: int = 512,
        top_db: int = 80,
        n_iter: int = 32,
    ) -> None:
        named = dict(x_res=x_res, y_res=y_res, sample_rate=sample_rate, n_fft=n_fft, hop_length=hop_length)
        for name, value in {**named, "top_db": top_db}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**24:
                raise ValueError(f"{name} of Mel is {value!r}; it must be a number above 0")
        if isinstance(n_iter, bool) or not isinstance(n_iter, int) or not 0 <= n_iter <= 10_000:
            raise ValueError(f"n_iter of Mel is {n_iter!r}; it must be a whole number from 0 to 10000")
        if hop_length >= n_fft:
            raise ValueError(f"hop_length of Mel is {hop_length}, and n_fft {n_fft}; moments must overlap")
        self.sr, self.n_fft, self.hop_length = sample_rate, n_fft, hop_length
        self.top_db, self.n_iter = top_db, n_iter
        self.audio: np.ndarray | None = None
        self.set_resolution(x_res, y_res)

    def set_resolution(self, x_res: int, y_res: int) -> None:
        """Make pictures of another width and height; the config stays as it is."""
        self.x_res, self.y_res, self.n_mels = x_res, y_res, y_res
        self.slice_size = x_res * self.hop_length - 1

    # -- a sound that is held, for people; pipelines read sounds with `read` and hold none

    def load_audio(self, audio_file: str | os.PathLike | None = None, raw_audio: np.ndarray | None = None) -> None:
        """Hold a sound, whose slices are then asked for.

        Args:
            audio_file: brought to one channel and this rate; see :meth:`langevin.Sound.load` for what is read.
            raw_audio: ``(samples,)`` at this rate, instead.

        Raises:
            FileNotFoundError, ValueError: there is no such file, it is no sound, or neither or both are given.
        """
        self.audio = self.read(audio_file, raw_audio)

    def get_number_of_slices(self) -> int:
        """How many whole slices the sound has."""
        return len(self._held()) // self.slice_size

    def get_audio_slice(self, slice: int = 0) -> np.ndarray:
        """Slice number ``slice`` of the sound, counted from 0."""
        return self.cut(self._held(), slice)

    def get_sample_rate(self) -> int:
        """Samples in a second."""
        return self.sr

    def audio_slice_to_image(self, slice: int) -> Image.Image:
        """The picture of a slice of the sound, in mode "L"."""
        return Image.fromarray(self._bytes(self.get_audio_slice(slice)))

    def image_to_audio(self, image: Image.Image) -> np.ndarray:
        """``(samples,)`` for a picture, in float32; always the same for the same picture."""
        return self._sound(np.asarray(image.convert("L"))).numpy()

    def _held(self) -> np.ndarray:
        if self.audio is None:
            raise ValueError("there is no sound yet; call load_audio first")
        return self.audio

    # -- the same as functions of what they are given

    def read(self, audio_file: str | os.PathLike | None = None, raw_audio: Any = None) -> np.ndarray:
        """``(samples,)`` of a file or an array, with silence behind it up to a slice; see :meth:`load_audio`."""
        if (audio_file is None) == (raw_audio is None):
            raise ValueError("give either audio_file or raw_audio")
        audio = Sound.load(audio_file).mono(self.sr) if audio_file is not None else np.asarray(raw_audio)
        audio = audio[0] if audio.ndim == 2 and len(audio) == 1 else audio
        if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating) or not np.isfinite(audio).all():
            raise ValueError(f"raw_audio is {audio.dtype} of {audio.shape}; (samples,) of finite floats is needed")
        short = self.x_res * self.hop_length - len(audio)
        return np.pad(audio.astype(np.float32), (0, max(short, 0)))

    def cut(self, audio: np.ndarray, slice: int) -> np.ndarray:
        """Slice number ``slice`` of a sound.

        Raises:
            ValueError: the sound has no such slice.
        """
        count = len(audio) // self.slice_size
        if not 0 <= slice < count:
            raise ValueError(f"slice is {slice}; this sound has {count}, counted from 0")
        return audio[self.slice_size * slice : self.slice_size * (slice + 1)]

    def shape(self, count: int, size: Sequence[int]) -> tuple[int, ...]:
        """Of the pictures of ``count`` sounds of ``size[0]`` samples."""
        return (count, 1, self.n_mels, size[0] // self.hop_length + 1)

    def encode(self, pixels: Tensor, noise: Noise | None = None) -> Tensor:
        """Sounds ``(batch, 1, samples)`` to pictures ``(batch, 1, y_res, moments)`` in [-1, 1]."""
        rows = [torch.from_numpy(self._bytes(row.float().cpu().numpy())) for row in pixels[:, 0]]
        return torch.stack(rows)[:, None].float() / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """Pictures ``(batch, 1, y_res, moments)`` in [-1, 1] to sounds ``(batch, 1, samples)``."""
        grey = ((x[:, 0].float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return torch.stack([self._sound(row) for row in grey])[:, None]

    def _bytes(self, audio: np.ndarray) -> np.ndarray:
        """``(tones, moments)`` in 0…255."""
        spectrum = _stft(torch.from_numpy(np.ascontiguousarray(audio)), self.n_fft, self.hop_length).abs().square()
        power = mel_filters(self.sr, self.n_fft, self.n_mels) @ spectrum
        decibels = 10 * (power.clamp_min(_FLOOR).log10() - power.max().clamp_min(_FLOOR).log10())
        return ((decibels / self.top_db + 1) * 255).clamp(0, 255).add(0.5).to(torch.uint8).numpy()

    def _sound(self, grey: np.ndarray) -> Tensor:
        """``(samples,)`` for ``(tones, moments)`` in 0…255."""
        decibels = (torch.from_numpy(grey.astype(np.float32)) / 255 - 1) * self.top_db
        filters = mel_filters(self.sr, self.n_fft, len(grey))
        spectrum = _least_squares(filters, 10 ** (decibels / 10)).sqrt()
        return _with_phases(spectrum, self.n_fft, self.hop_length, self.n_iter)


@functools.lru_cache(8)
def mel_filters(sample_rate: int, n_fft: int, tones: int) -> Tensor:
    """Which frequencies a tone is the mean of: ``(tones, n_fft // 2 + 1)``. Triangles of equal area, evenly spaced on
    Slaney's scale (1998, "Auditory Toolbox"): linear to 1000 Hz, then logarithmic, 27 tones for a factor of 6.4.
    """
    half = sample_rate / 2
    last = half * 3 / 200 if half < 1000 else 15 + math.log(half / 1000) * 27 / math.log(6.4)
    mels = torch.linspace(0, last, tones + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * torch.exp((mels - 15) * math.log(6.4) / 27))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = torch.linspace(0, half, n_fft // 2 + 1, dtype=torch.float64)
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return (torch.minimum(rising, falling).clamp_min(0) * 2 / (high - low)).float()


def _stft(audio: Tensor, n_fft: int, hop: int) -> Tensor:
    window = torch.hann_window(n_fft)
    return torch.stft(audio, n_fft, hop, window=window, pad_mode="constant", return_complex=True)


def _least_squares(filters: Tensor, power: Tensor) -> Tensor:
    """The spectrum ≥ 0 whose tones are nearest to ``power``: ``(frequencies, moments)``."""
    x = y = (torch.linalg.pinv(filters) @ power).clamp_min(0)
    rate = 1 / torch.linalg.matrix_norm(filters, 2) ** 2
    t = 1.0
    for _ in range(_FIT_STEPS):
        better = (y - rate * (filters.T @ (filters @ y - power))).clamp_min(0)
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        y = better + (t - 1) / following * (better - x)
        x, t = better, following
    return x


def _with_phases(spectrum: Tensor, n_fft: int, hop: int, rounds: int) -> Tensor:
    """The sound of a spectrum ``(frequencies, moments)`` whose phases are not known."""
    window = torch.hann_window(n_fft)
    random = torch.rand(spectrum.shape, generator=torch.Generator().manual_seed(0))
    phases = torch.polar(torch.ones_like(spectrum), 2 * math.pi * random)
    before: Tensor | None = None
    for _ in range(rounds):
        sounds = _stft(torch.istft(spectrum * phases, n_fft, hop, window=window), n_fft, hop)
        ahead = sounds if before is None else sounds - _MOMENTUM / (1 + _MOMENTUM) * before
        phases = ahead / ahead.abs().clamp_min(1e-16)
        before = sounds
    return torch.istft(spectrum * phases, n_fft, hop, window=window)
