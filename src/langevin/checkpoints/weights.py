"""Weight files: found by name, read without running anything, checked against a network, and written in shards."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from langevin.checkpoints.boundary import first_line, reading
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import names_in, plain, read_json
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
    there = names_in(folder)
    problem = None
    for name in pick(there, variant, use_safetensors):
        path = inside(root, str(folder.relative_to(root)), name)
        if not name.endswith(".json"):
            return [plain(path)]
        listed = shards(path, folder, root)
        absent = [shard.name for shard in listed if not shard.is_file()]
        if not absent:
            return listed
        problem = f"{path} lists {', '.join(absent[:3])}{', …' * (len(absent) > 3)}, which the folder lacks"
    if problem:
        raise CheckpointError(f"{problem}; the download or copy is incomplete.")
    forms = {None: ".safetensors or .bin", True: ".safetensors (use_safetensors=True)", False: ".bin"}
    wanted = f"{STEM}{f'.{variant}' if variant else ''}{forms[use_safetensors]}"
    there = [name for name in there if re.search(r"\.(safetensors|bin|ckpt|pt|msgpack)$", name)]
    have = f"it has {', '.join(there[:6])}" if there else "it has no weights at all"
    others = sorted({str(kind[1]) for kind in map(weights_kind, there) if kind and kind[1] not in (None, variant)})
    hint = f" (variant={others[0]!r} reads that)" if others and not variant else ""
    raise CheckpointError(f"There is no {wanted} in {folder}; {have}{hint}.")


def shards(index: Path, folder: Path, root: Path) -> list[Path]:
    """The files that a shard index lists, each a plain name in its folder."""
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or not entries or not all(isinstance(file, str) for file in entries.values()):
        raise CheckpointError(f"{index} has no weight_map from keys to file names; it is no shard index.")
    at = str(folder.relative_to(root))
    for name in sorted(set(entries.values())):
        if not name or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} names the shard {name!r}, which leads out of its folder; it is not opened.")
        if "\0" in name or len(os.fsencode(name)) > 255:
            raise CheckpointError(f"{index} names a shard {name[:60]!r}…, which can be no file's name; fetch it again.")
    return [inside(root, at, name) for name in sorted(set(entries.values()))]


def read(
    files: list[Path], dtype: torch.dtype | None = None, device: Any = "cpu", copy: bool = False
) -> dict[str, Tensor]:
    """All tensors of the files: :func:`opened`, then :func:`converted`."""
    return converted(opened(files), dtype, device, copy or not may_stay(files))


def may_stay(files: list[Path]) -> bool:
    """Whether tensors of these files may be used where they are; those of pickles are copied."""
    return all(path.suffix == ".safetensors" for path in files)


def opened(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of the files as views of the mapped files: their shapes are known, nothing has been read yet.

    Raises:
        CheckpointError: a file is damaged, or a pickle holds more than tensors.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        with reading(f"{path}"):
            plain(path)
            tensors.update(_read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path))
    return tensors


def converted(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, device: Any = "cpu", copy: bool = False
) -> dict[str, Tensor]:
    """The tensors, floating-point ones in ``dtype`` (their own where None), on ``device``.

    Args:
        tensors: from :func:`opened`.
        dtype, device: what they are converted to.
        copy: copy all into memory. Otherwise tensors that need no conversion stay views of the mapped file: what nobody
            looks at is never read, and processes share what is. Such a view outlives a file that is replaced (as
            langevin's own saving does), not one that somebody overwrites in place.
    """
    return {
        name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None, copy=copy)
        for name, tensor in tensors.items()
    }


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are views of the mapped file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open is no mapping)
                yield name, file.get_tensor(name)
    except (SafetensorError, RuntimeError, ValueError, EOFError) as error:
        size = path.stat().st_size
        message = f"{path} ({size:,} bytes) is damaged or incomplete ({first_line(error)}); fetch it again."
        raise CheckpointError(message) from None
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from None


def _read_pickle(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a ``.bin`` file. Only tensors are unpickled; whatever else is in it is not run."""
    import zipfile

    size = path.stat().st_size
    try:
        if size == 0:
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
    except Exception as error:  # a damaged pickle raises whatever its opcodes lead to
        raise CheckpointError(f"{path} is damaged or incomplete ({first_line(error)}); fetch it again.") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise CheckpointError(f"{path} is not a dict of tensors; it is no file of weights.")
    for name, tensor in loaded.items():
        if tensor.layout is not torch.strided or tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(f"{path} has {str(name)!r} larger than the file itself; it is no file of weights.")
        yield str(name), tensor


_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace}
_FACTORIES |= {torch.eye, torch.logspace, torch.randint, torch.randperm, torch.empty_strided}


_SIZED = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}


