"""What is written into pictures about what they were made from, and read back in the same form.

Nothing here raises while a call's settings are recorded, since the work is done by then: what cannot be written is
named under ``"not_recorded"`` instead.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from PIL import Image

from langevin.media.load import load_image, open_safely, opened, printable
from langevin.media.settings import plain
from langevin.media.sound import SoundFile
from langevin.media.video import Video, load_video

PLAIN = (str, int, float, bool, type(None))
LOST = "not_recorded"
SMALL = 8192
"""Pictures that take no more bytes as a PNG, such as masks, are written whole into those made from them."""
_STAMP = "_loaded_as"


# ---------------------------------------------------------------------------------------------------- values


def recorded(value: Any) -> Any:
    """A value as it is written into pictures; None for what cannot be. Never raises.

    Numbers (numpy's too, as plain ones), texts and lists of them stay what they are. A picture that was loaded from a
    file, and is still what the file shows, is written as ``{"file": …, "sha256": …}``, a small one (:data:`SMALL`) as
    ``{"png": base64}``, a video from a file as ``{"video": …, "sha256": …}``, a network as ``{"network": class, "from":
    name or folder}``, a dict as ``{"items": [[key, value], …]}``.
    """
    try:
        return _recorded(value)
    except Exception:  # a closed picture, an attribute that raises, a list that holds itself
        return None


def recorded_rows(value: Any, count: int, paired: bool = True) -> list[Any]:
    """What of an argument belongs to each of ``count`` pictures, as :func:`recorded` writes it. Never raises.

    A list of pictures is spread over those that are made, so that each carries its own; so is a list of such lists, one
    for each prompt. Any other value is one for all.

    Args:
        value: a call's argument, or a guider's field.
        count: how many pictures were made.
        paired: how fewer pictures than are made are spread: each for those beside each other (a, a, b, b), as prompts
            and control pictures are; False repeats them as a whole (a, b, a, b), as start pictures and masks are
            without ``pair_images``.
    """
    if not _are_pictures(value, depth=2) or count % len(value):
        return [recorded(value)] * count
    each, pictures = [recorded(one) for one in value], len(value)
    return [each[k * pictures // count if paired else k % pictures] for k in range(count)]


def recorded_row(value: Any, k: int, count: int, paired: bool = True) -> Any:
    """Entry ``k`` of :func:`recorded_rows`, without looking at the pictures of others."""
    if _are_pictures(value, depth=2) and count % len(value) == 0:
        return recorded(value[k * len(value) // count if paired else k % len(value)])
    return recorded(value)


def describe_guider(guider: Any, k: int = 0, count: int = 1, paired: bool = True) -> dict[str, Any]:
    """A guider's class and settings; those that cannot be recorded are named under ``"not_recorded"``. Never raises.

    With ``count`` above 1 it is described for picture ``k`` alone; see :func:`recorded_row`.
    """
    fields = dataclasses.fields(guider) if dataclasses.is_dataclass(guider) else ()
    values = {f.name: getattr(guider, f.name, None) for f in fields if f.init}
    kept = {name: recorded_row(value, k, count, paired) for name, value in values.items()}
    lost = [name for name, value in values.items() if value is not None and kept[name] is None]
    if not fields and type(guider).__init__ is not object.__init__:
        lost.append("settings")
    return {"class": type(guider).__name__, **kept, **({LOST: lost} if lost else {})}


def _are_pictures(value: Any, depth: int) -> bool:
    """Whether it is a list of PIL images, or of such lists."""
    if depth == 0 or not isinstance(value, (list, tuple)) or not value:
        return False
    return all(isinstance(one, Image.Image) or _are_pictures(one, depth - 1) for one in value)


def _recorded(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Video) and value.filename:
        return _recorded_video(value)
    if isinstance(value, (list, tuple)):
        each = [_recorded(one) for one in value]
        return None if any(one is None for one in each) else each
    if isinstance(value, Mapping):
        pairs = [[_recorded(key), _recorded(one)] for key, one in value.items()]
        return None if any(one is None for pair in pairs for one in pair) else {"items": pairs}
    if isinstance(value, Image.Image):
        return _recorded_picture(value)
    if isinstance(value, SoundFile):
        return {"sound": value.path, "sha256": value.fingerprint()}
    source = getattr(getattr(value, "config", None), "_name_or_path", None)
    return {"network": type(value).__name__, "from": source} if isinstance(source, str) and source else None


def _recorded_picture(image: Image.Image) -> dict[str, str] | None:
    file = str(getattr(image, "filename", "") or "")
    if file:
        record = {"file": os.path.abspath(file), "sha256": fingerprint(image)}
        try:
            reread(record)
            return record
        except (OSError, ValueError):
            pass  # the picture was changed in memory, or the file is gone: write it whole, if it is small
    shown = opened(image, quiet=True)
    if shown.mode == "F":
        return None
    clean = Image.Image.copy(shown)
    clean.info = {key: one for key, one in shown.info.items() if key == "transparency"}
    clean.save(png := io.BytesIO(), "PNG")
    return {"png": base64.b64encode(png.getvalue()).decode()} if len(png.getvalue()) <= SMALL else None


def _recorded_video(video: Video) -> dict[str, str] | None:
    record = {"video": os.path.abspath(video.filename), "sha256": _fingerprints(video)}
    reread_video(record)  # it is still what the file shows
    return record


def reread_video(record: Mapping[str, str]) -> Video:
    """The video of a record that :func:`recorded` made of one that was loaded from a file.

    Raises:
        FileNotFoundError: its file is not there.
        OSError, ValueError: it is no video, or another than it was.
    """
    video = load_video(record["video"])
    if _fingerprints(video) != record["sha256"]:
        raise ValueError(f"the video {printable(record['video'])} has changed since")
    return video


def _fingerprints(video: Video) -> str:
    return hashlib.sha256("".join(map(fingerprint, video)).encode()).hexdigest()


def fingerprint(image: Image.Image) -> str:
    """SHA-256 of a picture's size, mode and pixels, in hexadecimal: as :func:`~langevin.media.load.opened` shows it.

    Raises ValueError for a picture that cannot be read.
    """
    shown = opened(image, quiet=True)
    return hashlib.sha256(f"{shown.size}{shown.mode}".encode() + shown.tobytes()).hexdigest()


def reread(record: Mapping[str, str]) -> Image.Image:
    """The picture of a record that :func:`recorded` made of one, in the form in which it was recorded.

    Raises:
        FileNotFoundError: its file is not there.
        OSError, ValueError: it is no regular file, no picture, or another picture than it was.
    """
    if "png" in record:
        with open_safely(io.BytesIO(base64.b64decode(record["png"], validate=True))) as image:
            return opened(image, quiet=True)
    file = record["file"]
    with open_safely(file) as image:
        shown = opened(image, quiet=True)
    for form in (lambda: shown, lambda: load_image(file)):  # as it is, or in RGB on white
        if fingerprint(known := form()) == record["sha256"]:
            known.filename = file  # type: ignore[attr-defined]
            return known
    raise ValueError(f"the picture {printable(file)} has changed since")


# ----------------------------------------------------------------------------------------------------- parts


def stamp_parts(pipeline: Any, names: Sequence[str] | None = None) -> None:
    """Remember, on the parts themselves, that they were loaded with the pipeline, and in which state they are.

    To be called when ``from_pretrained`` is done, with the names of the parts that it loaded (all where None): not of
    those that the caller gave. Pipelines that share parts share the memory.
    """
    for name, part in pipeline.components.items():
        part = _unwrapped(part)
        if part is not None and hasattr(part, "__dict__") and (names is None or name in names):
            part.__dict__[_STAMP] = (pipeline.name_or_path, name, _edits(part))


def mark_edited(part: Any) -> None:
    """Remember of a copy of a part that it is not what was loaded any more."""
    stamp = _stamp(part)
    if stamp:
        part.__dict__[_STAMP] = (*stamp[:2], -1)


def parts_state(pipeline: Any, known: Collection[str] = ("scheduler",)) -> tuple[dict[str, Any], list[str]]:
    """What a pipeline's parts are, beyond those of the model that it names. Never raises.

    Args:
        known: parts that are recorded elsewhere, as schedulers are by their configs.

    Returns:
        Settings: ``"freeu"`` the numbers of ``enable_freeu``; ``"parts"`` the networks that took the place of the
        model's own, as :func:`recorded` writes them. And what cannot be recorded: learned words, parts that were edited
        in place, parts of unknown origin. The last two are known only after :func:`stamp_parts`.
    """
    state: dict[str, Any] = {}
    lost: list[str] = []
    try:
        parts = {name: _unwrapped(part) for name, part in pipeline.components.items() if part is not None}
        if numbers := _freeu(parts.get("unet", parts.get("image_unet"))):
            state["freeu"] = numbers
        words = [word for part in parts.values() for word in _learned_words(part)]
        if words:
            lost.append(f"the learned word{'s' * (len(words) > 1)} {' '.join(dict.fromkeys(words))}")
        if any(_stamp(part) for part in parts.values()):
            others, unknown = _foreign_parts(parts, pipeline.name_or_path, known)
            state |= {"parts": others} if others else {}
            lost += unknown
    except Exception as error:  # parts of strange kinds
        lost.append(f"parts that could not be looked at ({type(error).__name__})")
    return state, lost


def _foreign_parts(
    parts: Mapping[str, Any], model: str | None, known: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """Networks from elsewhere by name, and what cannot be said of parts."""
    others, lost = {}, []
    for name, part in parts.items():
        stamp = _stamp(part)
        if name in known:
            continue
        if stamp and stamp[:2] == (model, name):
            lost += [f"an edited {name}"] if _edits(part) > stamp[2] else []
            continue
        record = recorded(part) if type(part).__module__.startswith("langevin.") else None
        if record is None or (stamp and _edits(part) > stamp[2]):
            lost.append(f"another {name}")
        else:
            others[name] = record
    return others, lost


def _stamp(part: Any) -> Any:
    return getattr(part, "__dict__", {}).get(_STAMP)


def _edits(part: Any) -> int:
    """How often a network's weights were changed in place; moving and converting them does not count."""
    parameters = getattr(part, "parameters", None)
    return sum(p._version for p in parameters()) if callable(parameters) else 0


def _freeu(unet: Any) -> dict[str, float] | None:
    """The four numbers of ``enable_freeu``, if it is on."""
    stages = [getattr(change, "keywords", {}) for change in getattr(unet, "_freeu", ()) or () if change is not None]
    if not stages:
        return None
    first, second = stages[0], stages[1] if len(stages) > 1 else {"s": 1.0, "b": 1.0}
    return {"s1": plain(first["s"]), "s2": plain(second["s"]), "b1": plain(first["b"]), "b2": plain(second["b"])}


def _learned_words(tokenizer: Any) -> list[str]:
    """Words that were added to a tokenizer after it was loaded."""
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if not isinstance(added, Mapping):
        return []
    loaded = (getattr(tokenizer, "init_kwargs", None) or {}).get("added_tokens_decoder") or {}
    known = {str(token) for token in loaded.values()}
    return [str(token) for token in added.values() if not token.special and str(token) not in known]


def _unwrapped(part: Any) -> Any:
    """The network inside one that ``torch.compile`` made."""
    return getattr(part, "_orig_mod", part)
