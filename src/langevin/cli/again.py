"""``langevin info`` and ``langevin again``: what made a picture, and the same picture once more."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from langevin.cli.choices import (
    load_cascade,
    load_pipeline,
    make_scheduler,
    parse_dtype,
    pick_device,
    schedulers,
    set_scheduler,
)
from langevin.cli.errors import BadUsage, Failure, say, tell
from langevin.cli.files import check_out, targets
from langevin.cli.medium import PICTURE, VIDEO, Medium, makes_videos, medium_of
from langevin.cli.trust import Trust

# Call arguments that say in which form to return pictures, or that stand in the settings for other reasons.
_NOT_AGAIN = {"generator", "output_type", "return_dict", "num_images_per_prompt", "batch_size", "seed"}
_GUIDERS = ("guiders", "control")
# Share of the pixels that may be off by one: in a batch, the network's sums are rounded in another order.
_ROUNDED = 0.02
_WIDEST = 40  # of the column of names
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "GIF")


def settings_of(picture: Path) -> dict[str, Any]:
    """The settings that a file carries. Raises Failure if it is no picture or carries none."""
    from PIL import UnidentifiedImageError

    from langevin.media.settings import read_settings

    if picture.is_dir():
        raise BadUsage(f"{picture} is a folder, not a picture")
    try:
        settings = read_settings(picture)
    except FileNotFoundError:
        raise Failure(f"there is no file {picture}") from None
    except UnidentifiedImageError:
        raise Failure(f"{picture} is not a picture") from None
    if not settings:
        raise Failure(f"{picture} carries no settings; other programs drop them when they edit or resize pictures")
    return settings


def show(picture: Path, as_json: bool) -> None:
    """Print the settings, one per line, the prompt first; or as JSON. What could command a terminal is spelt out."""
    settings = settings_of(picture)
    try:
        json.dumps(settings, indent=2)
    except RecursionError:
        raise Failure(f"{picture} carries settings that are nested too deep to be shown") from None
    if as_json:
        say(json.dumps(settings, indent=2, ensure_ascii=False))
        return
    first = [key for key in ("prompt", "negative_prompt", "seed", "model", "pipeline", "scheduler") if key in settings]
    keys = first + [key for key in settings if key not in first and key != "scheduler_config"]
    width = min(max((len(key) for key in keys), default=0), _WIDEST)
    config = settings.get("scheduler_config")
    for key in keys:
        value = settings[key]
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        name = " ".join(key.split())
        say(f"{name:<{width}}  {text.replace(chr(10), chr(10) + ' ' * (width + 2))}")
    for key, value in config.items() if isinstance(config, dict) else ():
        say(f"{'':<{width}}  {' '.join(key.split())} = {json.dumps(value)}")


def again(
    picture: Path, *, out: Path | None, model: str | None, device: str | None, force: bool, yes: bool = False
) -> None:
    """Make ``picture`` again and compare. Raises typer.Exit(1) where pixels differ that should not."""
    from langevin.media.schema import WrongSettings, check_settings

    settings = settings_of(picture)
    medium = medium_of(picture, settings)
    check_out(out, picture.parent, medium.extensions, medium.noun)
    ours = "pipeline" in settings and "langevin" in settings
    if type(settings.get("seed")) is not int or settings["seed"] < 0:
        raise Failure(f"{picture} does not say its seed, so its noise cannot be drawn again")
    try:
        settings = check_settings(settings)
    except WrongSettings as error:
        raise Failure(f"{picture} has settings that cannot be followed: {error}") from None
    if missing := [name for name in settings.get("not_recorded") or [] if "callback" not in name]:
        raise Failure(f"{picture} was made with {', '.join(missing)}, which pictures do not carry")
    name = model or settings.get("model")
    if not name:
        raise BadUsage(f"{picture} does not say its model; name one with --model")
    if not ours:
        tell("langevin: another program made this picture; noise and model differ, so expect a relative, not a twin")
        settings = _without_loras(settings)

    trust = Trust(settings, model, yes)
    with _fitting():
        pipe = _load(settings, str(name), device, ours, trust, {} if model else trust.options(str(name)))
        result = pipe(**_arguments(pipe, settings, trust))
    made = getattr(result, medium.output)[0]
    if out is None:
        out = picture.with_name(f"{picture.stem}-again{picture.suffix if medium is VIDEO else medium.suffix}")
        force = False
    path = targets(out, settings.get("prompt"), [settings["seed"]], force, medium.suffix)[0]
    difference = medium.difference(picture, made)  # before saving, which may replace the picture
    made.save(path, **({"fps": settings["fps"]} if medium is VIDEO and settings.get("fps") else {}))
    say(f"{path}  (seed {settings['seed']}, {medium.described(made)})")
    _report(picture, medium, difference, exact=ours and model is None, settings=settings, device=str(pipe.device))


@contextlib.contextmanager
def _fitting() -> Iterator[None]:
    """Settings of the right kind that yet do not fit what they are for end in one line."""
    try:
        yield
    except (TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        raise Failure(f"its settings do not fit what they are for ({type(error).__name__}: {error})") from error


def _load(
    settings: dict[str, Any], model: str, device: str | None, ours: bool, trust: Trust, options: dict[str, Any]
) -> Any:
    """The pipeline with the picture's parts, scheduler, number format and device, as far as they exist here."""
    if device is None and ours:
        try:
            device = pick_device(settings.get("device"))
        except BadUsage:
            device = pick_device(None)
            tell(f"langevin: it was made on {settings['device']}, which is not here; using {device}")
    try:
        dtype = parse_dtype(settings.get("dtype")) if ours else None
    except BadUsage as error:
        raise Failure(f"its settings name the number format {settings['dtype']!r}, which is unknown here") from error
    if settings.get("cascade") and ours:
        return _load_cascade(settings, model, dtype, pick_device(device), trust)
    parts = {name: revive(part, trust) for name, part in (settings.get("parts") or {}).items()}
    try:
        kind = settings.get("pipeline") if ours else None
        pipe = load_pipeline(model, dtype, pick_device(device), kind, **options, **parts)
    except (OSError, ValueError) as error:
        if ours:
            raise
        raise Failure(f"its model {model!r} cannot be loaded; name another with --model ({error})") from error
    _choose_scheduler(pipe, settings, ours)
    if settings.get("freeu"):
        pipe.enable_freeu(**settings["freeu"])
    if ours and settings.get("loras"):
        from langevin.pipelines.lora_calls import restore_loras

        restore_loras(pipe, settings["loras"])
    return pipe


