"""``model_index.json``: which pipeline a folder holds, which parts, and of which class of which library each is."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import langevin
from langevin.checkpoints import folders, saving, transformers_parts, weights
from langevin.checkpoints.config import ConfigMixin, config_text
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import names_in, read_json

logger = logging.getLogger(__name__)

INDEX = "model_index.json"
CALL_DEFAULTS = "_call_defaults"
"""Entry of ``model_index.json`` for what a checkpoint's calls do best with, such as ``{"guidance_scale": 3.0}``. The
reference library passes over entries that begin with an underscore."""

PARTS_FROM = "_parts_from"
"""Entry of ``model_index.json`` that names a model in the box whose parts take the place of those without a folder; or
a model for each part, as in ``{"image_encoder": "langevin/shapes-clip", "*": "langevin/shapes"}``, the last for all
others. Of a model that is a single network, the part is that network."""

_CONFIG_FILES = (".json", ".txt", ".model", ".jinja")


def read(root: Path) -> dict[str, Any]:
    """``model_index.json``, refused if an entry is of the wrong shape or leads out of the folder."""
    index = read_json(folders.inside(root, INDEX))
    for name, entry in index.items():
        texts = [name, *(entry if isinstance(entry, list) and not name.startswith("_") else [])]
        texts += [entry] if name == "_class_name" else []
        for text in texts:
            if isinstance(text, str) and ("/" in text or "\\" in text or text in ("", ".", "..") or "\0" in text):
                raise CheckpointError(
                    f"{root / INDEX} has {text!r} in the entry {name!r}, which leads out of its folder; "
                    "it is not opened."
                )
    return index


def part_class(part: str, library: Any, name: Any, root: Path, folder: Path) -> type:
    """The class that an entry ``part: [library, name]`` of the index in ``root`` means, if its ``folder`` is there."""
    where = f"{root / INDEX} says {part} is {name!r} of {library!r}"
    if not isinstance(library, str) or not isinstance(name, str):
        raise CheckpointError(f"{where}; an entry is [library, class].")
    if library.startswith(("onnx", "optimum", "openvino")) or name.startswith(("Onnx", "OV", "Flax", "TF")):
        raise CheckpointError(f"{where}; only PyTorch weights are read.")
    if not folders.inside(folder.parent, folder.name).is_dir():
        raise CheckpointError(
            f"{where}, but there is no folder {folder}; the checkpoint is incomplete (pass {part}=… to use another)."
        )
    found = transformers_parts.find_class(name) if library == "transformers" else public(name)
    if isinstance(found, type) and not is_pipeline(found) and hasattr(found, "from_pretrained"):
        return found
    if (folder / f"{library}.py").exists():
        raise CheckpointError(f"{where}, a Python file in the checkpoint; its code is never run. Pass {part}=….")
    raise CheckpointError(f"{where}, a class which langevin does not have; {nearest(name, langevin.__all__)}.")


def is_pipeline(cls: type) -> bool:
    """Whether a class is that of a pipeline, whose config is ``model_index.json`` itself."""
    return getattr(cls, "config_name", None) == INDEX


def public(name: str) -> Any:
    """The public object of that name, None where there is none."""
    try:
        return getattr(langevin, name) if name in langevin.__all__ else None
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{name} needs {error.name}: pip install {error.name}.") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """For error messages: the names among ``known`` that are most like ``name``; if there are none, what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(close)}"
    if len(known) > 60:
        return "no name in langevin.__all__ is like it"
    shown, more = (known, "") if len(known) <= 12 else (known[:8], f" and {len(known) - 8} more")
    return f"it has: {', '.join(shown)}{more}"


def origin(part: Any) -> tuple[str | None, str | None]:
    """``(library, class)`` of a part, as ``model_index.json`` names them."""
    if part is None:
        return None, None
    cls = type(unwrapped(part))
    library = cls.__module__.split(".")[0]
    says_so = library == "langevin" or "library_name" in vars(cls)  # not what somebody's own class inherits from ours
    return getattr(cls, "library_name", library) if says_so else library, cls.__name__


def write(folder: Path, pipeline: str, entries: Mapping[str, Any]) -> None:
    """Write the ``model_index.json`` of a pipeline.

    Args:
        folder: where to.
        pipeline: the pipeline's class.
        entries: ``(library, class)`` for each part, ``(None, None)`` for one that is not there, and the settings.

    Raises:
        CheckpointError: the file cannot be written, or an entry has no JSON form.
    """
    saving.replace_file(folder / INDEX, config_text(pipeline, entries).encode())


