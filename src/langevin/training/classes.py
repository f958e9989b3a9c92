"""Pictures of a class, made by the checkpoint that is trained on, for prior preservation."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from langevin.training.data import FolderRows


def make_class_pictures(pipe: Any, folder: Path, prompt: str, count: int, batch: int = 4) -> list[Path]:
    """The files of a folder with at least ``count`` pictures; those that are missing are made and saved there.

    Args:
        pipe: makes them, from seeds that are their numbers.
        folder: made if it is not there.
    """
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    there = len(FolderRows(folder))
    pipe.set_progress_bar_config(leave=False, desc="class pictures")
    for first in range(there, count, batch):
        seeds = list(range(first, min(first + batch, count)))
        for seed, image in zip(seeds, pipe([prompt] * len(seeds), seed=seeds).images, strict=True):
            digest = hashlib.sha1(image.tobytes()).hexdigest()
            passing = folder / f".{seed}.partial"
            image.save(passing, "JPEG", quality=95)
            passing.rename(folder / f"{seed}-{digest}.jpg")
    pipe.set_progress_bar_config()
    return [row["image"] for row in FolderRows(folder)]