def _load_cascade(settings: dict[str, Any], model: str, dtype: Any, device: str, trust: Trust) -> Any:
    """The stages of a cascade with the picture's schedulers."""
    names = settings["cascade"]
    if model != names[0]:
        raise BadUsage(f"it was made by a cascade of {len(names)} models, which --model cannot replace; leave it out")
    if settings.get("parts") or settings.get("freeu"):
        raise Failure("it was made with other parts than its models', which are not put back into a cascade")
    stages = settings.get("stages") or {"stage 1": settings}
    made = [stages.get(f"stage {k + 1}") or {} for k in range(len(names))]
    if unknown := [one.get("scheduler") for one in made if one.get("scheduler") not in schedulers().values()]:
        raise Failure(f"its scheduler {unknown[0]} is unknown here")
    chosen = [make_scheduler(one["scheduler"], one.get("scheduler_config") or {}, {}) for one in made]
    options = {key: value for name in names for key, value in trust.options(name).items()}
    return load_cascade(names, dtype, device, schedulers=chosen, **options)


def _without_loras(settings: dict[str, Any]) -> dict[str, Any]:
    """Another program's settings without the LoRAs that their prompt names, of which it does not say where they are."""
    from langevin.prompts.loras import take_loras

    try:
        prompt, loras = take_loras(settings.get("prompt"), "a1111")
    except ValueError as error:
        raise Failure(str(error)) from None
    if loras:
        tell(f"langevin: it was made with the LoRA {', '.join(loras)}, which is left out")
    return {**settings, "prompt": prompt} if loras else settings


def _choose_scheduler(pipe: Any, settings: dict[str, Any], ours: bool) -> None:
    scheduler, config = settings.get("scheduler"), settings.get("scheduler_config") or {}
    if isinstance(scheduler, str) and scheduler in schedulers().values():
        if ours:
            set_scheduler(pipe, scheduler, config, {})
        else:
            set_scheduler(pipe, scheduler, pipe.scheduler.config, config)
    elif scheduler:
        if ours:
            raise Failure(f"its scheduler {scheduler} is unknown here; there are: {', '.join(schedulers().values())}")
        tell(f"langevin: its sampler {scheduler!r} is unknown here; using {type(pipe.scheduler).__name__}")
    for stage in (settings.get("stages") or {}).values() if ours else ():  # of a cascade, each may have its own
        part, kind = stage.get("part"), stage["scheduler"]
        if part != "scheduler" and part in pipe.components and hasattr(pipe.components[part], "plan"):
            if kind not in schedulers().values():
                raise Failure(f"its {part} {kind} is unknown here; there are: {', '.join(schedulers().values())}")
            set_scheduler(pipe, kind, stage["scheduler_config"], {}, part=part)


