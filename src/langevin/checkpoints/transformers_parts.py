"""Text encoders, tokenizers and image processors: the parts of a pipeline that come from transformers.

Only classes of transformers itself are loaded, and nothing in a folder is run: no remote code, no kernels by name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from langevin.checkpoints import folders, weights
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import read_json
from langevin.checkpoints.saving import weights_kind

logger = logging.getLogger(__name__)

_STEMS = (("model", True), ("pytorch_model", False))  # with safetensors?


def find_class(name: str) -> type:
    """The class of transformers that a checkpoint means by ``name``.

    Image processors have had three names in turn (``CLIPFeatureExtractor``, ``CLIPImageProcessor``,
    ``CLIPImageProcessorPil``); each finds what is installed.

    Raises:
        CheckpointError: transformers is not installed, or has no model, tokenizer or processor of that name.
    """
    try:
        import transformers
    except ImportError:
        raise CheckpointError(f"The part {name} needs transformers: pip install transformers.") from None
    with quiet():
        for candidate in _spellings(name):
            found = getattr(transformers, candidate, None)
            if isinstance(found, type) and is_transformers(found):
                return found
    raise CheckpointError(f"transformers {transformers.__version__} has no model, tokenizer or processor {name!r}.")


def _spellings(name: str) -> list[str]:
    for ending in ("FeatureExtractor", "ImageProcessorPil", "ImageProcessorFast", "ImageProcessor"):
        if name.endswith(ending):
            stem = name.removesuffix(ending) + "ImageProcessor"
            without_torchvision = importlib.util.find_spec("torchvision") is None
            pil_first = ending == "ImageProcessorPil" or without_torchvision
            return [*([f"{stem}Pil", stem] if pil_first else [stem, f"{stem}Pil"]), name]
    return [name, name.removesuffix("Fast")]


def is_transformers(cls: type) -> bool:
    """Whether a class is a model, tokenizer or processor of transformers, or is built on one; does not import it."""
    bases = {"PreTrainedModel", "PreTrainedTokenizerBase", "ProcessorMixin", "ImageProcessingMixin"}
    bases |= {"FeatureExtractionMixin"}
    return any(base.__name__ in bases and base.__module__.split(".")[0] == "transformers" for base in cls.__mro__)


def is_model(cls: type) -> bool:
    """Whether a class is a network of transformers."""
    return any(base.__name__ == "PreTrainedModel" for base in cls.__mro__)


def files(names: list[str], variant: str | None, use_safetensors: bool | None) -> list[str]:
    """Weight files of a transformers model, best choice: one file, or an index and its shards."""
    for stem, safe in _STEMS:
        if use_safetensors is None or use_safetensors is safe:
            found = weights.needed(names, variant, safe, stem)
            if found:
                return found
    return []


def load(
    cls: type,
    root: Path,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
) -> Any:
    """Load one part of a pipeline.

    Args:
        cls: from :func:`find_class`, or a subclass of ours.
        root: the pipeline's folder; nothing outside is opened.
        name: the part's folder in it.
        dtype: of a model's weights; the file's own where None.
        variant, use_safetensors: which of a model's weight files.

    Raises:
        CheckpointError: the part is incomplete, damaged, of wrong shapes, or wants code to be run.
    """
    folder = folders.inside(root, name)
    for path in folder.iterdir():
        folders.inside(root, name, path.name)
    what = f"{name} ({cls.__name__}) in {folder}"
    options: dict[str, Any] = {"local_files_only": True}
    if is_model(cls):
        _check_model(folder, root, what, variant, use_safetensors)
        safe = bool(files([path.name for path in folder.iterdir()], variant, True)) and use_safetensors is not False
        options |= {"dtype": dtype or "auto", "variant": variant, "use_safetensors": safe}
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # told below, in one line
    elif vocabulary := getattr(cls, "vocab_files_names", None):
        _check_tokenizer(folder, what, vocabulary)
    try:
        with quiet():
            made = cls.from_pretrained(str(folder), **options)  # type: ignore[attr-defined]
    except Exception as error:  # transformers raises whatever its readers raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[0].split(". ")[0] if lines else type(error).__name__  # what follows is advice on hub names
        raise CheckpointError(f"Cannot load {what}: {why.removesuffix('.')}.") from None
    if not is_model(cls):
        return made
    made, info = made
    if info["mismatched_keys"]:
        key, found, wanted = sorted(info["mismatched_keys"])[0]
        raise CheckpointError(f"{what}: {key} has shape {tuple(found)}, but the config wants {tuple(wanted)}.")
    missing = sorted(info["missing_keys"])
    if missing:
        some = ", ".join(missing[:5]) + ", …" * (len(missing) > 5)
        logger.warning("%s lacks %d weights, which start from random numbers: %s.", what, len(missing), some)
    return made.eval()


def _check_model(folder: Path, root: Path, what: str, variant: str | None, use_safetensors: bool | None) -> None:
    config = read_json(folder / "config.json")
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{what} is an adapter on another model (adapter_config.json), not a model.")
    for key, value in _leaves(config):
        if key.endswith("_implementation") and isinstance(value, str) and ("/" in value or ":" in value):
            raise CheckpointError(f"{what} wants to run code from elsewhere ({key}: {value!r}); that is not done.")
    names = [path.name for path in folder.iterdir()]
    found = files(names, variant, use_safetensors)
    if not found:
        there = ", ".join(name for name in names if weights_kind(name)) or "no weights at all"
        raise CheckpointError(f"{what} lacks model{'.' + variant if variant else ''}.safetensors; it has {there}.")
    if found[0].endswith(".json"):
        absent = [path.name for path in weights.shards(folder / found[0], folder, root) if not path.is_file()]
        if absent:
            raise CheckpointError(f"{what} lacks {', '.join(absent)}; the download or copy is incomplete.")


def _check_tokenizer(folder: Path, what: str, vocabulary: dict[str, str]) -> None:
    """transformers makes an empty tokenizer of an empty folder: refuse that."""
    whole, parts = "tokenizer.json", [name for key, name in vocabulary.items() if key != "tokenizer_file"]
    lacking = [name for name in parts if not (folder / name).is_file()]
    if not (folder / whole).is_file() and (lacking or not parts):
        raise CheckpointError(f"{what} has neither {whole} nor {' and '.join(parts) or 'a vocabulary'}.")


def _leaves(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield key, value


_quiet = threading.Lock()
_before: list[tuple[int, bool]] = []  # one entry for each thread inside quiet(); the first has what to go back to


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from logging and drawing progress bars, which it can do for all threads only."""
    from transformers.utils import logging as noise

    with _quiet:
        _before.append(_before[0] if _before else (noise.get_verbosity(), noise.is_progress_bar_enabled()))
        noise.set_verbosity(logging.CRITICAL)
        noise.disable_progress_bar()
    try:
        yield
    finally:
        with _quiet:
            level, bars = _before.pop()
            if not _before:
                noise.set_verbosity(level)
                if bars:
                    noise.enable_progress_bar()
