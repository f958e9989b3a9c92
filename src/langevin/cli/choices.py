"""What the words on the command line stand for: sizes, devices, number formats, schedulers, models."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from langevin.cli.errors import BadUsage
from langevin.schedulers.catalogue import names, short_name

_DTYPES = {
    "float32": "float32", "fp32": "float32", "float": "float32",
    "float16": "float16", "fp16": "float16", "half": "float16",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
}  # fmt: skip


def parse_size(size: str) -> tuple[int, int]:
    """ "64" -> (64, 64), "64x96" -> (64, 96): width and height in pixels."""
    found = re.fullmatch(r"\s*(\d{1,6})(?:\s*[x×X*]\s*(\d{1,6}))?\s*", size)
    width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if width < 1 or height < 1:
        raise BadUsage(f"--size {size!r} is not WIDTHxHEIGHT, such as 64x96, or one number for a square")
    return width, height


def parse_dtype(name: str | None) -> Any:
    """The torch dtype of that name; None stays None, the model's default."""
    if name is None:
        return None
    import torch

    full = _DTYPES.get(name.lower().removeprefix("torch."))
    if full is None:
        raise BadUsage(f"--dtype {name!r} is not one of: float32, float16, bfloat16")
    return getattr(torch, full)


def pick_device(name: str | None) -> str:
    """The device of that name, or the fastest there is."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.lower().partition(":")
    if kind not in ("cpu", "cuda", "mps", "xpu") or (index and not index.isdigit()):
        raise BadUsage(f"--device {name!r} is not one of: cpu, cuda, cuda:NUMBER, mps, xpu")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise BadUsage(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices here; try --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise BadUsage("--device mps: there is none here; try --device cpu")
    return name.lower()


def schedulers() -> dict[str, str]:
    """Every scheduler class of langevin under its short name: {"euler": "EulerDiscreteScheduler", …}."""
    return {short_name(name): name for name in names()}


def parse_scheduler(name: str) -> tuple[str, dict[str, Any]]:
    """The class name for a class name, a short name or A1111's sampler, with the config entries that it needs."""
    from langevin.media.settings import SAMPLERS, scheduler_of

    def bare(text: str) -> str:
        return re.sub(r"[^a-z0-9+]", "", text.lower())

    known = schedulers()
    by_name: dict[str, tuple[str, dict[str, Any]]] = {bare(short): (cls, {}) for short, cls in known.items()}
    by_name |= {bare(written): (cls, {}) for cls in known.values() for written in (cls, cls.removesuffix("Scheduler"))}
    for sampler in SAMPLERS:
        for schedule in ("", " Karras", " Exponential"):
            cls, config = scheduler_of(sampler + schedule)
            if cls in known.values():
                by_name.setdefault(bare(sampler + schedule), (cls, config))
    if bare(name) not in by_name:
        near = difflib.get_close_matches(bare(name), known, 3, 0.5) or ["ddim", "euler", "dpmsolver"]
        raise BadUsage(f"there is no scheduler {name!r}; there are {', '.join(near)}, … (see: langevin schedulers)")
    return by_name[bare(name)]


@contextlib.contextmanager
def busy(text: str) -> Iterator[None]:
    """A spinner on the terminal while something takes long; nothing where there is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def load_pipeline(model: str, dtype: Any, device: str, kind: str | None = None, **more: Any) -> Any:
    """The pipeline of a model on a device; ``kind`` names the class, where it is not the model's own. ``more`` are
    parts and options of ``from_pretrained``.
    """
    import langevin

    if os.path.isdir(os.path.expanduser(model)):  # written into pictures, which are made again from anywhere
        model = os.path.abspath(os.path.expanduser(model))
    cls = langevin.DiffusionPipeline
    if kind is not None and kind in langevin.__all__ and kind.endswith("Pipeline"):
        cls = getattr(langevin, kind)
    with busy(f"Loading {model}"):
        pipe = cls.from_pretrained(model, **({"torch_dtype": dtype} if dtype is not None else {}), **more)
        pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=None, desc="Painting", leave=False)  # None: only on a terminal
    return pipe


def scheduler_config(pipe: Any, option: str) -> Any:
    """The config of the pipeline's one scheduler. Raises BadUsage, naming the option, where each stage has its own."""
    if getattr(pipe, "scheduler", None) is None:
        own = ", ".join(name for name in pipe.components if name.endswith("scheduler"))
        raise BadUsage(
            f"this model ({type(pipe).__name__}) has a scheduler for each stage ({own}); {option} is for one"
        )
    return pipe.scheduler.config


