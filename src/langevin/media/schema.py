"""What settings that were read from a file may be: one table, looked at before anything is done with them.

A picture may come from anybody. So kinds and ranges are checked here, once, and what is absurd (a billion steps, a list
of a million noise levels) is refused before it costs anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

MAX_STEPS = 10_000
MAX_SIDE = 16_384
MAX_FRAMES = 10_000
MAX_PIXELS = 2**26
_MAX_TEXT = 2**20
_MAX_PICTURE = 2**24
_MAX_ITEMS = 10_000
_MAX_GUIDERS = 64
_MAX_EDITS = 256
_MAX_DEPTH = 8
_MAX_SCHEDULE = 100_000  # training timesteps, and noise levels of a table


class WrongSettings(ValueError):
    """Settings that cannot be followed: one line that says which, what it is, and what is allowed."""


Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> tuple[Check, str]:
    return lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _number(low: float = -1e6, high: float = 1e6) -> tuple[Check, str]:
    return lambda v: _is_number(v) and low <= v <= high, f"a number from {low:g} to {high:g}"


def _numbers(most: int) -> tuple[Check, str]:
    def allowed(value: Any) -> bool:
        each = value if isinstance(value, list) else [value]
        return 0 < len(each) <= most and all(_is_number(one) and abs(one) <= 1e6 for one in each)

    return allowed, f"a number from -1e+06 to 1e+06, or a list of at most {most}"


def _listed(most: int, kinds: tuple[type, ...], what: str) -> tuple[Check, str]:
    def allowed(value: Any) -> bool:
        return isinstance(value, list) and len(value) <= most and all(isinstance(one, kinds) for one in value)

    return allowed, f"a list of at most {most} {what}"


def _edits(kinds: tuple[type, ...], what: str) -> tuple[Check, str]:
    """One value, or one for each edit."""

    def allowed(value: Any) -> bool:
        each = value if isinstance(value, list) else [value]
        return 0 < len(each) <= _MAX_EDITS and all(type(one) in kinds for one in each)

    return allowed, f"{what}, one or a list of at most {_MAX_EDITS}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


_TEXT = (_is_text, f"a text of at most {_MAX_TEXT} characters")
_NAME = (lambda v: isinstance(v, str) and 0 < len(v) <= 4096 and "\0" not in v, "a name of at most 4096 characters")
_TEXTS = (lambda v: _is_text(v) or (isinstance(v, list) and all(map(_is_text, v))), "a text, or a list of texts")
_TEXTS_OR_PICTURE = (
    lambda v: _TEXTS[0](v) or (isinstance(v, dict) and set(v) in ({"file", "sha256"}, {"png"})),
    "a text, a list of texts, or a picture",
)
_YES_OR_NO = (lambda v: isinstance(v, bool), "true or false")

TABLE: dict[str, tuple[Check, str]] = {
    "seed": _whole(0, 2**64 - 1),
    "num_inference_steps": _whole(1, MAX_STEPS),
    "height": _whole(1, MAX_SIDE),
    "width": _whole(1, MAX_SIDE),
    "clip_skip": _whole(0, 1000),
    "padding_mask_crop": _whole(0, MAX_SIDE),
    "max_iter_to_alter": _whole(0, MAX_STEPS),
    **dict.fromkeys(
        (f"{stage}_num_inference_steps" for stage in ("prior", "decoder", "super_res")), _whole(1, MAX_STEPS)
    ),
    "sld_warmup_steps": _whole(0, MAX_STEPS),
    "noise_level": _whole(0, _MAX_SCHEDULE),
    "num_images_per_prompt": _whole(1, MAX_STEPS),
    **dict.fromkeys(("batch_size", "jump_length", "jump_n_sample"), _whole(1, MAX_STEPS)),
    "num_frames": _whole(1, MAX_FRAMES),
    "decode_chunk_size": _whole(1, MAX_FRAMES),
    "fps": _number(0.1, 240),
    **dict.fromkeys(("strength", "inpaint_strength", "text_to_image_strength", "truncation_rate"), _number(0, 1)),
    "eta": _number(0),
    **dict.fromkeys(("audio_length_in_s", "mask_start_secs", "mask_end_secs"), _number(0, 3600)),
    "steps": _whole(1, MAX_STEPS),
    "start_step": _whole(0, MAX_STEPS),
    "slice": _whole(0, 10**6),
    "audio_file": (lambda v: isinstance(v, dict) and set(v) == {"sound", "sha256"}, "a sound's file and its SHA-256"),
    **dict.fromkeys(("guidance_scale", "guidance_rescale", "image_guidance_scale", "source_guidance_scale"), _number()),
    **dict.fromkeys(("prior_guidance_scale", "decoder_guidance_scale"), _number()),
    **dict.fromkeys(("sag_scale", "scale_factor", "sld_guidance_scale", "sld_threshold"), _number()),
    **dict.fromkeys(("sld_momentum_scale", "sld_mom_beta"), _number()),
    **dict.fromkeys(
        ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"), _numbers(_MAX_GUIDERS)
    ),
    **dict.fromkeys(("edit_guidance_scale", "edit_threshold", "edit_weights"), _numbers(_MAX_EDITS)),
    **dict.fromkeys(("edit_momentum_scale", "edit_mom_beta"), _number(0)),
    **dict.fromkeys(("edit_warmup_steps", "edit_cooldown_steps"), _edits((int,), "whole numbers")),
    "cross_attention_guidance_amount": _number(),
    "unscaled": _YES_OR_NO,
    **dict.fromkeys(("source_prompts", "target_prompts"), _listed(_MAX_ITEMS, (str,), "texts")),
    "class_labels": _edits((int,), "whole numbers"),
    "reverse_editing_direction": _edits((bool,), "true or false"),
    **dict.fromkeys(("timesteps", "sigmas"), _listed(MAX_STEPS, (int, float), "numbers")),
    **dict.fromkeys(("model", "pipeline", "scheduler", "dtype", "device", "langevin"), _NAME),
    **dict.fromkeys(("prompt_weighting", "long_prompts", "safety_action", "surroundings"), _NAME),
    **dict.fromkeys(("prompt", "editing_prompt", "source_prompt"), _TEXTS),
    "negative_prompt": _TEXTS_OR_PICTURE,
    "safety_concept": _TEXT,
    **dict.fromkeys(("keep_outside", "guess_mode", "pair_images", "source_as_noise", "prepared"), _YES_OR_NO),
    **dict.fromkeys(
        (
            "add_predicted_noise",
            "prior_skips",
            "scale_image",
            "exact_levels",
            "clean_caption",
            "as_published",
            "grey_negative",
        ),
        _YES_OR_NO,
    ),
    **dict.fromkeys(("circular_padding", "scaled_input", "clip_skip_negative"), _YES_OR_NO),
    "cascade": _listed(_MAX_GUIDERS, (str,), "names"),
    "each": (lambda v: isinstance(v, list) and len(v) <= _MAX_GUIDERS and all(map(_is_dict, v)), "a list of dicts"),
    "not_recorded": _listed(_MAX_ITEMS, (str,), "texts"),
    **dict.fromkeys(("guiders", "control"), _listed(_MAX_GUIDERS, (str, dict), "guiders")),
    "freeu": (
        lambda v: isinstance(v, dict) and set(v) == {"s1", "s2", "b1", "b2"} and all(map(_is_number, v.values())),
        "the four numbers s1, s2, b1 and b2",
    ),
    "parts": (
        lambda v: isinstance(v, dict) and len(v) <= _MAX_GUIDERS and all(_is_network(one) for one in v.values()),
        "networks by the names of parts",
    ),
    "scheduler_config": (lambda v: isinstance(v, dict), "a dict"),
    "stages": (
        lambda v: isinstance(v, dict) and len(v) <= _MAX_GUIDERS and all(_is_stage(one) for one in v.values()),
        "the schedulers of stages, by name",
    ),
    "lora": (lambda v: isinstance(v, dict) and set(v) == {"items"}, "weights by name"),
    "loras": (
        lambda v: isinstance(v, list) and len(v) <= _MAX_GUIDERS and all(map(_is_lora, v)),
        f"a list of at most {_MAX_GUIDERS} LoRAs with name, file, sha256 and weights",
    ),
}
"""What is allowed under each name that has a meaning; :data:`None` is allowed everywhere."""


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, if all of them can be followed; other names than those of :data:`TABLE` may hold any plain values.

    Raises:
        WrongSettings: for the first that is of a wrong kind, out of range, or too large.
    """
    for name, value in settings.items():
        if value is None:
            continue
        check, allowed = TABLE.get(name, (lambda v: True, ""))
        if not check(value):
            raise WrongSettings(f"{_named(name)} is {_short(value)}; {allowed} is needed")
        if problem := _odd(value, _MAX_DEPTH):
            raise WrongSettings(f"{_named(name)} holds {problem}")
    if (settings.get("height") or 1) * (settings.get("width") or 1) > MAX_PIXELS:
        raise WrongSettings(
            f"height and width are {settings['height']} and {settings['width']}; at most {MAX_PIXELS} pixels are needed"
        )
    for config in (settings, *(settings.get("stages") or {}).values()):
        _check_scheduler(config.get("scheduler_config") or {})
    for one in settings.get("each") or ():
        check_settings(dict(one["items"]))
    return dict(settings)


