"""Files of LoRAs: read into what they add to each layer of some networks, and written."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.checkpoints import small, weights
from langevin.checkpoints.boundary import reading
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import read_json
from langevin.lora.delta import Delta
from langevin.lora.keys import Places

logger = logging.getLogger(__name__)

STEM = "pytorch_lora_weights"
_PEFT_STEM, _PEFT_CONFIG = "adapter_model", "adapter_config.json"
METADATA = "lora_adapter_metadata"
"""The entry of a file's header that says ranks and alphas, since version 0.34 of the reference."""
_MOST_RANK = 1024

Pieces = dict[str, dict[str, Delta]]
"""What a LoRA adds: by part of the pipeline, then by layer."""


@dataclass(frozen=True)
class Settings:
    """What PEFT's config says of a LoRA in one network: r, alpha, and those of single layers by pattern."""

    alpha: float | None = None
    patterns: Mapping[str, float] | None = None
    by_root: bool = False

    def scale(self, layer: str, rank: int) -> float:
        """s of a layer: alpha / rank, or alpha / √rank (rsLoRA: Kalajdzievski 2023); 1 where nothing is said."""
        own = next((alpha for pattern, alpha in (self.patterns or {}).items() if _matches(pattern, layer)), self.alpha)
        return 1.0 if own is None else own / (math.sqrt(rank) if self.by_root else rank)


def _matches(pattern: str, layer: str) -> bool:
    """Whether PEFT's pattern is for this layer: it fits the end of its name."""
    pattern = pattern.removeprefix("^").removeprefix("text_model.")
    return layer == pattern or layer.endswith("." + pattern)


