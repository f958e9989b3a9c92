"""The whole cascade in one call: small pictures from a text, then larger ones from them, stage by stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from langevin.checkpoints import folders, model_index
from langevin.checks import Count
from langevin.guiders.step import Conditions
from langevin.media.convert import denormalize
from langevin.media.recording import LOST, parts_state
from langevin.outputs import IFCascadeOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call
from langevin.pipelines.deepfloyd.base import IFBase
from langevin.pipelines.given import Given, takes
from langevin.pipelines.running import Running
from langevin.pipelines.stable_diffusion.given import check_texts
from langevin.prompts.readers.base import Reading

_READ = ("prompt", "negative_prompt", "num_images_per_prompt", "clean_caption", "prompt_weighting", "long_prompts")
_FOR_ALL = (*_READ, "num_inference_steps", "guidance_scale", "safety_action")


@dataclass(frozen=True, kw_only=True)
class IFCascadeGiven(Given):
    """Arguments of :class:`IFCascade`.

    Args:
        prompt, negative_prompt: a text, or one per picture.
        num_inference_steps, guidance_scale: of every stage; each stage's own where None.
        num_images_per_prompt: pictures of each prompt.
        clean_caption, prompt_weighting, long_prompts: how prompts are read, once for all stages; see
            :class:`~langevin.IFPipeline`. Prompts that change on the way are refused.
        safety_action: what to do with pictures that a stage's safety checker flags: black them out, or only say so. The
            next stage is given the picture as it is.
        each: further arguments of single stages, a dict for each, in their order:
            ``each=[{"num_inference_steps": 100}, {"noise_level": 100, "guidance_scale": 4.0}]``.
        guiders: of the first stage, which decides what is to be seen.
    """

    prompt: str | Sequence[str] | None = field(default=None, kw_only=False)
    negative_prompt: str | Sequence[str] | None = None
    num_inference_steps: Count | None = None
    guidance_scale: float | None = None
    num_images_per_prompt: Count = 1
    clean_caption: bool = True
    prompt_weighting: str = "compel"
    long_prompts: Literal["chunk", "cut"] = "chunk"
    safety_action: Literal["blackout", "flag"] = "blackout"
    each: Sequence[Mapping[str, Any]] = ()

    positional = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt", "negative_prompt"):
            check_texts(name, getattr(self, name))
        if self.prompt is None:
            raise ValueError("prompt is missing; give a text, or one per picture")
        if wrong := [one for one in self.each if not isinstance(one, Mapping)]:
            raise ValueError(f"each holds a {type(wrong[0]).__name__}; give a dict of arguments for each stage")

    def of_stage(self, k: int, pipe: Any, small: Tensor | None) -> Any:
        """The arguments of stage ``k``'s own call.

        Args:
            small: the pictures of the stage before, in [-1, 1].

        Raises:
            ValueError: ``each`` names what this stage does not take.
        """
        call: Any = type(pipe).__call__
        takes = {one.name for one in dataclasses.fields(call.given)}
        values = {name: value for name, value in vars(self).items() if name in takes.intersection(_FOR_ALL)}
        values = {name: value for name, value in values.items() if value is not None}
        if small is not None:
            values["image"] = small if isinstance(pipe, IFBase) else denormalize(small)
        own = self.each[k] if k < len(self.each) else {}
        if unknown := [name for name in own if name not in takes]:
            raise ValueError(f"each[{k}] has {unknown[0]!r}, which {type(pipe).__name__} does not take")
        return call.given(**{**values, "guiders": self.guiders if k == 0 else (), **own})


class IFCascade(Running):
    """DeepFloyd IF's stages, one after the other, in one call with one set of seeds. The prompt is encoded once.

    The first stage is any of IF's that makes small pictures, the second one that makes them larger; the third, if there
    is one, may be a :class:`~langevin.StableDiffusionUpscalePipeline`. Stages that need more than a prompt, such as a
    picture and a mask, get it by ``each``.

    Args:
        stages: pipelines; or names of checkpoints, which are loaded when their turn comes, text encoder and networks
            one after the other, and dropped afterwards.
        device: where those go.
        schedulers: in the place of those that they have; None leaves a stage its own.
        options: of their ``from_pretrained``.

    Raises:
        ValueError: there is no stage, or the first is none of IF's.

    Example:
        >>> from langevin import IFCascade
        >>> names = "DeepFloyd/IF-I-XL-v1.0", "DeepFloyd/IF-II-L-v1.0"
        >>> cascade = IFCascade(*names, variant="fp16", torch_dtype="float16", device="cuda")
        >>> made = cascade("a photo of a corgi", seed=7)
        >>> small, large = made.sizes
    """

    def __init__(self, *stages: Any, device: Any = None, schedulers: Sequence[Any] = (), **options: Any) -> None:
        if not stages:
            raise ValueError("a cascade needs stages: give pipelines, or names of checkpoints")
        self.stages, self.place, self.schedulers, self.options = stages, device, schedulers, options
        self._progress_bar_config: dict[str, Any] = {}
        first, *_ = [self._kind(stage) if isinstance(stage, str) else type(stage) for stage in stages]
        if not issubclass(first, IFBase):
            raise ValueError(
                f"a cascade's first stage is one of IF's, such as an IFPipeline; this is a {first.__name__}"
            )

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Of every stage: one network at a time is on the accelerator, the others on the CPU. Stages given by names
        need it not: they are not even loaded.
        """
        for pipe in self.stages:
            if not isinstance(pipe, str):
                pipe.enable_model_cpu_offload(gpu_id, device)

    @property
    def device(self) -> torch.device:
        """Where the first stage is, or will be."""
        first = self.stages[0]
        return torch.device(self.place or "cpu") if isinstance(first, str) else first.device

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Options of :class:`tqdm.tqdm` for the stages' progress bars."""
        self._progress_bar_config = kwargs

    @takes(IFCascadeGiven)
    def __call__(self, given: IFCascadeGiven) -> Any:
        """Make pictures.

        Returns:
            :class:`~langevin.IFCascadeOutput`: pictures of the last stage, and those of all.
        """
        told = self._read(given)
        call = Call(_UnderWay(self), given, told.batch)
        made: list[Any] = []
        small: Tensor | None = None
        for k in range(len(self.stages)):
            small = self._go_through(k, call, given, told, small, made)
            if call.interrupt:
                break
        last = made[-1]
        unsafe = getattr(last, "nsfw_detected", getattr(last, "nsfw_content_detected", None))
        marked = getattr(last, "watermark_detected", None)
        return IFCascadeOutput(last.images, unsafe, marked, [one.images for one in made])

    def _go_through(
        self, k: int, call: Call, given: IFCascadeGiven, told: Reading, small: Tensor | None, made: list[Any]
    ) -> Tensor:
        """Stage ``k``: appends what it hands out to ``made``, and returns its pictures for the next stage."""
        call.pipeline.now = pipe = self._opened(k, text_encoder=None, tokenizer=None)
        own = given.of_stage(k, pipe, small)
        more: dict[str, Any] = {"told": _for(pipe, told)} if isinstance(pipe, IFBase) else {}
        _, setup = pipe.begin(own, *pipe.prepared(own), call=call, name=f"stage {k + 1}", **more)
        pixels = call.decode(setup, call.denoise(setup))
        call.record |= _record(call.record, pipe)
        made.append(pipe.hand_out(call, pixels))
        call.close(setup)
        call.pipeline.now = None
        return pixels

    def _read(self, given: IFCascadeGiven) -> Reading:
        """Prompt and negative prompt as all of IF's stages are told them."""
        pipe = self._opened(0, unet=None, safety_checker=None, watermarker=None)
        how: dict[str, Any] = {"prompt_weighting": given.prompt_weighting, "long_prompts": given.long_prompts}
        pictures = given.num_images_per_prompt
        told = pipe.reads(given).read(given.prompt, given.negative_prompt, pictures=pictures, steps=100, **how)
        if told.guider is not None:
            raise ValueError(
                "a prompt changes on the way, and a cascade's stages have other steps; give one that stays"
            )
        pipe.maybe_free_model_hooks()
        return told if pipe is self.stages[0] else dataclasses.replace(told, again=None)  # which holds the encoder

    def _opened(self, k: int, **without: None) -> Any:
        """Stage ``k``; one of IF's that has to be loaded, without some parts."""
        stage = self.stages[k]
        if not isinstance(stage, str):
            return stage
        parts: dict[str, Any] = {**without} if issubclass(self._kind(stage), IFBase) else {}
        if k < len(self.schedulers) and self.schedulers[k] is not None:
            parts["scheduler"] = self.schedulers[k]
        pipe = DiffusionPipeline.from_pretrained(stage, **{**self.options, **parts})
        pipe.set_progress_bar_config(**self._progress_bar_config)
        return pipe if self.place is None else pipe.to(self.place)

    def _kind(self, name: str) -> type:
        """The class of pipeline that a checkpoint is of."""
        hub = folders.take_options(dict(self.options))
        root = folders.resolve(name, choose=lambda names, fetch: [model_index.INDEX], **hub)
        return DiffusionPipeline._class_for(model_index.read(root), root)


