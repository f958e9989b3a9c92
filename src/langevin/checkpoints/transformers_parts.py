"""Text encoders, tokenizers and image processors: the parts of a pipeline that come from transformers.

Only classes of transformers itself are loaded, and nothing in a folder is run: no remote code, no kernels by name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from langevin.checkpoints import folders, vocabularies, weights
from langevin.checkpoints.boundary import first_line, reading
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import names_in, plain, read_json
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
    disable_mmap: bool = False,
) -> Any:
    """Load one part of a pipeline.

    Args:
        cls: from :func:`find_class`, or a subclass of ours.
        root: the pipeline's folder; nothing outside is opened.
        name: the part's folder in it.
        dtype: of a model's weights; the file's own where None.
        variant, use_safetensors: which of a model's weight files.
        disable_mmap: copy a model's weights into memory.

    Raises:
        CheckpointError: the part is incomplete, damaged, of wrong shapes, or wants code to be run.
    """
    folder = folders.inside(root, name)
    for file in names_in(folder):
        path = folders.inside(root, name, file)
        if path.exists() and not path.is_dir():
            plain(path)
    what = f"{name} ({cls.__name__}) in {folder}"
    vocabularies.check_sizes(folder, what)
    if is_model(cls):
        files = _weight_files(folder, root, what, variant, use_safetensors)
        return _model(cls, folder, what, files, dtype, disable_mmap)
    if vocabulary := getattr(cls, "vocab_files_names", None):
        _check_tokenizer(folder, what, vocabulary)
        vocabularies.check_tokenizer(folder, what)
        cls = _reader_of(cls, folder, vocabulary)
    else:
        vocabularies.check_processor(folder, what)
    with _reading(what):
        made = cls.from_pretrained(str(folder), local_files_only=True)  # type: ignore[attr-defined]
        if vocabulary:
            _try_out(made, what)
        elif hasattr(made, "preprocess"):
            made(Image.new("RGB", (64, 48)), return_tensors="pt")
    return made


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Transformers raises whatever its readers raise, and follows it with advice on names at the hub."""
    with reading(what), quiet():
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"Cannot load {what}: {first_line(error).split('. ')[0]}.") from None


def _try_out(tokenizer: Any, what: str) -> None:
    """Have a tokenizer read a short text: many kinds of damage are found only then."""
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest >= 1:
        raise CheckpointError(
            f"{what}: model_max_length is {longest!r} in tokenizer_config.json, where a number of tokens is needed."
        )
    numbers = tokenizer("a picture, 1").input_ids
    if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckpointError(f"{what} turns words into {str(numbers)[:60]}, where numbers are needed; it is damaged.")


