"""Small networks to load and save, and helpers that look at errors."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from langevin.checkpoints.config import register_to_config
from langevin.checkpoints.errors import CheckpointError
from langevin.models.base import ModelMixin


class Net(ModelMixin):
    """One of each: layers with biases, a table, a bare parameter, both kinds of buffers, a layer that checkpoints."""

    @register_to_config
    def __init__(self, width: int = 8, channels: tuple[int, ...] = (4,), name: str = "x"):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.conv = nn.Conv2d(width, channels[0], 3)
        self.norm = nn.GroupNorm(2, width)
        self.table = nn.Embedding(5, width)
        self.bare = nn.Parameter(torch.randn(3))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("kept", torch.arange(width) / 3)
        self.register_buffer("made", torch.arange(width) / 7, persistent=False)
        self.register_buffer("count", torch.arange(width))
        self.block = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.block.gradient_checkpointing = False


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks have the same tensors, buffers that are not saved included."""
    first = {**dict(a.named_parameters()), **dict(a.named_buffers())}
    second = {**dict(b.named_parameters()), **dict(b.named_buffers())}
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@contextlib.contextmanager
def one_clear_line(*words: str):
    """Expect a CheckpointError whose message is one line and has all the words in it."""
    with pytest.raises(CheckpointError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message, message
    assert len(message) < 600, message
    for word in words:
        assert word in message, f"{word!r} not in: {message}"


def names(folder: Path) -> list[str]:
    """Relative paths of all files, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def most_memory() -> int:
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def refused_at_once(*words: str):
    """Expect one clear line, in less than 10 s and a quarter of a gigabyte."""
    before, start = most_memory(), time.monotonic()
    with one_clear_line(*words):
        yield
    assert time.monotonic() - start < 10
    assert most_memory() - before < 2**28