@dataclass(frozen=True)
class LoraFile:
    """What a file holds.

    Attributes:
        tensors: as they are in it.
        settings: by part; that under "" is for all.
        said: the file's name, for messages.
        origin: what pictures record: ``{"file": path, "sha256": of its bytes}``; None for tensors given as such.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Settings]
    said: str
    origin: dict[str, str] | None = None


def read(source: Any, hub: Mapping[str, Any], **where: Any) -> LoraFile:
    """Read a file of tensors; nothing in it is ever run.

    Args:
        source: a file; a folder or hub id with ``pytorch_lora_weights.safetensors`` or ``.bin``; or a state dict.
        hub: options of :func:`langevin.checkpoints.folders.resolve`.
        where: ``weight_name``, ``subfolder`` and ``use_safetensors``: see :func:`langevin.checkpoints.small.find`.

    Raises:
        CheckpointError: there is none, or it is damaged or holds more than tensors.
    """
    if isinstance(source, Mapping):
        wrong = next((key for key, tensor in source.items() if not isinstance(tensor, Tensor)), None)
        if wrong is not None or not all(isinstance(key, str) for key in source):
            raise CheckpointError(f"the LoRA's state dict has {wrong!r:.60}, which is no tensor under a name.")
        return LoraFile(source, {}, "the state dict")
    path = small.find(source, (STEM, _PEFT_STEM), dict(hub), **where).absolute()
    tensors = weights.opened([path])
    settings: dict[str, Settings] = {}
    with reading(f"what {path} says of its LoRA"):
        if path.suffix == ".safetensors":
            settings = _settings_in_header(path)
        beside = path.with_name(_PEFT_CONFIG)
        if path.stem == _PEFT_STEM and beside.is_file():
            settings = {"": _settings(read_json(beside))}
        with path.open("rb") as file:
            sha256 = _sum(file)
    return LoraFile(tensors, settings, str(path), {"file": str(path), "sha256": sha256})


def _sum(file: Any) -> str:
    """SHA-256 of an open file, in hexadecimal."""
    total = hashlib.sha256()
    while block := file.read(2**20):
        total.update(block)
    return total.hexdigest()


def _settings_in_header(path: Path) -> dict[str, Settings]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA)
    if text is None:
        return {}
    held = json.loads(text)
    if not isinstance(held, dict):
        raise ValueError(f"its {METADATA} is no JSON object")
    parts = {part for part in ("unet", "text_encoder") if any(str(key).startswith(f"{part}.") for key in held)}
    said = {part: {k.partition(".")[2]: v for k, v in held.items() if k.startswith(f"{part}.")} for part in parts}
    return {part: _settings(config) for part, config in said.items()} or {"": _settings(held)}


def _settings(config: Mapping[str, Any]) -> Settings:
    patterns = config.get("alpha_pattern") or {}
    alpha = config.get("lora_alpha")
    if not isinstance(patterns, dict) or not all(map(_is_number, [*patterns.values(), 0 if alpha is None else alpha])):
        raise ValueError("its lora_alpha or alpha_pattern holds something else than finite numbers")
    return Settings(alpha, patterns, bool(config.get("use_rslora")))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


# -- what it adds to networks


def pieces(file: LoraFile, networks: Mapping[str, Any]) -> Pieces:
    """What a file adds to each layer of these networks, in the dtype of each. What fits nowhere is named in a warning.

    Raises:
        CheckpointError: nothing fits, or what does is of the wrong shape or kind, or not finite.
    """
    places, unknown = Places(networks), []
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, tensor in file.tensors.items():
        place = places.find(key)
        if place is None:
            unknown.append(key)
            continue
        roles = found.setdefault((place.part, place.layer), {})
        if place.role in roles:
            raise CheckpointError(f"{file.said} has two tensors for one place: {roles[place.role][0]} and {key}.")
        roles[place.role] = key, tensor
    if not found:
        example = ", ".join(f"{part}.{next(iter(names), '…')}" for part, names in places.dotted.items())
        raise CheckpointError(
            f"{file.said} has no LoRA for this pipeline: it has {_some(unknown)}; layers here are such as {example}."
        )
    if unknown:
        logger.warning("%s has what fits nowhere in this pipeline, and is ignored: %s.", file.said, _some(unknown))
    made: Pieces = {}
    for (part, layer), roles in found.items():
        target = places.layers[part][layer]
        settings = file.settings.get(part) or file.settings.get("") or Settings()
        try:
            with reading(f"the LoRA in {file.said}"):
                made.setdefault(part, {})[layer] = _delta(roles, target, layer, settings)
        except Misfit as error:
            raise CheckpointError(f"{file.said} cannot be used: {error}.") from None
    return made


class Misfit(CheckpointError):
    """A tensor that does not fit its layer."""


def _delta(roles: Mapping[str, tuple[str, Tensor]], layer: Any, name: str, settings: Settings) -> Delta:
    """What a layer's tensors mean. Raises Misfit where they do not fit it."""
    missing = [side for side in ("down", "up") if side not in roles]
    if missing:
        raise Misfit(f"it has {next(iter(roles.values()))[0]}, but no {' and no '.join(missing)} for this layer")
    if getattr(layer, "groups", 1) != 1:
        raise Misfit(f"{roles['down'][0]} is for a convolution in groups, which cannot have a LoRA")
    (key, down), (up_key, up) = roles["down"], roles["up"]
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
        raise Misfit(f"{key} is {tuple(down.shape)} and {up_key} {tuple(up.shape)}: these are of no one rank")
    rank, (outside, *inside) = down.shape[0], layer.weight.shape
    most = max(_MOST_RANK, 4 * max(outside, math.prod(inside)))
    if not 1 <= rank <= most:
        raise Misfit(f"{key} is of rank {rank}; 1 to {most} make sense here")
    places = [1] * (len(inside) - 1)
    shapes: dict[str, tuple[int, ...]] = {"down": (rank, *inside), "up": (outside, rank, *places), "bias": (outside,)}
    if "mid" in roles:
        shapes |= {"down": (rank, inside[0], *places), "mid": (rank, rank, *inside[1:])}
    tensors: dict[str, Any] = {
        role: _fitting(*roles[role], shape, layer) for role, shape in shapes.items() if role in roles
    }
    if "magnitude" in roles:
        lengths_key, lengths = roles["magnitude"]
        if lengths.numel() != outside:
            raise Misfit(f"{lengths_key} is {tuple(lengths.shape)}; one number for each of {outside} rows is needed")
        tensors["magnitude"] = _fitting(lengths_key, lengths.flatten(), (outside,), layer)
    scale = settings.scale(name.removeprefix("text_model."), rank)
    if "alpha" in roles:
        alpha_key, alpha = roles["alpha"]
        if alpha.numel() != 1 or not _is_number(float(alpha)):
            raise Misfit(f"{alpha_key} is {alpha.flatten()[:3].tolist()}; one finite number is needed")
        scale = float(alpha) / rank
    return Delta(scale=scale, **tensors)


def _fitting(key: str, tensor: Tensor, shape: tuple[int, ...], layer: nn.Module) -> Tensor:
    """The tensor in this shape (a matrix may be written as a 1x1 convolution) and in the layer's dtype."""
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise Misfit(f"{key} holds {kind} numbers, where floating-point ones are needed")
    if _bare(tensor.shape) != _bare(shape):
        raise Misfit(
            f"{key} is {tuple(tensor.shape)}, where this model's layer wants {shape}; it was made for another model"
        )
    own: torch.dtype = layer.weight.dtype  # type: ignore[assignment, union-attr]
    tensor = tensor.detach().to(own if own.is_floating_point else torch.float32, copy=True).reshape(shape).contiguous()
    if not tensor.isfinite().all():
        raise Misfit(f"{key} has NaN or infinity in {str(tensor.dtype).removeprefix('torch.')}")
    return tensor


def _bare(shape: Any) -> tuple[int, ...]:
    """A shape without the places of a 1x1 convolution."""
    return tuple(shape[:2]) if len(shape) == 4 and tuple(shape[2:]) == (1, 1) else tuple(shape)


def _some(names: list[str], most: int = 4) -> str:
    shown = [name if name.isprintable() and len(name) <= 120 else f"{name[:120]!r}…" for name in names[:most]]
    return ", ".join(shown) + f", … ({len(names)} in all)" * (len(names) > most) or "nothing"
