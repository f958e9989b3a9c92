"""How much LoRAs count: weights by name, and by block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Weight = float | Mapping[str, Any]
"""Of a LoRA in a network: a number, or numbers by block, ``{"down": 0.5, "up": {"block_1": [0.5, 1, 0]}}``."""


def check_name(name: Any) -> None:
    """Raises ValueError unless it can be a LoRA's name."""
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 200:
        raise ValueError(f"adapter_name is {name!r:.60}; a text of 1 to 200 characters is needed")


def check_weight(name: str, weight: Any) -> None:
    """Raises ValueError unless it is a finite number, or a dict of them by block."""
    if isinstance(weight, Mapping):
        unknown = set(weight) - {"down", "mid", "up"}
        if unknown:
            raise ValueError(f"the weight of {name!r} has {sorted(map(str, unknown))}; blocks are: down, mid, up")
        for block in weight.values():
            each = block.values() if isinstance(block, Mapping) else [block]
            for one in [n for e in each for n in (e if isinstance(e, (list, tuple)) else [e])]:
                check_weight(name, float("nan") if isinstance(one, Mapping) else one)
    elif isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) < 1e6:
        raise ValueError(f"the weight of the LoRA {name!r} is {weight!r}; a number, such as 0.8, is needed")


_BLOCK = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(?:attentions\.(\d+))?")


def weight_at(where: str, weight: Weight) -> float:
    """A LoRA's weight in one layer; 1 in those that weights by block do not name."""
    if not isinstance(weight, Mapping):
        return float(weight)
    place = _BLOCK.match(where)
    value: Any = weight.get(place[1], 1.0) if place else 1.0
    if place and isinstance(value, Mapping):
        value = value.get(f"block_{place[2]}", 1.0)
    if place and isinstance(value, (list, tuple)):
        at = int(place[3] or 0)
        value = value[at] if at < len(value) else 1.0
    return float(value)