def _for(pipe: Any, told: Reading) -> Reading:
    """What was read, where and as a stage's network needs it."""

    def brought(value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(pipe._execution_device, pipe.unet.dtype) if floats else value

    branches: dict[str, Conditions] = {}
    for name, branch in told.branches.items():
        branches[name] = {key: brought(one) for key, one in branch.items()}
    return dataclasses.replace(told, branches=branches)


class _UnderWay:
    """A cascade as its call sees it: what is asked of it, the stage answers whose turn it is."""

    _callback_tensor_inputs = IFBase._callback_tensor_inputs

    def __init__(self, cascade: IFCascade) -> None:
        self.cascade = cascade
        self.now: Any = None

    def call_begins(self, call: Call) -> None:
        self.cascade.call_begins(call)

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.now, name)


def _record(before: Mapping[str, Any], pipe: Any) -> dict[str, Any]:
    """What the pictures of a stage say of the cascade up to it."""
    names = [*before.get("cascade", ()), pipe.name_or_path or ""]
    state, lost = parts_state(pipe)
    lost = [*before.get(LOST, ()), *lost, *(f"other parts of stage {len(names)}" for _ in state)]
    lost += [] if names[-1] else [f"the model of stage {len(names)}"]
    return {"pipeline": IFCascade.__name__, "model": names[0], "cascade": names, **({LOST: lost} if lost else {})}