def _check_scheduler(config: Mapping[str, Any]) -> None:
    """Numbers of schedulers may be infinite, but none may ask for a table that fills the memory."""
    for name, value in config.items():
        whole = value if type(value) is int else 0
        if abs(whole) > _MAX_SCHEDULE or (name == "num_train_timesteps" and not (type(value) is int and value > 0)):
            raise WrongSettings(
                f"scheduler_config has {_short(value)} as {_named(name)}; whole numbers go up to {_MAX_SCHEDULE}"
            )


def _odd(value: Any, depth: int) -> str | None:
    """What is not allowed anywhere in a value, or None."""
    if value is None or isinstance(value, (bool, float)):
        return None
    if isinstance(value, int):
        return None if abs(value) < 2**64 else f"the number {_short(value)}; up to 2**64 is allowed"
    if isinstance(value, str):
        return None if len(value) <= _MAX_PICTURE else f"a text of {len(value)} characters; {_MAX_PICTURE} are allowed"
    if depth == 0 or not isinstance(value, (list, dict)):
        return f"{_short(value)}; plain values, at most {_MAX_DEPTH} deep, are allowed"
    if len(value) > _MAX_SCHEDULE:
        return f"{len(value)} entries; {_MAX_SCHEDULE} are allowed"
    if isinstance(value, dict) and (problem := _odd_record(value)):
        return problem
    inside = value if isinstance(value, list) else [*value, *value.values()]
    return next((problem for one in inside if (problem := _odd(one, depth - 1))), None)


