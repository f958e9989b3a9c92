"""Files of LoRAs, written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from langevin.checkpoints import saving
from langevin.checkpoints.errors import CheckpointError
from langevin.lora.files import METADATA, STEM


def write(
    folder: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    weight_name: str | None = None,
    safe_serialization: bool = True,
) -> Path:
    """Write a LoRA into a folder; what was there before stays whole until the new file is.

    Args:
        tensors: under the names that they get in the file.
        metadata: ``{"unet.r": 4, …}``; left out where empty, and of pickles.

    Raises:
        CheckpointError: it cannot be written.
    """
    from safetensors.torch import save

    name = weight_name or f"{STEM}.{'safetensors' if safe_serialization else 'bin'}"
    path = saving.make_folder(folder) / name
    if Path(name).name != name or path.is_dir():
        raise CheckpointError(f"weight_name is {name!r}; the name of a file is needed.")
    held = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    if safe_serialization:
        header = {METADATA: json.dumps(metadata, indent=2, sort_keys=True)} if metadata else {}
        content = save(held, metadata={"format": "pt", **header})
    else:
        torch.save(held, buffer := io.BytesIO())
        content = buffer.getvalue()
    saving.replace_file(path, content)
    return path


def named(part: str, layers: Any) -> dict[str, Tensor]:
    """Tensors of a part's LoRA under the names that files have for them; a module gives its own state dict."""
    held = layers.state_dict() if isinstance(layers, nn.Module) else dict(layers)
    wrong = [key for key, tensor in held.items() if not isinstance(tensor, Tensor)]
    if wrong:
        raise ValueError(f"the layers of {part} have {wrong[0]!r}, which is no tensor; give a state dict")
    if part == "text_encoder":
        held = {re.sub(r"\.lora\.(down|up)\.", r".lora_linear_layer.\1.", key): value for key, value in held.items()}
    return {key if key.startswith(f"{part}.") else f"{part}.{key}": tensor for key, tensor in held.items()}
