"""A disk without room: the documented error with the file's name, the old content whole, and no litter."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
from PIL import Image

import langevin
from langevin.checkpoints.errors import CheckpointError
from langevin.media.picture import Picture

resource = pytest.importorskip("resource")
ROOM = 20_000


@contextlib.contextmanager
def no_room(most: int = ROOM):
    """No file may grow beyond so many bytes: the system then refuses to write, as it does where a disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def content(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tiff", "gif", "bmp"])
def test_pictures(kind, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    large, small = Picture.from_array(pixels, {"prompt": "x"}), Picture(Image.new("RGB", (3, 3)))
    small.save(tmp_path / f"old.{kind}")
    before = content(tmp_path)
    for name in ("old", "new"):
        with no_room(), pytest.raises(CheckpointError, match=re.escape(str(tmp_path / f"{name}.{kind}"))):
            large.save(tmp_path / f"{name}.{kind}")
    assert content(tmp_path) == before
    large.save(tmp_path / f"old.{kind}")
    assert Image.open(tmp_path / f"old.{kind}").size == large.size


@pytest.mark.parametrize(
    "options", [{}, {"safe_serialization": False}, {"max_shard_size": "60KB"}, {"variant": "fp16"}], ids=str
)
def test_folders(tiny_sd_folder, tmp_path, options):
    pipe = langevin.DiffusionPipeline.from_pretrained(tiny_sd_folder)
    for part, place, old in ((pipe, "pipe", "model_index.json"), (pipe.unet, "unet", "config.json")):
        (tmp_path / place).mkdir()
        (tmp_path / place / old).write_text("old")
        before = content(tmp_path)
        for name in (place, "new"):
            said = rf"^Cannot write {re.escape(str(tmp_path / name))}[^\n]*diffusion_pytorch_model[^\n]*\.$"
            with no_room(), pytest.raises(CheckpointError, match=said):
                part.save_pretrained(tmp_path / name, **options)
        assert content(tmp_path) == before


def test_settings_of_schedulers(tmp_path):
    langevin.DDIMScheduler().save_pretrained(tmp_path)
    before = content(tmp_path)
    with no_room(100), pytest.raises(CheckpointError, match=r"scheduler_config\.json: .*untouched"):
        langevin.EulerDiscreteScheduler().save_pretrained(tmp_path)
    with no_room(100), pytest.raises(CheckpointError, match=r"x\.json: .*untouched"):
        langevin.DDIMScheduler().to_json_file(tmp_path / "x.json")
    assert content(tmp_path) == before
