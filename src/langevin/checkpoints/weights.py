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

from langevin.checkpoints.config import read_json
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.folders import inside

logger = logging.getLogger(__name__)

STEM = "diffusion_pytorch_model"
#: names of dtypes in safetensors files
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


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
    kind = {None: ".safetensors or .bin", True: ".safetensors (use_safetensors=True)", False: ".bin"}[use_safetensors]
    wanted = f"{STEM}{f'.{variant}' if variant else ''}{kind}"
    there = [name for name in names if re.search(r"\.(safetensors|bin|ckpt|pt|msgpack)$", name)]
    have = f"it has {', '.join(there[:6])}" if there else "it has no weights at all"
    raise CheckpointError(f"There is no {wanted} in {folder}; {have}.")


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
    """Tensors in their own aligned memory, read one after the other, so that nothing is held twice."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):  # checks header, offsets and length
            pass
        with path.open("rb", buffering=0) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
                dtype = getattr(torch, _DTYPES.get(entry["dtype"], ""), None)
                if dtype is None:
                    raise CheckpointError(f"{path}: {name} has the unknown dtype {entry['dtype']}.")
                start, end = entry["data_offsets"]
                memory = torch.empty(end - start, dtype=torch.uint8)
                file.seek(8 + length + start)
                _fill(file, memoryview(memory.numpy()))
                yield name, memory.view(dtype).view(entry["shape"])
    except (SafetensorError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        size = path.stat().st_size
        raise CheckpointError(f"{path} ({size:,} bytes) is damaged or incomplete ({error}); fetch it again.") from None
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from None


def _fill(file: Any, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise EOFError("the file ends early")
        done += count


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
            raise CheckpointError(f"{path} holds Python code ({name}) besides tensors, and is not opened; "
                                  "ask for a .safetensors file.") from None  # fmt: skip
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
    wanted = model.state_dict(keep_vars=True)
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
    fitting = {key: value for key, value in tensors.items() if key in wanted and key not in skip}
    model.load_state_dict(fitting, strict=False, assign=True)
    return {
        "missing_keys": [key for key in wanted if key not in tensors],
        "unexpected_keys": [key for key in tensors if key not in wanted],
        "mismatched_keys": mismatched,
        "error_msgs": [],
    }


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
    shards = _split(_separate(tensors), _size(max_shard_size))
    if len(shards) == 1:
        names = [f"{STEM}{mark}.{form}"]
    else:
        names = [f"{STEM}{mark}-{k:05d}-of-{len(shards):05d}.{form}" for k in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        ready = {key: tensor.detach().to("cpu").contiguous() for key, tensor in shard.items()}
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
    """The tensors, each with memory of its own: safetensors cannot store shared memory."""
    seen: set[int] = set()
    apart = {}
    for key, tensor in tensors.items():
        if tensor.is_meta:
            raise CheckpointError(f"{key} has no values here: the model is offloaded; bring it back before saving.")
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