def load_cascade(names: Sequence[str], dtype: Any, device: str, **more: Any) -> Any:
    """A cascade of these models, which are loaded one after the other when they are needed; ``more`` goes to it."""
    import langevin

    here = [os.path.abspath(os.path.expanduser(n)) if os.path.isdir(os.path.expanduser(n)) else n for n in names]
    try:
        cascade = langevin.IFCascade(
            *here, device=device, **({"torch_dtype": dtype} if dtype is not None else {}), **more
        )
    except ValueError as error:
        raise BadUsage(str(error)) from None
    cascade.set_progress_bar_config(disable=None, leave=False)
    return cascade


def refuse_videos(pipe: Any, command: str) -> None:
    """Raises BadUsage if a pipeline makes videos, where pictures are wanted."""
    if {"num_frames", "video"} & set(inspect.signature(pipe.__call__).parameters):
        raise BadUsage(f"langevin {command} makes pictures; this model ({type(pipe).__name__}) is for: langevin video")


def parse_loras(given: Sequence[str]) -> list[tuple[str, str, float]]:
    """ "ink.safetensors:0.8" -> ("ink", "ink.safetensors", 0.8): the prompts' name for it, its file, its weight."""
    found: list[tuple[str, str, float]] = []
    for text in given:
        numbered = re.fullmatch(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+))", text)
        file, weight = (numbered[1], float(numbered[2])) if numbered else (text, 1.0)
        if re.search(r":[^/\\]*$", file) and not os.path.exists(os.path.expanduser(file)):
            raise BadUsage(f"--lora {text!r} is not FILE or FILE:WEIGHT, such as ink.safetensors:0.8")
        stem = re.sub(r"\.(safetensors|bin|pt|ckpt)$", "", os.path.basename(file.rstrip("/"))) or "lora"
        taken = [name for name, *_ in found]
        name = next(name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}" if n > 1 else stem) not in taken)
        found.append((name, file, weight))
    return found


def load_loras(pipe: Any, loras: Sequence[tuple[str, str, float]]) -> None:
    """Load LoRAs into a pipeline, and use all of them."""
    for name, file, _ in loras:
        pipe.load_lora_weights(file, adapter_name=name)
    if loras:
        pipe.set_adapters([name for name, *_ in loras], [weight for *_, weight in loras])


def set_scheduler(
    pipe: Any,
    cls_name: str,
    config: dict[str, Any],
    overrides: dict[str, Any],
    spacing: str | None = None,
    part: str = "scheduler",
) -> None:
    """Give the pipeline the scheduler of that name as one of its parts; see :func:`make_scheduler`."""
    setattr(pipe, part, make_scheduler(cls_name, config, overrides, spacing))


def make_scheduler(cls_name: str, config: dict[str, Any], overrides: dict[str, Any], spacing: str | None = None) -> Any:
    """The scheduler of that name, built from ``config``, with that spacing."""
    import langevin

    asked = overrides.get("_spacing")
    spacing = spacing or (asked["name"] if asked else None)
    overrides = {key: value for key, value in overrides.items() if key != "_spacing"}
    scheduler = getattr(langevin, cls_name).from_config(config, **overrides)
    try:
        return scheduler if spacing is None else scheduler.with_spacing(spacing)
    except ValueError as error:
        raise BadUsage(f"--spacing: {error}") from None
