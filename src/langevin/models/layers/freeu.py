"""FreeU: at sampling time, weigh the backbone's maps up and the low frequencies of the skips down (Si et al., 2023)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor


def freeu(x: Tensor, skip: Tensor, *, b: float, s: float) -> tuple[Tensor, Tensor]:
    """Half the channels of ``x`` times ``b``; the lowest frequencies of ``skip`` times ``s`` (equations 1 to 3).

    Both are (batch, channels, height, width).
    """
    half = x.shape[1] // 2
    x = torch.cat([x[:, :half] * b, x[:, half:]], dim=1)
    return x, scale_low_frequencies(skip, s)


def scale_low_frequencies(x: Tensor, scale: float) -> Tensor:
    """The two lowest frequencies around zero (-1 and 0 in each direction) times ``scale``, in float32."""
    spectrum = torch.fft.fft2(x.float())
    for row in (-1, 0):
        for column in (-1, 0):
            spectrum[..., row, column] *= scale
    return torch.fft.ifft2(spectrum).real.to(x.dtype)


class FreeUStages:
    """Gives a network with stages ``up_blocks`` the switch for FreeU."""

    up_blocks: Any
    _freeu: tuple[Any, ...]

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU (Si et al., 2023) in the two lowest stages of the way up: skips scaled by ``s``, maps by ``b``."""
        rest = (None,) * (len(self.up_blocks) - 2)
        self._freeu = (partial(freeu, b=b1, s=s1), partial(freeu, b=b2, s=s2), *rest)[: len(self.up_blocks)]

    def disable_freeu(self) -> None:
        """Undo :meth:`enable_freeu`."""
        self._freeu = (None,) * len(self.up_blocks)
