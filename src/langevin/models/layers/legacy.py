"""Old names of weights."""

from __future__ import annotations

import re

from torch import Tensor

_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$")
_NEW_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rename_old_attention(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attention weights by their present names, from those of diffusers 0.15 and older (``query``, ``proj_attn``)."""
    return {_OLD_ATTENTION.sub(_new_name, key): value for key, value in state_dict.items()}


def _new_name(match: re.Match[str]) -> str:
    place, old, which = match.groups()
    return f"{place}.{_NEW_NAMES[old]}.{which}"
