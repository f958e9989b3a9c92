"""What a picture may have loaded: what is on the machine's shelf at once, anything else only if its owner says yes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from langevin.cli.errors import Failure, harmless

_UNASKED = {"local_files_only": True, "token": False}


class Trust:
    """Whether and how models that a picture names are loaded.

    Args:
        settings: the picture's.
        model: given with ``--model``, instead of the picture's own; None without.
        yes: all that the picture names may be loaded.

    Raises:
        Failure: the picture names what is neither in the box nor in the hub's cache, and nobody says yes.
    """

    def __init__(self, settings: Mapping[str, Any], model: str | None, yes: bool) -> None:
        named = [("model", settings.get("model"))] if model is None else []
        named += [("model", name) for name in settings.get("cascade") or ()]
        lines = [_would(what, name) for what, name in [*named, *_networks(settings)] if name and not on_shelf(name)]
        if lines and not yes:
            question = "; ".join(dict.fromkeys(lines))
            if not (sys.stdin.isatty() and typer.confirm(harmless(f"{question}. Load it?"), err=True)):
                raise Failure(f"{question}; only what is in the box or the hub's cache is loaded unasked")

    def options(self, name: str) -> dict[str, Any]:
        """Options of ``from_pretrained``: what is on the shelf is taken from there, without a token."""
        return dict(_UNASKED) if on_shelf(name) == "cache" else {}


def on_shelf(name: str) -> str | None:
    """ "box" or "cache" for what is there, by its name or by a folder inside; None for everything else."""
    from langevin.checkpoints.folders import BOX, local_models

    if os.path.exists(folder := os.path.expanduser(name)):  # comes before names on the hub
        real = Path(folder).resolve()
        places = [BOX.resolve(), *(found.folder.resolve() for found in local_models())]
        return "box" if any(real.is_relative_to(place) for place in places) else None
    if name.startswith("langevin/"):  # never asked of the hub
        return "box"
    return "cache" if any(found.name == name for found in local_models()) else None


def _networks(value: Any) -> Iterator[tuple[str, str]]:
    """Every network and LoRA that settings name, as :func:`langevin.media.recording.recorded` and
    :func:`langevin.pipelines.lora_calls.recorded_loras` write them.
    """
    if isinstance(value, Mapping):
        if set(value) >= {"name", "file", "sha256", "weights"}:
            yield "LoRA", str(value["file"])
        if set(value) == {"network", "from"}:
            yield "network", str(value["from"])
        for one in value.values():
            yield from _networks(one)
    elif isinstance(value, list):
        for one in value:
            yield from _networks(one)


def _would(what: str, name: str) -> str:
    folder = os.path.expanduser(name)
    place = f"the folder {os.path.abspath(folder)}" if os.path.exists(folder) else "huggingface.co"
    instead = "name another with --model" if what == "model" else "allow it with --yes"
    also = ", or allow it with --yes" if what == "model" else ""
    return f"its {what} {name!r} cannot be loaded; {instead}{also} (it would come from {place})"
