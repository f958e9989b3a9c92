"""Ways to spoil a checkpoint, drawn from a seed: what a download, a disk, an old tool or an enemy might make of it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ODD = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        10**9,
        -(10**9),
        2**31,
        2**63,
        0.5,
        -0.5,
        1e308,
        float("inf"),
        float("nan"),
    ),
    *("", "x", "\0", "../..", "/etc/passwd", "é" * 300, "auto", "None", "1", [], [1], [1, 2, 3], ["x"], [None], [[]]),
    *({}, {"a": 1}, {"_class_name": "x"}, [0] * 100, [10**9], ["DownBlock2D"], "linear", "epsilon"),
]
"""Values that somebody might find in place of another."""


def spoil(folder: Path, seed: int) -> str:
    """Spoil a checkpoint in place, in one or two ways; returns what was done, in words."""
    rng = random.Random(seed)
    return "; ".join(rng.choice(WAYS)(folder, rng) for _ in range(rng.choice((1, 1, 2))))


def _files(folder: Path, ending: str = "") -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(ending))


def _leaves(value: Any, place: tuple = ()) -> list[tuple]:
    """The places of all values in a JSON document, inner ones included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place] * bool(place) + [leaf for key, one in list(inner)[:60] for leaf in _leaves(one, (*place, key))]


def json_value(folder: Path, rng: random.Random) -> str:
    """Another value, or none, somewhere in a JSON file."""
    file = rng.choice(_files(folder, ".json"))
    try:
        document = json.loads(file.read_text())
    except ValueError:
        return "nothing"
    places = _leaves(document)
    if not places:
        return "nothing"
    place = rng.choice([one for one in places if len(one) == 1] if rng.random() < 0.5 else places)
    owner = document
    for key in place[:-1]:
        owner = owner[key]
    if rng.random() < 0.15:
        del owner[place[-1]]
        value = "nothing"
    else:
        value = owner[place[-1]] = rng.choice(ODD)
    file.write_text(json.dumps(document))
    return f"{file.name}: {place} is {value!r}"[:200]


def json_text(folder: Path, rng: random.Random) -> str:
    """A JSON file that is no JSON, or something else than an object."""
    file = rng.choice(_files(folder, ".json"))
    texts = ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "{}", "\0", '{"a": 1}' * 2]
    text = rng.choice(texts)
    file.write_text(text)
    return f"{file.name} is {text[:20]!r}"


def some_bytes(folder: Path, rng: random.Random) -> str:
    """Bytes changed, cut off or added in any file."""
    file = rng.choice(_files(folder))
    data = bytearray(file.read_bytes())
    how = rng.choice(("change", "cut", "add", "head", "empty"))
    if how == "change" and data:
        for _ in range(rng.choice((1, 3, 50))):
            data[rng.randrange(min(len(data), rng.choice((8, 400, len(data)))))] = rng.randrange(256)
    elif how == "cut":
        del data[rng.randrange(len(data) + 1) :]
    elif how == "add":
        data += rng.randbytes(rng.choice((1, 100)))
    elif how == "head":
        data[:8] = rng.choice((0, 1, 2**40, 2**63)).to_bytes(8, "little")
    else:
        data.clear()
    file.write_bytes(data)
    return f"{file.name}: {how}"


def special_file(folder: Path, rng: random.Random) -> str:
    """Something else in the place of a file or folder: a pipe, links, a folder, a name without anything."""
    path = rng.choice([*_files(folder), *(one for one in folder.iterdir() if one.is_dir())])
    kind = rng.choice(("pipe", "loop", "nowhere", "out", "folder", "gone"))
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "nowhere":
        path.symlink_to("nowhere")
    elif kind == "out":
        path.symlink_to("/etc/passwd")
    elif kind == "folder":
        path.mkdir()
    return f"{path.name}: {kind}"


def weights(folder: Path, rng: random.Random) -> str:
    """Weights of other kinds, shapes or names, some or all of them gone."""
    file = rng.choice(_files(folder, ".safetensors") or [folder])
    try:
        tensors = load_file(file)
    except Exception:
        return "nothing"
    keys = sorted(tensors)
    if not keys:
        return "nothing"
    chosen = keys if rng.random() < 0.2 else rng.sample(keys, min(len(keys), rng.choice((1, 3))))
    how = rng.choice(("int", "complex", "bool", "half", "double", "shape", "scalar", "name", "gone", "nan"))
    kinds = {"int": torch.int32, "complex": torch.complex64, "bool": torch.bool, "half": torch.half}
    for key in chosen:
        if how in kinds or how == "double":
            tensors[key] = tensors[key].to(kinds.get(how, torch.double))
        elif how == "shape":
            tensors[key] = torch.zeros(rng.choice(((3, 5), (0,), (1, 1, 1, 1))))
        elif how == "scalar":
            tensors[key] = torch.tensor(1.0)
        elif how == "nan":
            tensors[key] = torch.full_like(tensors[key], float("nan"))
        else:
            value = tensors.pop(key)
            if how == "name":
                tensors[rng.choice(("x." + key, key[1:] or "x", "text_model." + key))] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return f"{file.parent.name}/{file.name}: {how} of {len(chosen)}"


def shard_index(folder: Path, rng: random.Random) -> str:
    """An index in place of the weights, with entries of all kinds."""
    file = rng.choice(_files(folder, ".safetensors") or _files(folder, ".bin"))
    names = [file.stem + "-00001-of-00001" + file.suffix, "\0", "x" * 300, "../x", "", 3, None]
    target = rng.choice(names)
    entries: Any = rng.choice(({"a": target}, {}, [], None, {"weight_map": {"a": target}}, {"weight_map": {}}))
    entries = entries if rng.random() < 0.3 else {"weight_map": {"a": target}}
    file.rename(file.with_name(names[0]))
    (file.parent / (file.name + ".index.json")).write_text(json.dumps(entries))
    return f"{file.parent.name}: index {entries!r}"[:120]


def pickled(folder: Path, rng: random.Random) -> str:
    """Weights as a pickle that holds something odd."""
    file = rng.choice(_files(folder, ".safetensors") or [folder])
    try:
        tensors: Any = load_file(file)
    except Exception:
        return "nothing"
    if not tensors:
        return "nothing"
    key = rng.choice(sorted(tensors))
    odd = [torch.zeros(1).expand(10**10), torch.zeros(3).to_sparse(), 3, "x", [tensors[key]], tensors[key].int()]
    odd += [torch.empty(10**10, device="meta"), tensors[key].t() if tensors[key].ndim == 2 else tensors[key]]
    which = rng.randrange(len(odd) + 2)
    whole = [odd[which] if which < len(odd) else tensors[key], [1], {"state_dict": tensors}]
    content: Any = {**tensors, key: whole[0]} if which < len(odd) else whole[which - len(odd) + 1]
    stem = "diffusion_pytorch_model" if file.name.startswith("diffusion") else "pytorch_model"
    file.unlink()
    torch.save(content, file.parent / f"{stem}.bin", _use_new_zipfile_serialization=rng.random() < 0.7)
    return f"{file.parent.name}: pickle {which}"


WAYS: list[Callable[[Path, random.Random], str]] = [
    *(json_value, json_value, json_value, json_value, json_value, json_text, some_bytes, some_bytes, special_file),
    *(weights, weights, shard_index, pickled),
]
