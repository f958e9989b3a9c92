"""LoRAs named in prompts: ``<lora:name:0.8>`` as AUTOMATIC1111 has it, ``withLora(name, 0.8)`` as compel has it.

=========================  ============================================================================================
``<lora:name>``            weight 1, ``<lora:name:0.8>`` 0.8
``<lora:name:0.8:0.5>``    0.8 in the text encoder and 0.5 in the UNet; also ``<lora:name:te=0.8:unet=0.5>``
``withLora(name, 0.8)``    the same in compel's grammar, which reads both; also ``useLora(name)``
=========================  ============================================================================================

They hold for the whole call, wherever they stand, and are no part of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

_TAG = re.compile(r"<lora:(?P<name>[^:<>]{1,200})(?::(?P<weights>[^<>]{0,200}))?>")
_CALL = re.compile(
    r"(?<![^\s(),\"])(?:use|with)Lora\s*\(\s*(?P<name>[A-Za-z0-9_\-]{1,200})\s*(?:,\s*(?P<weights>[-+.\d]{1,40})\s*)?\)"
)
_FORMS = {"compel": (_TAG, _CALL), "a1111": (_TAG,)}

Prompt = str | Sequence[str] | None


def take_loras(prompt: Any, grammar: str) -> tuple[Any, dict[str, Any]]:
    """A prompt, or a list of them, without the LoRAs that it names; and their weights by name.

    Args:
        prompt: a text, a list of texts, or something else, which comes back as it is.
        grammar: "compel" and "a1111" know them; in others they are text.

    Raises:
        ValueError: a weight is no number, or prompts of one call name different ones.

    Example:
        >>> take_loras("a cat <lora:ink:0.8>", "a1111")
        ('a cat ', {'ink': 0.8})
    """
    if isinstance(prompt, str):
        return _take(prompt, grammar)
    if not isinstance(prompt, (list, tuple)) or not all(isinstance(text, str) for text in prompt):
        return prompt, {}
    taken = [_take(text, grammar) for text in prompt]
    if any(loras != taken[0][1] for _, loras in taken):
        raise ValueError(
            "the prompts of this call name different LoRAs, which hold for a whole call; make several calls"
        )
    return [text for text, _ in taken], taken[0][1] if taken else {}


def _take(text: str, grammar: str) -> tuple[str, dict[str, Any]]:
    loras: dict[str, Any] = {}

    def noted(found: re.Match[str]) -> str:
        loras[found["name"].strip()] = _weight(found[0], found["weights"])
        return ""

    for form in _FORMS.get(grammar, ()):
        text = form.sub(noted, text)
    return text, loras


def _weight(said: str, weights: str | None) -> Any:
    """A number, or one for each part where there are two."""
    each: dict[str, float] = {}
    names = iter(("text_encoder", "unet"))
    for one in (weights or "1").split(":"):
        label, equals, number = one.rpartition("=")
        part = {"te": "text_encoder", "unet": "unet"}.get(label.strip()) if equals else next(names, None)
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if part is None or not abs(value) < 1e6:
            raise ValueError(
                f"{said!r:.80} has {one!r:.40}; write <lora:name:0.8>, or <lora:name:0.8:0.5> for both parts"
            )
        each[part] = value
    if len(each) == 1:
        return (
            next(iter(each.values()))
            if "=" not in (weights or "")
            else {**dict.fromkeys(("text_encoder", "unet"), 1.0), **each}
        )
    return each