def _model(cls: Any, folder: Path, what: str, files: list[Path], dtype: torch.dtype | None, disable_mmap: bool) -> Any:
    """A network of transformers, with the weights in ``files``, under whatever version's names they are there."""
    held = weights.opened(files)
    with _reading(what):
        config = cls.config_class.from_pretrained(str(folder), local_files_only=True)
        _check_numbers(config, what)
        config.model_type = cls.config_class.model_type
        end = getattr(config, "eos_token_id", None)
        if "CLIP" in cls.__name__ and end is not None and type(end) is not int:  # is compared with tokens, in each call
            raise CheckpointError(
                f"{what} has {str(end)[:60]} for 'eos_token_id', where one number is needed; correct it."
            )
        with weights.Measured(held):
            made = cls(config)
        renamed = _present_names(cls, held, made.state_dict())
        present = {renamed[key]: tensor for key, tensor in held.items()}
        missing = weights.compare(made, present, what)["missing_keys"]
        copy = disable_mmap or not weights.may_stay(files)
        config._name_or_path = str(folder)
        if dtype is not None and not missing and not _is_particular(made):
            weights.assign(made, weights.converted(present, dtype, copy=copy), what)
            made.tie_weights()
            made.config.dtype = dtype
            return made.eval()
        options = {"dtype": dtype or "auto", "output_loading_info": True}
        with weights.Measured(held, fast=False):
            tensors = weights.converted(present, copy=copy)  # which of them stay in float32 is not known here
            made, info = cls.from_pretrained(None, config=config, state_dict=tensors, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        some = ", ".join(missing[:5]) + ", …" * (len(missing) > 5)
        logger.warning("%s lacks %d weights, which start from random numbers: %s.", what, len(missing), some)
    return made.eval()


def _check_numbers(config: Any, what: str) -> None:
    """Refuse a config of transformers that has something else where its class has a number."""
    try:
        usual = vars(type(config)())
    except Exception:  # a class that cannot do without arguments
        return
    for name, default in usual.items():
        value = getattr(config, name, default)
        if hasattr(value, "to_dict"):
            _check_numbers(value, what)
            continue
        number = type(value) in (int, float) and math.isfinite(value)
        if type(default) in (int, float) and not name.endswith("token_id") and not number:
            raise CheckpointError(f"{what} has {str(value)[:60]} for {name!r}, where a number is needed; correct it.")


def _is_particular(model: Any) -> bool:
    """Whether only transformers itself knows how to fill a network: some layers keep to float32, or buffers that are in
    no file depend on the dtype."""
    kept = {*model.state_dict()}
    own = any(tensor.is_floating_point() and name not in kept for name, tensor in model.named_buffers())
    return own or any(getattr(model, f"_keep_in_fp32_modules{more}", None) for more in ("", "_strict"))


_OLD_NAMES = {
    "CLIPTextModel": ("", "text_model."),
    "CLIPVisionModel": ("", "vision_model."),
    "StableDiffusionSafetyChecker": ("vision_model.", "vision_model.vision_model."),
}
"""How keys of these networks begin under transformers 5, and how they began under 4: the names that every version, and
the reference library, reads."""


def save(part: Any, folder: Path, **options: Any) -> None:
    """Write a part into a folder, its weights under the names that all versions of transformers read.

    Args:
        part: a network, tokenizer or processor of transformers.
        folder: where to.
        options: of the part's own ``save_pretrained``.
    """
    with quiet():
        part.save_pretrained(folder, **options)
    now, then = _OLD_NAMES.get(type(part).__name__, ("", ""))

    def renamed(key: str) -> str:
        return then + key.removeprefix(now) if key.startswith(now) and not key.startswith(then) else key

    for file in sorted(folder.iterdir()) if then else ():
        kind = weights_kind(file.name)
        if kind is not None and not file.name.endswith(".bin"):
            weights.rename_keys(file, renamed)


_WRAPPERS = ("text_model", "vision_model")
"""Modules that transformers 4 has around a model's layers and transformers 5 has not: weights are called
``text_model.embeddings.…`` in files of the one and ``embeddings.…`` in files of the other."""


def _present_names(cls: Any, held: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """For each key of a file, what the network of the version that is installed calls it; itself where unknown."""
    exact = {*wanted}
    # a file of both of CLIP's models has the words' under text_model and the pictures' under vision_model
    own = [word for word in _WRAPPERS if word.split("_")[0] in cls.__name__.lower()] or list(_WRAPPERS)

    def bare(key: str) -> str:
        inner = key.removeprefix(f"{cls.base_model_prefix}.")  # which a file of a model with a head has
        return ".".join(word for word in inner.split(".") if word not in own)

    places = {bare(key): key for key in exact}
    names = {key: key if key in exact else places.get(bare(key), key) for key in held}
    taken = Counter(names.values())
    return {key: name if taken[name] == 1 else key for key, name in names.items()}


def _weight_files(folder: Path, root: Path, what: str, variant: str | None, use_safetensors: bool | None) -> list[Path]:
    """The files with a model's weights: one, or all shards. Refuses a model that wants code to be run."""
    config = read_json(folder / "config.json")
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{what} is an adapter on another model (adapter_config.json), not a model.")
    for key, value in _leaves(config):
        if key.endswith("_implementation") and isinstance(value, str) and ("/" in value or ":" in value):
            raise CheckpointError(f"{what} wants to run code from elsewhere ({key}: {value!r}); that is not done.")
    names = names_in(folder)
    found = files(names, variant, use_safetensors)
    if not found:
        there = ", ".join(name for name in names if weights_kind(name)) or "no weights at all"
        raise CheckpointError(f"{what} lacks model{'.' + variant if variant else ''}.safetensors; it has {there}.")
    if not found[0].endswith(".json"):
        return [folder / found[0]]
    shards = weights.shards(folder / found[0], folder, root)
    absent = [path.name for path in shards if not path.is_file()]
    if absent:
        raise CheckpointError(f"{what} lacks {', '.join(absent)}; the download or copy is incomplete.")
    return shards


def _check_tokenizer(folder: Path, what: str, vocabulary: dict[str, str]) -> None:
    """transformers makes an empty tokenizer of an empty folder: refuse that."""
    whole, parts = "tokenizer.json", [name for key, name in vocabulary.items() if key != "tokenizer_file"]
    lacking = [name for name in parts if not (folder / name).is_file()]
    if not (folder / whole).is_file() and (lacking or not parts):
        raise CheckpointError(f"{what} has neither {whole} nor {' and '.join(parts) or 'a vocabulary'}.")


def _reader_of(cls: type, folder: Path, vocabulary: dict[str, str]) -> type:
    """The class that reads the files a tokenizer has: transformers 4 has another one for ``tokenizer.json`` alone."""
    import transformers

    if "tokenizer_file" in vocabulary or all((folder / name).is_file() for name in vocabulary.values()):
        return cls
    return getattr(transformers, f"{cls.__name__}Fast", cls)


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
