"""The settings that made a picture, as text in the layout AUTOMATIC1111 writes, and back.

Settings are a plain dict; the keys with a meaning of their own are listed in :data:`LABELS` and in the
docstring of :func:`settings_to_text`, all others are kept as they are. Two forms are stored in a file:

- ``langevin``: the dict as JSON. Exact, and what :func:`read_settings` prefers.
- ``parameters``: text that other programs read. Prompt, ``Negative prompt: ...``, and one last line
  ``Steps: 20, Sampler: Euler, CFG scale: 7.5, Seed: 7, Size: 64x64, ...``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import IO, Any

# How A1111 calls what we call by the pipelines' argument names, in the order in which it writes them.
LABELS = {
    "num_inference_steps": "Steps",
    "guidance_scale": "CFG scale",
    "image_guidance_scale": "Image CFG scale",
    "seed": "Seed",
    "model": "Model",
    "strength": "Denoising strength",
    "eta": "Eta",
}
_KEYS = {label: key for key, label in LABELS.items()} | {"Eta DDIM": "eta"}

# A1111's sampler -> the scheduler class and what has to be set in its config to get that sampler.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM++ 3M SDE": ("DPMSolver3MSDEScheduler", {}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ SDE": ("DPMSolverSDEScheduler", {}),
    "DPM++ 2S a": ("DPMSolver2SAncestralScheduler", {}),
    "DPM fast": ("DPMFastScheduler", {}),
    "DPM adaptive": ("DPMAdaptiveScheduler", {}),
    "Restart": ("RestartScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "PLMS": ("PNDMScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
}
# The nearest relative, for pictures that other programs made; never written.
_NEAREST = {
    "DDPM": "DDPMScheduler",
    "DEIS": "DEISMultistepScheduler",
}
# A1111's "Schedule type" -> the config entry that asks for it.
SCHEDULE_TYPES: dict[str, tuple[str, Any]] = {
    "Karras": ("use_karras_sigmas", True),
    "Exponential": ("use_exponential_sigmas", True),
    "Beta": ("use_beta_sigmas", True),
    "SGM Uniform": ("timestep_spacing", "trailing"),
    "Polyexponential": ("_spacing", {"name": "polyexponential"}),
    "KL Optimal": ("_spacing", {"name": "kl_optimal"}),
    "Align Your Steps": ("_spacing", {"name": "align_your_steps"}),
    "Simple": ("_spacing", {"name": "simple"}),
    "DDIM": ("_spacing", {"name": "ddim_uniform"}),
    "Uniform": ("_spacing", {"name": "linspace"}),
}

_VERSION = re.compile(r"langevin\b ?(.*)")
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,29})")
_DECIMAL = re.compile(r"-?[0-9]{1,30}\.[0-9]{1,30}")
_KEY = re.compile(r"\w[\w \-/]+")
_FIELD = re.compile(r"\s*(\w[\w \-/]+):[ \t]*")
_QUOTED = re.compile(r'("(?:\\.|[^\\"])*")\s*(?:,|$)')
_NEGATIVE = "Negative prompt:"
_WORDS = {"True": True, "False": False, "inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
_ALWAYS_TEXT = {"Model", "Model hash", "VAE", "VAE hash", "Version", "Sampler", "Schedule type"}


# ------------------------------------------------------------------------------------------- schedulers


def sampler_of(scheduler: str, config: dict[str, Any] | None = None) -> tuple[str, str | None]:
    """A1111's name and "Schedule type" for a scheduler class; the class name itself where it has none.

    ``("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})`` -> ``("DPM++ 2M", "Karras")``.
    """
    config = config if isinstance(config, dict) else {}
    schedule = next((name for name, (key, value) in SCHEDULE_TYPES.items() if config.get(key) == value), None)
    for name, (cls, wanted) in SAMPLERS.items():  # the more particular ones stand first
        if " 2M" in name and config.get("solver_order", 2) != 2:
            continue
        if cls == scheduler and all(config.get(key) == value for key, value in wanted.items()):
            return name, schedule
    return scheduler, schedule


def scheduler_of(sampler: str, schedule: str | None = None) -> tuple[str, dict[str, Any]]:
    """The scheduler class and the config entries for A1111's sampler; an unknown name is given back as it is.

    The schedule may also end the sampler's name, as older versions wrote it: ``"DPM++ 2M Karras"``.
    """
    config: dict[str, Any] = {}
    if sampler not in SAMPLERS:
        for name in SCHEDULE_TYPES:
            if sampler.endswith(" " + name):
                sampler, schedule = sampler[: -len(name) - 1], name
    cls, wanted = SAMPLERS.get(sampler, (_NEAREST.get(sampler, sampler), {}))
    config.update(wanted)
    if schedule in SCHEDULE_TYPES:
        key, value = SCHEDULE_TYPES[schedule]
        config[key] = value
    return cls, config


# ------------------------------------------------------------------------------------------ one value


def _read_value(text: str) -> Any:
    """Numbers and booleans as such, everything else as text: a hash like ``1e5f`` or ``0042`` stays text."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    if text in _WORDS:
        return _WORDS[text]
    try:
        number = float(text)
    except ValueError:
        return text
    return number if repr(number) == text else text


def _write_value(value: Any) -> str:
    if not isinstance(value, str):
        return str(value)
    plain = (
        value
        and value == value.strip()
        and value.isprintable()
        and not any(c in value for c in ',:"')
        and value[0] != "{"
        and isinstance(_read_value(value), str)
    )
    return value if plain else json.dumps(value, ensure_ascii=False)


def _fields(line: str) -> list[tuple[str, Any]]:
    """``key: value`` pairs of a line; what does not look like one is skipped up to the next comma."""
    found = []
    at = 0
    while at < len(line):
        field = _FIELD.match(line, at)
        if not field:
            comma = line.find(",", at)
            at = comma + 1 if comma >= 0 else len(line)
            continue
        key, at = field[1], field.end()
        value: Any = None
        if quoted := _QUOTED.match(line, at):
            with contextlib.suppress(ValueError):
                value, after = json.loads(quoted[1]), quoted.end()
        elif line.startswith("{", at):  # "Hashes: {...}" stands there unquoted
            try:
                value, after = json.JSONDecoder().raw_decode(line, at)
                after = line.index(",", after) + 1 if line[after:].lstrip().startswith(",") else after
            except (ValueError, RecursionError):
                value = None
        if value is None:
            comma = line.find(",", at)
            after = comma + 1 if comma >= 0 else len(line)
            raw = line[at : comma if comma >= 0 else len(line)].strip()
            value = raw if key in _ALWAYS_TEXT else _read_value(raw)
        found.append((key, value))
        at = after
    return found


# ------------------------------------------------------------------------------------------- whole text


def settings_to_text(settings: dict[str, Any]) -> str:
    """The settings in the layout of AUTOMATIC1111's "parameters" text.

    Keys with a place of their own: ``prompt``, ``negative_prompt``, those in :data:`LABELS`, ``scheduler``
    and ``scheduler_config`` ("Sampler", "Schedule type"), ``width`` and ``height`` ("Size"), ``clip_skip``
    ("Clip skip", which counts from 1), ``langevin`` ("Version"). Other strings, numbers and booleans are
    written under their own key; None, lists and dicts are only in the JSON.

    The layout has no way to say that a prompt's own line begins with "Negative prompt:"; such a line is read
    back as one.
    """
    left = {key: plain(value) for key, value in settings.items() if value is not None}
    prompt = str(left.pop("prompt", ""))
    negative = str(left.pop("negative_prompt", ""))
    version = left.pop("langevin", None)
    scheduler, config = left.pop("scheduler", None), left.pop("scheduler_config", None)
    sampler, schedule = sampler_of(str(scheduler), config) if scheduler is not None else (None, None)

    fields: dict[str, Any] = {"Steps": left.pop("num_inference_steps", None), "Sampler": sampler}
    fields["Schedule type"] = left.pop("Schedule type", schedule)
    if sampler == "DDIM":
        fields["Eta DDIM"] = left.pop("eta", None)
    for key, label in LABELS.items():
        if key in left:
            fields[label] = left.pop(key)
        if label == "Seed" and {"width", "height"} <= left.keys():
            fields["Size"] = f"{left['width']}x{left['height']}"
            if _SIZE.fullmatch(fields["Size"]):
                del left["width"], left["height"]
            else:
                del fields["Size"]
    if type(left.get("clip_skip")) is int:
        fields["Clip skip"] = left.pop("clip_skip") + 1
    for key, value in left.items():
        if isinstance(key, str) and _KEY.fullmatch(key) and isinstance(value, (str, int, float)):
            fields.setdefault(key, value)
    fields["Version"] = left.get("Version") or f"langevin {version or ''}".strip()

    last = ", ".join(f"{key}: {_write_value(value)}" for key, value in fields.items() if value is not None)
    lines = [prompt] if prompt else []
    if negative:
        lines.append(f"{_NEGATIVE} {negative}")
    return "\n".join([*lines, last])


def text_to_settings(text: str) -> dict[str, Any]:
    """Read AUTOMATIC1111's "parameters" text; never fails, at worst all of it is the prompt.

    Text by other programs (A1111, Forge, SD.Next, civitai) is understood too: "Sampler: DPM++ 2M Karras"
    becomes ``scheduler`` and ``scheduler_config``, "Size: 512x768" width and height. What has no name here
    keeps its own.
    """
    lines = text.rstrip("\r\n").split("\n")
    fields: list[tuple[str, Any]] = []
    last = _fields(lines[-1])
    if len(last) >= 3 or any(key == "Version" and _VERSION.match(str(value)) for key, value in last):
        fields, lines = last, lines[:-1]
    else:  # some extensions add lines of their own below
        for i in range(len(lines) - 1, -1, -1):
            if lines[i].startswith("Steps: ") and len(found := _fields(lines[i])) >= 3:
                rest = [line.partition(":") for line in lines[i + 1 :]]
                fields = found + [(key.strip(), value.strip()) for key, colon, value in rest if colon]
                lines = lines[:i]
                break

    start = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    prompt, negative = "\n".join(lines[:start]), "\n".join(lines[start:])[len(_NEGATIVE) :].removeprefix(" ")
    ours = any(key == "Version" and _VERSION.match(str(value)) for key, value in fields)
    if not ours:
        prompt, negative = prompt.strip(), negative.strip()
    return {"prompt": prompt, **({"negative_prompt": negative} if negative else {}), **_by_our_names(fields)}


def _by_our_names(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for key, value in fields:
        given.setdefault(key, value)
    settings: dict[str, Any] = {}
    sampler, schedule = given.pop("Sampler", None), given.get("Schedule type")
    if sampler is not None:
        settings["scheduler"], config = scheduler_of(str(sampler), schedule)
        if config:
            settings["scheduler_config"] = config
        if schedule in SCHEDULE_TYPES or schedule == "Automatic":
            del given["Schedule type"]
    for key, value in given.items():
        if key == "Size" and (size := _SIZE.fullmatch(str(value))):
            settings["width"], settings["height"] = int(size[1]), int(size[2])
        elif key == "Clip skip" and type(value) is int:
            settings["clip_skip"] = value - 1
        elif key == "Version" and (version := _VERSION.fullmatch(str(value))):
            if version[1]:
                settings["langevin"] = version[1]
        else:
            settings.setdefault(_KEYS.get(key, key), value)
    return settings


# ------------------------------------------------------------------------------------------------ JSON


def plain(value: Any) -> Any:
    """Numbers of numpy and torch (scalars, and arrays without axes) as Python's; every other value as it is."""
    if isinstance(value, (str, int, float)) and type(value).__module__ != "numpy":
        return value
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        with contextlib.suppress(Exception):  # a tensor without memory
            return value.item()
    return value


def _plain(value: Any) -> Any:
    """For ``json.dumps``: numbers of numpy and torch by value, arrays by shape, all else by name."""
    if hasattr(value, "shape"):
        shape = tuple(value.shape)
        number = plain(value)
        return number if number is not value else f"<{type(value).__name__} of shape {shape}>"
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value).removeprefix("torch.")


def settings_to_json(settings: dict[str, Any]) -> str:
    """The settings as JSON in pure ASCII; values that JSON has no form for are written as text."""
    return "{" + ", ".join(f"{json.dumps(str(key))}: {_json(value)}" for key, value in settings.items()) + "}"


def _json(value: Any) -> str:
    """One value; by its kind what cannot be written even so, such as a list that holds itself."""
    try:
        return json.dumps(value, default=_plain)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(f"<{type(value).__name__}>")


def json_to_settings(text: str) -> dict[str, Any] | None:
    """The dict in ``text``, or None if it is not the JSON of one."""
    try:
        settings = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


# ----------------------------------------------------------------------------------------- in the file

EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
MAKER = b"langevin\0"  # what our maker note begins with


def encode_user_comment(text: str) -> bytes:
    """EXIF UserComment as A1111 (through piexif) writes it: an eight-byte code, then big-endian UTF-16."""
    return b"UNICODE\0" + text.encode("utf-16-be", "replace")


def decode_user_comment(comment: bytes | str) -> str:
    """EXIF UserComment in any of its codes and either byte order; bytes that fit nowhere are replaced."""
    if isinstance(comment, str):
        return comment
    code, body = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return body.decode("utf-16", "replace")
        # The standard leaves the byte order open. The wrong one turns the letters of "Steps: 20" into Chinese.
        readings = [body.decode(order, "replace") for order in ("utf-16-be", "utf-16-le")]
        return max(readings, key=lambda reading: sum(" " <= c <= "~" for c in reading))
    if code in (b"ASCII\0\0\0", b"\0" * 8):
        comment = body
    return comment.decode("utf-8", "replace").rstrip("\0")


def _texts_of(image: Any) -> tuple[str | None, str | None]:
    """(our JSON, A1111's text) that an open PIL image carries, in PNG text, EXIF or a GIF comment."""
    ours, text = image.info.get("langevin"), image.info.get("parameters")
    if ours or text:
        return ours, text
    exif = image.getexif().get_ifd(EXIF_IFD)
    note, comment = exif.get(MAKER_NOTE), exif.get(USER_COMMENT)
    if isinstance(note, bytes) and note.startswith(MAKER):
        ours = note[len(MAKER) :].decode("ascii", "replace")
    text = decode_user_comment(comment) if comment else image.info.get("comment")
    return ours, text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def read_settings(source: str | os.PathLike | IO[bytes] | Any) -> dict[str, Any] | None:
    """The settings that made a picture or a sound, or None if it carries none.

    ``source`` is a path (of a WAV file too), an open file or a PIL image. Our own JSON is preferred; otherwise the text
    that AUTOMATIC1111 and its relatives write is read (see :func:`text_to_settings`). They are as the file has them:
    :func:`langevin.media.schema.check_settings` says whether they can be followed.

    Raises FileNotFoundError if there is no such file, PIL.UnidentifiedImageError if it is not a picture of the formats
    that carry settings, and ValueError if it is no regular file, is damaged, or has so many pixels that it cannot be
    opened safely.
    """
    from PIL import Image

    from langevin.media.load import open_safely
    from langevin.media.sound import is_wav, wav_settings

    if isinstance(source, (str, os.PathLike)):
        if is_wav(source):
            return wav_settings(source)
        with open_safely(source) as image:
            return read_settings(image)
    if not isinstance(source, Image.Image):
        with Image.open(source) as image:
            return read_settings(image)
    if isinstance(settings := getattr(source, "settings", None), dict):
        return settings
    try:
        ours, text = _texts_of(source)
        if not (ours or text) and source.format == "PNG":
            source.load()  # there may be text behind its pixels
            ours, text = _texts_of(source)
    except Exception:  # damaged metadata makes Pillow raise a dozen different things; none of them matters here
        return None
    if ours and (settings := json_to_settings(ours)) is not None:
        return settings
    return text_to_settings(text) if isinstance(text, str) and text.strip() else None