def unwrapped(part: Any) -> Any:
    """The network inside one that ``torch.compile`` made."""
    return getattr(part, "_orig_mod", part)


def check_replacement(part: str, value: Any, listed: Any, pipeline: type) -> None:
    """Refuse what cannot be this part; warn of what hardly can."""
    if value is None or not isinstance(listed, list) or listed[1] is None:
        return
    try:
        wanted = public(listed[1]) if listed[0] != "transformers" else transformers_parts.find_class(listed[1])
    except CheckpointError:
        return
    if not isinstance(wanted, type) or isinstance(unwrapped(value), wanted):
        return
    given = f"{part} is a {type(value).__name__}, where {pipeline.__name__} needs a {wanted.__name__}"
    if issubclass(wanted, nn.Module) and not isinstance(value, nn.Module):
        raise CheckpointError(f"{given} or another network.")
    if issubclass(wanted, ConfigMixin) and not hasattr(unwrapped(value), "config"):
        kind = "network with a config" if issubclass(wanted, nn.Module) else "scheduler"
        raise CheckpointError(f"{given} or another {kind}.")
    if isinstance(value, ConfigMixin) and isinstance(value, nn.Module):
        logger.warning("%s.", given)


def variants(root: Path, classes: dict[str, type], variant: str | None) -> dict[str, str | None]:
    """The variant to read of each part: the one asked for, where the part has it."""
    chosen: dict[str, str | None] = dict.fromkeys(classes)
    for name in classes if variant else ():
        if any((saving.weights_kind(file) or (None, None))[1] == variant for file in names_in(root / name)):
            chosen[name] = variant
    if variant and not any(chosen.values()):
        kinds = (saving.weights_kind(file) for name in classes for file in names_in(root / name))
        found = sorted({kind[1] for kind in kinds if kind and kind[1]})
        there = f"variants there: {', '.join(found)}" if found else "it has no variants; leave variant out"
        raise CheckpointError(f"No part of {root} has weights of the variant {variant!r}; {there}.")
    return chosen


def home(root: Path, index: dict[str, Any], part: str) -> Path:
    """A part's folder: in the pipeline's own, or in that of the model in the box that it names, or that model's own."""
    name = index.get(PARTS_FROM)
    if isinstance(name, dict):
        name = name.get(part, name.get("*"))
    if name is None or (root / part).is_dir():
        return root / part
    boxed = folders.BOX / str(name).removeprefix("langevin/")
    if not re.fullmatch(r"langevin/[\w-]+", str(name)) or not boxed.is_dir():
        raise CheckpointError(
            f"{root / INDEX} takes its {part} from {name!r}, which is no model in the box; put a folder {part} into "
            f"{root}, or pass {part}=…."
        )
    return boxed if isinstance(index[PARTS_FROM], dict) and not (boxed / INDEX).is_file() else boxed / part


def files_needed(
    subfolder: str | None,
    replaced: set[str],
    variant: str | None,
    use_safetensors: bool | None,
    names: list[str],
    fetch: Any,
) -> list[str]:
    """Which files of a hub repository a pipeline needs: not those of other formats, variants and uses."""
    prefix = f"{subfolder}/" if subfolder else ""
    if prefix + INDEX not in names:
        raise CheckpointError(
            f"This hub repository has no {prefix}{INDEX}: it is no pipeline. A single network is "
            "loaded by its own class's from_pretrained."
        )
    index = read(fetch(prefix + INDEX).parent)
    wanted = [prefix + INDEX]
    for part, entry in index.items():
        if part.startswith("_") or part in replaced or not isinstance(entry, list) or entry[-1:] in ([], [None]):
            continue
        # several networks in one part lie side by side: controlnet, controlnet_1, …
        beside = {name.removeprefix(prefix).split("/")[0] for name in names if name.startswith(prefix)}
        for folder in sorted(f for f in beside if re.fullmatch(rf"{re.escape(part)}(_\d+)?", f)):
            place = f"{prefix}{folder}/"
            here = [name.removeprefix(place) for name in names if name.startswith(place)]
            here = [name for name in here if "/" not in name]
            chosen = [n for n in here if n.endswith(_CONFIG_FILES) and saving.weights_kind(n) is None]
            for wish in dict.fromkeys([variant, None]):
                found = weights.needed(here, wish, use_safetensors)
                found = found or transformers_parts.files(here, wish, use_safetensors)
                if found:
                    chosen += found
                    break
            wanted += [place + name for name in chosen]
    return wanted
