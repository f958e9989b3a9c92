"""Weight files: found by name, read without running anything, checked against a network, and written in shards."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import read_json
from langevin.checkpoints.folders import inside
from langevin.checkpoints.saving import weights_kind

logger = logging.getLogger(__name__)

STEM = "diffusion_pytorch_model"


def pick(
    names: list[str], variant: str | None = None, use_safetensors: bool | None = None, stem: str = STEM
) -> list[str]:
    """Which of a folder's files to read for one set of weights, best first; the last resort comes last.

    Safetensors come before pickles, a shard index before a single file. Each name is a weight file or a shard index.

    Args:
        names: the folder's files.
        variant: such as ``"fp16"`` for ``diffusion_pytorch_model.fp16.safetensors``.
        use_safetensors: True allows nothing else, False only pickles (``.bin``), None prefers safetensors.
    """
    mark = f".{variant}" if variant else ""
    formats = {None: ("safetensors", "bin"), True: ("safetensors",), False: ("bin",)}[use_safetensors]
    wanted = []
    for form in formats:
        wanted += [f"{stem}.{form}.index{mark}.json", f"{stem}{mark}.{form}.index.json", f"{stem}{mark}.{form}"]
    return [name for name in dict.fromkeys(wanted) if name in names]


def needed(
    names: list[str], variant: str | None = None, use_safetensors: bool | None = None, stem: str = STEM
) -> list[str]:
    """The files to download for one set of weights: the best of :func:`pick`, and with an index all its shards."""
    best = pick(names, variant, use_safetensors, stem)[:1]
    if best and best[0].endswith(".json"):
        form = "safetensors" if ".safetensors" in best[0] else "bin"
        mark = rf"\.{re.escape(variant)}" if variant else ""
        shard = re.compile(rf"{stem}({mark}-\d+-of-\d+|-\d+-of-\d+{mark})\.{form}")
        best += [name for name in names if shard.fullmatch(name)]
    return best


def locate(
    folder: Path, variant: str | None = None, use_safetensors: bool | None = None, root: Path | None = None
) -> list[Path]:
    """The files that hold a network's weights: one, or all shards.

    Args:
        folder: the network's folder.
        variant, use_safetensors: see :func:`pick`.
        root: the checkpoint that the folder is part of; no file may lie outside. The folder itself where None.

    Raises:
        CheckpointError: there are none, a shard is missing, or an entry leads out of the checkpoint.
    """
    root = root or folder
    names = sorted(path.name for path in folder.iterdir())
    problem = None
    for name in pick(names, variant, use_safetensors):
        path = inside(root, str(folder.relative_to(root)), name)
        if not name.endswith(".json"):
            return [path]
        listed = shards(path, folder, root)
        absent = [shard.name for shard in listed if not shard.is_file()]
        if not absent:
            return listed
        problem = f"{path} lists {', '.join(absent[:3])}{', …' * (len(absent) > 3)}, which the folder lacks"
    if problem:
        raise CheckpointError(f"{problem}; the download or copy is incomplete.")
    forms = {None: ".safetensors or .bin", True: ".safetensors (use_safetensors=True)", False: ".bin"}
    wanted = f"{STEM}{f'.{variant}' if variant else ''}{forms[use_safetensors]}"
    there = [name for name in names if re.search(r"\.(safetensors|bin|ckpt|pt|msgpack)$", name)]
    have = f"it has {', '.join(there[:6])}" if there else "it has no weights at all"
    others = sorted({str(kind[1]) for kind in map(weights_kind, there) if kind and kind[1] not in (None, variant)})
    hint = f" (variant={others[0]!r} reads that)" if others and not variant else ""
    raise CheckpointError(f"There is no {wanted} in {folder}; {have}{hint}.")


def shards(index: Path, folder: Path, root: Path) -> list[Path]:
    """The files that a shard index lists, each a plain name in its folder."""
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
        raise CheckpointError(f"{index} has no weight_map from keys to file names; it is no shard index.")
    at = str(folder.relative_to(root))
    for name in sorted(set(entries.values())):
        if Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} names the shard {name!r}, which leads out of its folder; it is not opened.")
    return [inside(root, at, name) for name in sorted(set(entries.values()))]


def read(files: list[Path], dtype: torch.dtype | None = None, device: Any = "cpu") -> dict[str, Tensor]:
    """All tensors of the files, floating-point ones in ``dtype`` (their own where None), on ``device``.

    Raises:
        CheckpointError: a file is damaged, or a pickle holds more than tensors.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        reader = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
        for name, tensor in reader(path):
            target = dtype if tensor.is_floating_point() else None
            tensors[name] = tensor.to(device=device, dtype=target)
    return tensors


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are views of the mapped file: what nobody looks at is never read.

    The mapping outlives a file that is replaced (as langevin's own saving does), not one that is overwritten in place.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open is no mapping)
                yield name, file.get_tensor(name)
    except (SafetensorError, RuntimeError, ValueError, EOFError) as error:
        size = path.stat().st_size
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} ({size:,} bytes) is damaged or incomplete ({first}); fetch it again.") from None
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from None


