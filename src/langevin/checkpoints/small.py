"""Files of a few megabytes that come without a model: learned words, LoRAs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langevin.checkpoints import folders
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import listing

_FORMS = {None: ("safetensors", "bin"), True: ("safetensors",), False: ("bin",)}


def find(
    source: str | os.PathLike,
    stems: Sequence[str],
    hub: dict[str, Any],
    weight_name: str | None = None,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
) -> Path:
    """The file that a path, folder or hub id means.

    Args:
        source: a file; or a folder or hub id that has one.
        stems: names that it may have, before ``.safetensors`` or ``.bin``, where ``weight_name`` says none.
        hub: options of :func:`langevin.checkpoints.folders.resolve`.
        use_safetensors: True allows nothing else, False only ``.bin``, None prefers safetensors.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".safetensors", ".bin", ".pt", ".ckpt") and not path.exists():
        raise CheckpointError(f"There is no file {path}.")
    wanted = [weight_name] if weight_name else [f"{stem}.{form}" for stem in stems for form in _FORMS[use_safetensors]]

    def choose(names: list[str], fetch: Any) -> list[str]:
        there = [file for file in (f"{subfolder}/{n}" if subfolder else n for n in wanted) if file in names]
        return there[:1]

    root = folders.resolve(source, choose=choose, **hub)
    places = [folders.inside(root, subfolder, file) for file in wanted]
    for place in places:
        if place.is_file():
            return place
    folder = places[0].parent
    there = listing(folder) if folder.is_dir() else "nothing"
    raise CheckpointError(f"{folder} has no {' or '.join(wanted)}, but {there}; name the file with weight_name=….")
