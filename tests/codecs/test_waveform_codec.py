"""Raw sound as what a network denoises."""

from __future__ import annotations

import torch

from langevin.codecs.waveform import WaveformCodec


def test_sounds_are_filled_up_and_cut_back():
    codec = WaveformCodec(2, multiple=8, length=20)
    sound = torch.randn(3, 2, 20)
    x = codec.encode(sound)
    assert tuple(x.shape) == codec.shape(3, (20,)) == (3, 2, 24)
    assert torch.equal(codec.decode(x), sound)
    assert not x[..., 20:].any()
    assert codec.shape(1, (16,)) == (1, 2, 16)
    assert WaveformCodec(1).decode(x) is not None
    assert WaveformCodec(1).decode(x).shape == x.shape
