"""Pictures to train on: rows of data sets, framed, in an order that is a function of the run's seed."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from langevin.media.load import open_safely, opened, printable, reason, to_rgb
from langevin.randomness import Noise
from langevin.training.flags import BadFlags, PictureFlags

logger = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm")
Row = Mapping[str, Any]


# -- rows of data sets -----------------------------------------------------------------------------------------------


def rows_of(flags: PictureFlags) -> Sequence[Row]:
    """The rows that a run trains on, pictures in them read when they are asked for.

    Raises:
        BadFlags: no such data set, nothing in it, or no column of the picture's name; it says which there are.
    """
    folder = Path(flags.train_data_dir or flags.dataset_name or "").expanduser()
    if folder.is_dir() and not _tables(folder):
        rows: Sequence[Row] = FolderRows(folder)
    else:
        rows = _library_rows(flags, folder if folder.is_dir() else None)
    if not len(rows):
        raise BadFlags(f"there are no pictures in {folder}")
    check_column(rows, flags.image_column, "image_column")
    if flags.max_train_samples is not None and flags.max_train_samples < len(rows):
        chosen = order(len(rows), flags.seed or 0, -1)[: flags.max_train_samples]
        rows = Some(rows, chosen.tolist())
    return rows


def check_column(rows: Sequence[Row], name: str, flag: str) -> None:
    """Refuse the name of a column that is not there."""
    columns = getattr(rows, "column_names", None)
    if columns is not None and name not in columns:
        raise BadFlags(f"the data has no column {name!r}; it has: {', '.join(columns)}. Choose with --{flag}")


class Some(Sequence):
    """Some of the rows."""

    def __init__(self, rows: Sequence[Row], chosen: Sequence[int]) -> None:
        self.rows, self.chosen = rows, chosen
        self.column_names = getattr(rows, "column_names", None)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[self.chosen[index]]


class FolderRows(Sequence):
    """A folder of pictures, with folders in it, as rows.

    Beside a picture: ``metadata.jsonl`` or ``metadata.csv`` in its folder, whose ``file_name`` names it and whose other
    columns are the row's; or a text in ``picture.txt``, the row's ``text``. Files that are no pictures are named once
    and left out.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.parts))
        told = dict(_metadata([path for path in files if path.stem == "metadata"]))
        pictures = [path for path in files if path in told] if told else [p for p in files if _is_picture(p)]
        missing = [path for path in told if path not in set(files)]
        if missing:
            raise BadFlags(f"{missing[0]} is named in {missing[0].parent}'s metadata, and is not there")
        self.rows: list[dict[str, Any]] = []
        odd = []
        for path in pictures:
            if not _opens(path):
                odd.append(path)
                continue
            beside = path.with_suffix(".txt")
            row = dict(told.get(path, {}))
            if not row and beside.is_file():
                row["text"] = beside.read_text(encoding="utf-8", errors="replace").strip()
            self.rows.append({**row, "image": path})
        odd += [p for p in files if p.is_file() and p.suffix.lower() not in (*PICTURES, ".txt", ".jsonl", ".csv")]
        if odd:
            logger.warning("%d files in %s are no pictures and are left out: %s", len(odd), folder, _some(odd))
        self.column_names = list(dict.fromkeys(name for row in self.rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]


def _metadata(files: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Pictures and what their folders' metadata say of them."""
    for file in files:
        if file.suffix not in (".jsonl", ".csv"):
            continue
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                rows = csv.DictReader(lines) if file.suffix == ".csv" else map(json.loads, filter(str.strip, lines))
                for number, row in enumerate(rows, 1):
                    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                        raise BadFlags(f"row {number} of {file} has no file_name")
                    name = row.pop("file_name")
                    if not (file.parent / name).resolve().is_relative_to(file.parent.resolve()):
                        raise BadFlags(f"row {number} of {file} names {printable(name)}, which is not in its folder")
                    yield file.parent / name, row
        except (OSError, ValueError) as error:
            if isinstance(error, BadFlags):
                raise
            raise BadFlags(f"{file} cannot be read: {reason(error)}") from None


def _is_picture(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in PICTURES


def _opens(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception:
        return False
    return True


def _some(paths: Sequence[Path], most: int = 5) -> str:
    names = ", ".join(printable(path.name) for path in paths[:most])
    return names + (f" and {len(paths) - most} more" if len(paths) > most else "")


def _tables(folder: Path) -> bool:
    """Whether a folder holds a data set in tables: parquet or arrow files."""
    return (
        (folder / "dataset_info.json").exists()
        or (folder / "dataset_dict.json").exists()
        or any(next(folder.rglob(f"*.{kind}"), None) for kind in ("parquet", "arrow"))
    )


def _library_rows(flags: PictureFlags, folder: Path | None) -> Any:
    """Rows of a data set on the hub, or in a folder of tables."""
    try:
        import datasets
    except ImportError:
        raise BadFlags("data sets of the hub and parquet files need datasets: pip install 'langevin[train]'") from None
    name = flags.dataset_name or flags.train_data_dir
    try:
        if folder is not None and any((folder / info).exists() for info in ("dataset_info.json", "dataset_dict.json")):
            found: Any = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(folder or name), flags.dataset_config_name, cache_dir=flags.cache_dir)
    except Exception as error:
        raise BadFlags(f"the data set {name} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    if isinstance(found, dict):
        if "train" not in found:
            raise BadFlags(f"the data set {name} has no split train; it has: {', '.join(found)}")
        found = found["train"]
    return found


# -- pictures as tensors ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """Which part of a resized picture is taken, and whether it is mirrored."""

    top: int
    left: int
    mirrored: bool = False


@dataclass(frozen=True)
class Framing:
    """How pictures become tensors of one size: resized until they cover it, cut, perhaps mirrored.

    Args:
        height, width: in pixels.
        centre: cut the middle; at random otherwise.
        flip: mirror half of them.
        filter: of Pillow, by its name.
        stretch: resize to the frame's own shape and cut nothing; with ``centre``, a square is cut out first.
    """

    height: int
    width: int
    centre: bool = False
    flip: bool = False
    filter: str = "lanczos"
    stretch: bool = False

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of a picture of that size once it covers the frame, its aspect kept."""
        width, height = size
        if self.stretch:
            return self.width, self.height
        if width * self.height <= height * self.width:
            return self.width, max(self.height, int(self.width * height / width))
        return max(self.width, int(self.height * width / height)), self.height

    def choose(self, size: tuple[int, int], rng: random.Random) -> Frame:
        """A frame for a picture of that size."""
        width, height = self.resized(size)
        down, right = height - self.height, width - self.width
        if self.centre or not (down or right):
            top, left = round(down / 2), round(right / 2)
        else:
            top, left = rng.randint(0, down), rng.randint(0, right)
        return Frame(top, left, self.flip and rng.random() < 0.5)

    def apply(self, image: Image.Image, frame: Frame) -> Tensor:
        """(3, height, width) in [-1, 1]."""
        kind = Image.Resampling["NEAREST" if self.filter.startswith("nearest") else self.filter.upper()]
        if self.stretch and self.centre:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        image = image.resize(self.resized(image.size), kind)
        image = image.crop((frame.left, frame.top, frame.left + self.width, frame.top + self.height))
        if frame.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def picture(value: Any) -> Image.Image:
    """An RGB picture from what a row holds: a file's path, a PIL image, or its bytes; turned as EXIF says.

    Raises:
        BadFlags: it is none.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    try:
        if isinstance(value, bytes):
            import io

            value = io.BytesIO(value)
        return to_rgb(opened(value if isinstance(value, Image.Image) else open_safely(value), quiet=True))
    except (ValueError, OSError, TypeError, AttributeError) as error:
        raise BadFlags(f"a picture of the data cannot be read: {reason(error)}") from None


# -- order and randomness --------------------------------------------------------------------------------------------


def mixed(*parts: Any) -> int:
    """A seed of 63 bits from a run's seed, a place in it and what the numbers are for."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of ``count`` pictures in an epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed(seed, "order", epoch)))


class Stream(Dataset):
    """The run's examples by their place: every picture once in each epoch, without a gap between epochs.

    What an example is, is a function of the run's seed and the example's place alone, so it depends neither on how many
    processes there are, nor on where the run was interrupted.

    Args:
        rows: what there is to train on.
        example: from a row and random numbers of its own to tensors and other values by name.
    """

    def __init__(self, rows: Sequence[Row], example: Callable[[int, Row, random.Random], dict], seed: int) -> None:
        self.rows, self.example, self.seed = rows, example, seed
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, place: int) -> dict[str, Any]:
        epoch, within = divmod(place, len(self.rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(len(self.rows), self.seed, epoch)
        index = int(self._order[within])
        return {**self.example(index, self.rows[index], random.Random(mixed(self.seed, place, "row"))), "place": place}


class Places(Sampler):
    """The places of a process's batches, from a micro-step on, without end.

    Args:
        batch: rows of a batch of one process.
        process, processes: which one this is, and of how many.
        first: the micro-step to begin with.
    """

    def __init__(self, batch: int, process: int = 0, processes: int = 1, first: int = 0) -> None:
        self.batch, self.process, self.processes, self.first = batch, process, processes, first

    def __iter__(self) -> Iterator[list[int]]:
        micro = self.first
        while True:
            begin = (micro * self.processes + self.process) * self.batch
            yield list(range(begin, begin + self.batch))
            micro += 1


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tensors stacked, everything else listed."""
    return {
        name: torch.stack([e[name] for e in examples]) if isinstance(examples[0][name], Tensor)
        else [e[name] for e in examples]
        for name in examples[0]
    }  # fmt: skip


class Draws:
    """A batch's random numbers: each row's from a generator of its own, seeded by the run's seed and the row's place.

    Args:
        seed: the run's.
        places: of the rows.
        device: where tensors go.
    """

    def __init__(self, seed: int, places: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = device
        seeds = [mixed(seed, place, "noise") for place in places]
        self._generators = [torch.Generator().manual_seed(one) for one in seeds]
        self._noise = Noise(self._generators)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, float32; ``shape`` begins with the rows."""
        return self._noise.draw(shape, torch.float32, self.device)

    def uniform(self) -> Tensor:
        """(rows,) in [0, 1)."""
        return torch.cat([torch.rand(1, generator=g) for g in self._generators]).to(self.device)

    def whole(self, below: int) -> Tensor:
        """(rows,) of whole numbers from 0 to ``below - 1``."""
        return torch.cat([torch.randint(below, (1,), generator=g) for g in self._generators]).to(self.device)
