"""The names under which files keep LoRAs: which layer of which network a tensor is for, and what it is there.

======================================================  ==============================================================
``unet.<layer>.lora.down.weight``, ``.up``              the reference's training script
``unet.<layers>.processor.to_q_lora.down.weight``       the reference, 0.17; without ``unet.`` 0.12 to 0.16
``text_encoder.<layer>.lora_linear_layer.down.weight``  text encoders; older ``….self_attn.to_q_lora.down.weight``
``unet.<layer>.lora_A.weight``, ``lora_B``              PEFT, also with the adapter's name before ``.weight``
``lora_unet_<layer with _>.lora_down.weight``           kohya; ``lora_te_…`` text encoder; ``.alpha``, ``.dora_scale``
======================================================  ==============================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from langevin.lora.adapters import layers

_ROLES = {"A": "down", "B": "up"}
_KEY = re.compile(
    r"(?P<where>.{1,500}?)(?:"
    r"(?:\.processor)?\.(?P<old>to_q|to_k|to_v|to_out|add_k_proj|add_v_proj)_lora\.(?P<first>down|up)\.weight"
    r"|\.lora(?:_linear_layer)?\.(?P<second>down|up)\.weight"
    r"|\.lora_(?P<third>A|B|down|up|mid)(?:\.[^.]{1,200})?\.weight"
    r"|\.lora_B(?:\.[^.]{1,200})?\.(?P<bias>bias)"
    r"|(?:\.lora(?:_linear_layer)?)?\.(?P<alpha>alpha)"
    r"|\.(?P<magnitude>dora_scale|lora_magnitude_vector)(?:\.[^.]{1,200}){0,2}"
    r")"
)
_FLAT = re.compile(r"lora_(unet|te1?)_(?:text_model_)?(.+)")
_PREFIX = re.compile(r"(?:base_model\.model\.)?(?:(unet|text_encoder)\.)?(?:text_model\.)?(.+)")
_OLD = {
    "unet": {"to_out": "to_out.0"},
    "text_encoder": {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"},
}


class Place(NamedTuple):
    """Where a tensor belongs: the pipeline's part, its layer, and what it is there: ``down``, ``up``, ``mid``,
    ``alpha``, ``magnitude`` or ``bias``.
    """

    part: str
    layer: str
    role: str


class Places:
    """Finds layers of networks by the names that files have for them.

    Args:
        networks: by part, ``{"unet": …, "text_encoder": …}``.
    """

    def __init__(self, networks: Mapping[str, Any]) -> None:
        self.layers = {part: layers(network) for part, network in networks.items()}
        self.dotted = {part: {_short(name): name for name in found} for part, found in self.layers.items()}
        self.flat = {
            part: {short.replace(".", "_"): name for short, name in dotted.items()}
            for part, dotted in self.dotted.items()
        }

    def find(self, key: str) -> Place | None:
        """The place of a key; None for one that is of no known form, or of no layer here."""
        found = _KEY.fullmatch(key)
        if found is None:
            return None
        role = next((name for name in ("alpha", "magnitude", "bias") if found[name]), None)
        side = found["first"] or found["second"] or found["third"]
        role = role or _ROLES.get(side, side)
        if flat := _FLAT.fullmatch(found["where"]):
            part = "unet" if flat[1] == "unet" else "text_encoder"
            layer = self.flat.get(part, {}).get(flat[2])
            return None if layer is None else Place(part, layer, role)
        prefix = _PREFIX.fullmatch(found["where"])
        assert prefix is not None
        for part in [prefix[1]] if prefix[1] else list(self.dotted):
            old = found["old"]
            leaf = f".{_OLD.get(part, {}).get(old, old)}" if old else ""
            layer = self.dotted.get(part, {}).get(prefix[2] + leaf)
            if layer is not None:
                return Place(part, layer, role)
        return None


def _short(name: str) -> str:
    """A layer's name without what transformers' text models have before it in some versions and not in others."""
    return name.removeprefix("text_model.")