def _odd_record(value: dict[Any, Any]) -> str | None:
    """What is wrong with one of the forms in which pictures, networks and dicts are written."""
    kind = set(value)
    if kind == {"items"}:
        pairs = value["items"]
        fits = isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 and _is_key(p[0]) for p in pairs)
        return None if fits else "items that are not pairs of a name and a value"
    if kind not in ({"file", "sha256"}, {"sound", "sha256"}, {"video", "sha256"}, {"png"}, {"network", "from"}):
        return None
    if not all(isinstance(one, str) for one in value.values()):
        return f"{' and '.join(sorted(kind))} that are not texts"
    if "png" not in kind and any("\0" in one or len(one) > 4096 for one in value.values()):
        return f"{' and '.join(sorted(kind))} that are no names"
    return None


def _is_dict(value: Any) -> bool:
    """Whether it is a dict of names, in the form in which they are written."""
    if not isinstance(value, dict) or set(value) != {"items"} or not isinstance(value["items"], list):
        return False
    return all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in value["items"])


def _is_key(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool))


def _is_network(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"network", "from"}


def _is_stage(value: Any) -> bool:
    kinds = {"scheduler": str, "scheduler_config": dict, "part": str | None}
    fits = isinstance(value, dict) and {"scheduler", "scheduler_config"} <= set(value) <= set(kinds)
    return fits and all(isinstance(one, kinds[name]) for name, one in value.items())


def _is_lora(value: Any) -> bool:
    if not isinstance(value, dict) or not {"name", "file", "sha256", "weights"} <= set(value):
        return False
    fused = value.get("fused", {})
    pairs = isinstance(fused, dict) and all(
        isinstance(p, list) and len(p) == 2 and _is_number(p[1]) for p in fused.values()
    )
    names = all(_NAME[0](value[name]) for name in ("name", "file", "sha256"))
    return pairs and names and isinstance(value["weights"], dict)


def _named(name: Any) -> str:
    """A setting's name on one line, short."""
    name = str(name)
    return name if name.isprintable() and len(name) <= 60 else _short(name)


def _short(value: Any) -> str:
    """A value in at most 60 characters; whole numbers of a million digits are not spelt out."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:60]}…"