def _read_pickle(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a ``.bin`` file. Only tensors are unpickled; whatever else is in it is not run."""
    import zipfile

    try:
        if path.stat().st_size == 0:
            raise EOFError("the file is empty")
        # mapped: read once, straight into the dtype that is wanted
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global) (\S+)", str(error)) if "nsupported" in str(error) else None
        if found:
            name = found[1].strip("'`\"")
            raise CheckpointError(
                f"{path} holds Python code ({name}) besides tensors, and is not opened; ask for a .safetensors file."
            ) from None
        raise CheckpointError(f"{path} is damaged, or no file of tensors; fetch it again.") from None
    except (EOFError, RuntimeError, ValueError, KeyError, OSError, IndexError, AssertionError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is damaged or incomplete ({first}); fetch it again.") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise CheckpointError(f"{path} is not a dict of tensors; it is no file of weights.")
    for name, tensor in loaded.items():
        yield name, tensor.clone()


class FastInit(TorchFunctionMode):
    """Inside, networks are built without making and filling the tensors that a checkpoint will replace.

    What ``torch.empty`` gives (which is what layers make parameters with) has no storage, and initialisation of such
    tensors does nothing; everything else, such as buffers that a constructor computes, is as always. Unlike a patched
    ``nn.Module`` this holds for the current thread only.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        elif getattr(func, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def without_storage(model: nn.Module) -> list[str]:
    """Names of parameters and buffers that were never given values."""
    both = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [name for name, tensor in both if tensor.is_meta]


def assign(
    model: nn.Module, tensors: dict[str, Tensor], where: str, ignore_mismatched_sizes: bool = False
) -> dict[str, list]:
    """Make ``tensors`` the model's parameters and buffers, without copying.

    Returns:
        ``missing_keys``, ``unexpected_keys``, ``mismatched_keys`` (each ``(key, shape in the file, shape wanted)``) and
        ``error_msgs``, which is empty.

    Raises:
        CheckpointError: shapes differ and ``ignore_mismatched_sizes`` is False, or no key at all is known.
    """
    places = _places(model)
    wanted = {key: owner[leaf] for key, (owner, leaf) in places.items()}
    name = type(model).__name__
    mismatched = [
        (key, tuple(tensors[key].shape), tuple(value.shape))
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if mismatched and not ignore_mismatched_sizes:
        key, found, shape = mismatched[0]
        others = len(mismatched) - 1
        more = f" ({others} other weight{'s differ' if others > 1 else ' differs'} too)" if others else ""
        raise CheckpointError(
            f"{where}: {key} has shape {found}, but this {name} wants {shape}{more}; the config does not belong to "
            "these weights (ignore_mismatched_sizes=True starts such weights afresh)."
        )
    if wanted and not wanted.keys() & tensors.keys():
        first = next(iter(tensors), "no key")
        raise CheckpointError(
            f"{where} has no weight of a {name}: it has {first!r}, …, where {next(iter(wanted))!r}, … are wanted; the "
            "file belongs to another model."
        )
    skip = {key for key, *_ in mismatched}
    for key, (owner, leaf) in places.items():
        if key in tensors and key not in skip:
            old, new = owner[leaf], tensors[key]
            owner[leaf] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return {
        "missing_keys": [key for key in wanted if key not in tensors],
        "unexpected_keys": [key for key in tensors if key not in wanted],
        "mismatched_keys": mismatched,
        "error_msgs": [],
    }


def _places(model: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Where each tensor of the state dict is kept: ``key: (a module's parameters or buffers, name in there)``."""
    places = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = path + "." if path else ""
        for owner, passing in ((module._parameters, ()), (module._buffers, module._non_persistent_buffers_set)):
            for leaf, tensor in owner.items():
                if tensor is not None and leaf not in passing:
                    places[prefix + leaf] = (owner, leaf)
    return places


def write(
    folder: Path,
    tensors: dict[str, Tensor],
    *,
    safe_serialization: bool = True,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
) -> list[Path]:
    """Write weights into a folder, in shards with an index if they are larger than ``max_shard_size``.

    Raises:
        CheckpointError: the size cannot be read, or a tensor has no storage (a part moved away by offloading).
    """
    form = "safetensors" if safe_serialization else "bin"
    mark = f".{variant}" if variant else ""
    offloaded = next((key for key, tensor in tensors.items() if tensor.is_meta), None)
    if offloaded is not None:
        raise CheckpointError(f"{offloaded} has no values: the network is offloaded; call remove_all_hooks() first.")
    shards = _split(tensors, _size(max_shard_size))
    if len(shards) == 1:
        names = [f"{STEM}{mark}.{form}"]
    else:
        names = [f"{STEM}{mark}-{k:05d}-of-{len(shards):05d}.{form}" for k in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        ready = _separate(shard)
        if safe_serialization:
            from safetensors.torch import save_file

            save_file(ready, folder / name, metadata={"format": "pt"})
        else:
            torch.save(ready, folder / name)
    if len(shards) > 1:
        total = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        names.append(f"{STEM}.{form}.index{mark}.json")
        (folder / names[-1]).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own: safetensors cannot store shared memory."""
    seen: set[int] = set()
    apart = {}
    for key, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage()
        own = storage.data_ptr() not in seen and storage.nbytes() == tensor.numel() * tensor.element_size()
        seen.add(storage.data_ptr())
        apart[key] = tensor if own else tensor.clone()
    return apart


def _split(tensors: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = most
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = most
        shards[-1][key] = tensor
        room -= size
    return shards


def _size(text: int | str) -> int:
    """Bytes of a size such as ``"10GB"``, ``"500MiB"`` or a number."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)(i?)B\s*", text, re.IGNORECASE)
    if not match:
        raise CheckpointError(f"max_shard_size is {text!r}; it must be bytes, or a text such as '10GB' or '500MiB'.")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))


def parse_dtype(dtype: Any) -> torch.dtype | None:
    """A dtype from itself, from its name (``"float16"``, ``"fp16"``, …); None for None and ``"auto"``.

    Raises:
        CheckpointError: it is something else.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    short = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
    name = str(dtype).removeprefix("torch.")
    found = getattr(torch, short.get(name, name), None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"{dtype!r} is no dtype; give torch.float32, torch.float16, torch.bfloat16 or its name.")
    return found


def parse_device(device_map: Any) -> torch.device | None:
    """A device from itself, its name, ``{"": device}``, None, or ``"auto"``: the accelerator if there is one.

    Raises:
        CheckpointError: it is something else, such as a map of layers to devices.
    """
    if isinstance(device_map, dict) and list(device_map) == [""]:
        device_map = device_map[""]
    if device_map in ("auto", "balanced"):
        device_map = accelerator() or "cpu"
    try:
        return None if device_map is None else torch.device(device_map)
    except (RuntimeError, TypeError):
        raise CheckpointError(f"device_map is {device_map!r}; give one device, such as 'cuda', or 'auto'.") from None


def accelerator() -> torch.device | None:
    """The machine's accelerator, None where there is none."""
    found = getattr(torch, "accelerator", None)  # torch 2.6 and later
    if found is not None:
        return found.current_accelerator() if found.is_available() else None
    return torch.device("cuda") if torch.cuda.is_available() else None
