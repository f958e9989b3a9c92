"""Videos to latents and back, frame by frame, through a codec of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from langevin.codecs.base import Codec
from langevin.randomness import Noise


class FramesCodec:
    """Videos to latents and back: each frame is a picture, and no frame knows of the others.

    Args:
        inner: the codec of pictures.
        chunk: how many frames, of all videos, go through it at once: fewer take less memory. None: all.

    Raises:
        ValueError: ``chunk`` is below 1.
    """

    axes = 3

    def __init__(self, inner: Codec, chunk: int | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is {chunk}; at least one frame goes through at once")
        self.inner = inner
        self.chunk = chunk

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.inner.channels

    @property
    def scale_factor(self) -> int:
        """Pixels per latent in each direction; frames stay as many."""
        return self.inner.scale_factor

    def shape(self, count: int, size: Sequence[int]) -> tuple[int, ...]:
        """``(count, channels, frames, height / scale_factor, width / scale_factor)`` for frames, height and width."""
        frames, *sides = size
        _, channels, *places = self.inner.shape(count, sides)
        return (count, channels, frames, *places)

    def encode(self, pixels: Tensor, noise: Noise | None = None) -> Tensor:
        """``(batch, 3, frames, height, width)`` in [-1, 1] to latents: drawn with ``noise``, else the mode."""
        frames, size = pixels.shape[2], pixels.shape[3:]
        drawn: list[Any] = []
        if noise is not None:
            shape = self.shape(len(pixels), (frames, *size))
            every = noise.draw(shape, getattr(self.inner, "vae", pixels).dtype, pixels.device)
            drawn = list(apart(every).split(self.chunk or len(apart(every))))

        def encoded(part: Tensor) -> Tensor:
            return self.inner.encode(part, (lambda like: drawn.pop(0)) if noise is not None else None)  # type: ignore

        return self._each(pixels, encoded)

    def decode(self, x: Tensor) -> Tensor:
        """Latents to ``(batch, 3, frames, height, width)``, about [-1, 1] (not clamped)."""
        return self._each(x, self.inner.decode)

    def _each(self, videos: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
        pictures = apart(videos)
        made = torch.cat([through(part) for part in pictures.split(self.chunk or len(pictures))])
        return made.unflatten(0, (-1, videos.shape[2])).transpose(1, 2)


def apart(videos: Tensor) -> Tensor:
    """``(batch, channels, frames, height, width)`` to its frames, ``(batch · frames, channels, height, width)``."""
    return videos.transpose(1, 2).flatten(0, 1)