class Measured(TorchFunctionMode):
    """Inside, a network is built that may not become much larger than the file with its weights.

    A config can ask for a milliard layers. Construction ends with an error as soon as it makes many more tensors than
    the file has, or fills much more memory.

    Args:
        held: what the file holds, from :func:`opened`; no limits where None.
        fast: do not make and fill the tensors that a checkpoint will replace. What ``torch.empty`` gives (which is what
            layers make parameters with) then has no storage, and initialisation of such tensors does nothing;
            everything else, such as buffers that a constructor computes, is as always. Unlike a patched ``nn.Module``
            this holds for the current thread only.
    """

    def __init__(self, held: Mapping[str, Tensor] | None = None, fast: bool = True) -> None:
        super().__init__()
        self.fast = fast
        self.held = None if held is None else len(held)
        self.tensors = 4 * len(held or ()) + 1000
        self.elements = room(held or {})

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            if self.held is not None:
                self._count(func, args, kwargs)
            if self.fast and func is torch.empty and kwargs.get("device") is None:
                kwargs = {**kwargs, "device": "meta"}
        elif self.fast and getattr(func, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)

    def _count(self, func: Any, args: tuple, kwargs: dict) -> None:
        self.tensors -= 1
        if not (self.fast and func is torch.empty):
            self.elements -= _count_of(func, args, kwargs)
        if self.tensors < 0 or self.elements < 0:
            raise ValueError(f"it describes a far larger network than that of the file ({self.held} weights)")


def _count_of(func: Any, args: tuple, kwargs: dict) -> int:
    """How many numbers ``torch.zeros(…)`` and the like will give."""
    if func in _SIZED and args:  # by hand what is asked for most: even a tensor without storage takes its time
        size = args[0] if isinstance(args[0], (list, tuple)) else args
        if all(type(length) is int for length in size):
            return math.prod(size)
    told = {key: value for key, value in kwargs.items() if key not in ("generator", "out", "pin_memory")}
    return func(*args, **{**told, "device": "meta"}).numel()


def room(held: Mapping[str, Tensor]) -> int:
    """How many numbers a network may hold whose file holds these: room for buffers and what was left out."""
    return 3 * sum(tensor.numel() for tensor in held.values()) + 2**22


def without_storage(model: nn.Module) -> list[str]:
    """Names of parameters and buffers that were never given values."""
    both = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [name for name, tensor in both if tensor.is_meta]


def compare(
    model: nn.Module, tensors: Mapping[str, Tensor], where: str, ignore_mismatched_sizes: bool = False
) -> dict[str, list]:
    """Hold what a file has (from :func:`opened`) against a network.

    Returns:
        ``missing_keys``, ``unexpected_keys``, ``mismatched_keys`` (each ``(key, shape in the file, shape wanted)``) and
        ``error_msgs``, which is empty.

    Raises:
        CheckpointError: shapes differ and ``ignore_mismatched_sizes`` is False, no key at all is known, numbers are
            of the wrong kind, or what is missing would be larger than all that is there.
    """
    wanted = {key: owner[leaf] for key, (owner, leaf) in _places(model).items()}
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
    for key, value in wanted.items():
        if key in tensors and value.is_floating_point() and not tensors[key].is_floating_point():
            kind = str(tensors[key].dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{where}: {key} holds {kind} numbers, where floating-point ones are needed; the file is of another "
                "kind (quantised, perhaps), or damaged."
            )
    missing = [key for key in wanted if key not in tensors]
    afresh = sum(wanted[key].numel() for key in [*missing, *(key for key, *_ in mismatched)])
    if afresh > room(tensors):
        raise CheckpointError(
            f"{where} lacks {afresh:,} of the numbers that this {name} wants, more than it holds; the config does not "
            "belong to these weights."
        )
    unexpected = [key for key in tensors if key not in wanted]
    return {
        "missing_keys": missing,
        "unexpected_keys": unexpected,
        "mismatched_keys": mismatched,
        "error_msgs": [],
    }


def assign(
    model: nn.Module, tensors: dict[str, Tensor], where: str, ignore_mismatched_sizes: bool = False
) -> dict[str, list]:
    """Make ``tensors`` the model's parameters and buffers, without copying; returns and errors as :func:`compare`."""
    told = compare(model, tensors, where, ignore_mismatched_sizes)
    skip = {key for key, *_ in told["mismatched_keys"]}
    for key, (owner, leaf) in _places(model).items():
        if key in tensors and key not in skip:
            old, new = owner[leaf], tensors[key]
            owner[leaf] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return told


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
        _write_file(_separate(shard), folder / name, safe_serialization)
    if len(shards) > 1:
        total = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        names.append(f"{STEM}.{form}.index{mark}.json")
        (folder / names[-1]).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def _write_file(tensors: dict[str, Tensor], path: Path, safe_serialization: bool) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        if safe_serialization:
            save_file(tensors, path, metadata={"format": "pt"})
        else:
            torch.save(tensors, path)
    except (SafetensorError, RuntimeError, OSError) as error:  # no room left: each writer has its own word for it
        why = first_line(error)
        if "unexpected pos" in why:  # torch's
            why = "not all of it was taken, so there is no room left"
        raise CheckpointError(f"Cannot write {path}: {why}.") from None


def rename_keys(file: Path, renamed: Callable[[str], str]) -> None:
    """Give the weights in a safetensors file, or a shard index, other names, in place."""
    if file.suffix == ".json":
        index = read_json(file)
        index["weight_map"] = {renamed(key): name for key, name in sorted(index["weight_map"].items())}
        file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return
    passing = file.with_name(file.name + ".renamed")
    with file.open("rb") as old, passing.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        header = {key if key == "__metadata__" else renamed(key): entry for key, entry in header.items()}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new)
    os.replace(passing, file)


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
