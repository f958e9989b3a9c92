"""Pictures of subjects and of their classes, for prior preservation: made by the checkpoint, or real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from langevin.training.data import FolderRows
from langevin.training.flags import BadFlags


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


def make_classes(pipe: Any, flags: Any, made: list[list]) -> None:
    """Class pictures of every concept, with their texts, into ``made``."""
    for concept, listed in zip(flags.concepts, made, strict=True):
        folder, count = Path(str(concept.class_data_dir)), flags.num_class_images
        paths = make_class_pictures(pipe, folder, str(concept.class_prompt), count, flags.sample_batch_size)
        listed += [(path, concept.class_prompt) for path in paths[:count]]


@dataclass
class Concept:
    """What is taught: pictures and a text of it, and of its class."""

    instance_data_dir: str
    instance_prompt: str
    class_data_dir: str | None = None
    class_prompt: str | None = None

    def checked(self) -> Concept:
        """Itself.

        Raises:
            BadFlags: its pictures or its text are missing.
        """
        if not self.instance_data_dir or not self.instance_prompt:
            raise BadFlags("--instance_data_dir and --instance_prompt are missing; give both, or --concepts_list")
        if not Path(self.instance_data_dir).expanduser().is_dir():
            raise BadFlags(f"--instance_data_dir={self.instance_data_dir} is no folder")
        return self


class ConceptPairs(Sequence):
    """Pictures of all concepts, each with one of its class where classes are kept; the shorter list begins anew.

    Args:
        flags: the run's.
        made: for each concept, pictures of its class with their texts; those that are made later come into it.
    """

    def __init__(self, flags: Any, made: list[list]) -> None:
        self.subjects: list[tuple[Path, str, int]] = []
        self.made, self.least = made, flags.num_class_images if flags.with_prior_preservation else 0
        for k, concept in enumerate(flags.concepts):
            found = [row["image"] for row in FolderRows(Path(concept.instance_data_dir).expanduser())]
            if not found:
                raise BadFlags(f"there are no pictures in --instance_data_dir={concept.instance_data_dir}")
            self.subjects += [(path, concept.instance_prompt, k) for path in found]
            if flags.with_prior_preservation and not (concept.class_data_dir and concept.class_prompt):
                raise BadFlags("--with_prior_preservation needs --class_data_dir and --class_prompt, of every concept")
            if flags.with_prior_preservation and flags.real_prior:
                made[k] += real_pictures(Path(str(concept.class_data_dir)).expanduser())

    def __len__(self) -> int:
        return max(len(self.subjects), self.least)

    def __getitem__(self, index: Any) -> Any:
        path, text, k = self.subjects[index % len(self.subjects)]
        row: dict[str, Any] = {"image": path, "text": text}
        return {**row, "class": self.made[k][index % len(self.made[k])]} if self.made[k] else row


def real_pictures(folder: Path) -> list[tuple[Path, str]]:
    """Pictures of a class that were found, with their texts: ``images.txt`` names them, ``caption.txt`` has the texts,
    a line each; names are paths, or of files in the folder's ``images``.

    Raises:
        BadFlags: a file is missing, or the two do not fit.
    """
    try:
        names, texts = (
            [line.strip() for line in (folder / name).read_text(encoding="utf-8").splitlines() if line.strip()]
            for name in ("images.txt", "caption.txt")
        )
    except OSError as error:
        raise BadFlags(f"--real_prior: {error.filename}: {error.strerror}") from None
    if not names or len(names) != len(texts):
        raise BadFlags(f"--real_prior: {folder} has {len(names)} pictures and {len(texts)} texts; one text for each")
    paths = [path if (path := Path(name)).is_file() else folder / "images" / path.name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise BadFlags(f"--real_prior: {missing[0]} is not there")
    return list(zip(paths, texts, strict=True))


def scaled(image: Image.Image, side: int, cell: int, rng: Random) -> tuple[Tensor, Tensor, str]:
    """A picture at another size, so that a concept is not learned with the size that it has in a few pictures.

    With probability 0.66 it is made smaller, down to a third, and put somewhere on grey; otherwise larger by 1.2 to 1.4
    and cut. Very small and large ones are said to be so (section 3.2 of the paper).

    Args:
        image: is squeezed into a square.
        side: of what comes out, in pixels.
        cell: pixels per latent.

    Returns:
        ``(3, side, side)`` in [-1, 1]; a mask ``(1, side / cell, side / cell)``, 1 where the picture is; and what goes
        before its text.
    """
    size = rng.randint(side // 3, side) if rng.random() < 0.66 else rng.randint(int(1.2 * side), int(1.4 * side))
    size += size % 2
    pixels = torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BILINEAR), np.float32))
    pixels = pixels.permute(2, 0, 1) / 127.5 - 1
    mask = torch.zeros(1, side // cell, side // cell)
    if size > side:
        top, left = (rng.randint(0, size - side) for _ in range(2))
        said = rng.choice(("zoomed in ", "close up "))
        return pixels[:, top : top + side, left : left + side], torch.ones_like(mask), said
    top, left = (rng.randint(0, max(side - size, 0)) for _ in range(2))
    whole = torch.zeros(3, side, side)
    whole[:, top : top + size, left : left + size] = pixels[:, : side - top, : side - left]
    inner = [slice(begin // cell + 1, max((begin + size) // cell - 1, begin // cell + 2)) for begin in (top, left)]
    mask[:, inner[0], inner[1]] = 1.0
    said = rng.choice(("a far away ", "very small ")) if size < 0.6 * side else ""
    return whole, mask, said