def _arguments(pipe: Any, settings: dict[str, Any], trust: Trust) -> dict[str, Any]:
    """The call's arguments: every setting that the pipeline's call has a parameter for."""
    takes = inspect.signature(pipe.__call__).parameters
    given = {
        key: revive(value, trust)
        for key, value in settings.items()
        if key in takes and key not in (*_NOT_AGAIN, *_GUIDERS) and "callback" not in key and value is not None
    }
    for several in _GUIDERS:
        if guiders := settings.get(several):
            given[several] = [_guider(described, trust) for described in guiders]
    form = {"output_type": "pil"} if makes_videos(settings) else {}  # a video's is an array by default
    return {**given, "seed": settings["seed"], **form}


def _guider(described: Any, trust: Trust) -> Any:
    """A guider from its description in the settings: its class, if that is one of langevin's, and its numbers."""
    import langevin

    values = dict(described) if isinstance(described, dict) else {}
    name = values.pop("class", None)
    if name not in langevin.__all__:
        raise Failure(f"it was made with the guider {name}, which is not one of langevin's")
    cls = getattr(langevin, name)
    if not (isinstance(cls, type) and issubclass(cls, langevin.Guider)):
        raise Failure(f"its settings name {name} as a guider, which it is not")
    return cls(**{key: revive(value, trust) for key, value in values.items()})


def revive(value: Any, trust: Trust) -> Any:
    """What :func:`langevin.media.recording.recorded` wrote, back to what it was: pictures and networks are loaded."""
    import langevin
    from langevin.media.recording import reread, reread_video
    from langevin.media.sound import sound_file
    from langevin.models.base import ModelMixin

    if isinstance(value, list):
        return [revive(one, trust) for one in value]
    kind = set(value) if isinstance(value, dict) else set()
    if kind == {"items"}:
        return {key: revive(one, trust) for key, one in value["items"]}
    if kind in ({"file", "sha256"}, {"png"}, {"video", "sha256"}):
        what, read = ("video", reread_video) if "video" in kind else ("picture", reread)
        try:
            return read(value)
        except FileNotFoundError:
            name = value.get("video") or value["file"]
            raise Failure(f"the {what} {name}, from which it was made, is not there") from None
        except (OSError, ValueError) as error:
            raise Failure(f"a {what} from which it was made cannot be used: {error}") from None
    if kind == {"sound", "sha256"}:
        try:
            return sound_file(value)
        except (OSError, ValueError) as error:
            raise Failure(f"the sound from which it was made cannot be used: {error}") from None
    if kind == {"network", "from"}:
        name, source = str(value["network"]), str(value["from"])
        network = getattr(langevin, name) if name in langevin.__all__ else None
        if not (isinstance(network, type) and issubclass(network, ModelMixin)):
            raise Failure(f"its settings name {name} as a network, which langevin does not have")
        return network.from_pretrained(source, **trust.options(source))
    return value


def _is_lossy(picture: Path, medium: Medium) -> bool:
    from langevin.media.load import open_safely

    if medium is not PICTURE:  # videos' WebP files are written without loss
        return picture.suffix.lower() in (".mp4", ".gif")
    with open_safely(picture) as image:
        return image.format in _LOSSY


def _report(
    picture: Path,
    medium: Medium,
    difference: tuple[int, int, int] | None,
    *,
    exact: bool,
    settings: dict[str, Any],
    device: str,
) -> None:
    from langevin import __version__

    if difference is None:
        say(f"the size is not that of {picture}")
    elif difference[0] == 0:
        say(f"identical: all {difference[2]} {medium.parts} are those of {picture}")
        return
    elif difference[0] == 1 and difference[1] <= _ROUNDED * difference[2]:
        say(
            f"the same but for rounding: {difference[1]} of {difference[2]} {medium.parts} differ from {picture}, "
            f"by 1 of {medium.most}, as those of a {medium.noun} made together with others may"
        )
        return
    else:
        most, some, every = difference
        say(
            f"not identical: {some} of {every} {medium.parts} differ from {picture}, by at most {most} of {medium.most}"
        )
    if not exact:
        return
    if _is_lossy(picture, medium):
        say(f"({picture.suffix} keeps pixels only roughly; a PNG could be compared exactly)")
        return
    reasons = [
        f"{what} {before!r} then, {now!r} now"
        for what, before, now in (
            ("langevin", settings.get("langevin"), __version__),
            ("device", settings.get("device"), device.partition(":")[0]),
        )
        if before is not None and before != now
    ]
    tell(f"langevin: {'; '.join(reasons) or 'same version and device: another torch, or an edited picture'}")
    raise typer.Exit(1)
