"""The course of every call: its stages are made, denoised and decoded, and the result is handed back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langevin.codecs.base import Codec
from langevin.codecs.pixels import PIXELS
from langevin.denoiser import NetworkDenoiser
from langevin.guiders.base import Guider, Setup
from langevin.guiders.classifier_free import ClassifierFreeGuidance
from langevin.guiders.rescale import GuidanceRescale
from langevin.guiders.step import Conditions, Input, Step, Told
from langevin.loop import denoise
from langevin.media.sound import Sound
from langevin.pipelines.callbacks import Callbacks, guidance, guided
from langevin.pipelines.given import Given
from langevin.pipelines.results import call_settings, check_output_type, deliver
from langevin.prompts.lengths import by_length, ragged
from langevin.randomness import noise_for

logger = logging.getLogger(__name__)
TEXTS = ("prompt", "negative_prompt", "source_prompt", "class_labels")
"""Arguments that are one text (or number of a class) or one per prompt; each picture records its own."""


class Call:
    """One call of a pipeline, in one stage or several: ``stage``, ``denoise``, ``decode``, ``deliver``.

    All stages share seeds, callbacks, progress bars and the record of settings::

        call = Call(self, given, batch)
        prior = call.stage(self.prior, self.prior_scheduler, (n, dim), text, [ClassifierFreeGuidance(4.0)], steps=25)
        told = self.text_proj(call.denoise(prior), text)
        decoder = call.stage(self.decoder, self.scheduler, (n, 3, 64, 64), told, [ClassifierFreeGuidance(8.0)], steps=9)
        return call.deliver(call.decode(decoder, call.denoise(decoder)))

    It is also what callbacks get as their first argument: the pipeline, with this call's own settings in front of it.
    ``call.guidance_scale`` may be set to change guidance from the next step on, ``call._interrupt = True`` ends the
    run after this step. Both touch this call only, so that a pipeline can serve several threads. Any other attribute
    is the argument of that name, else the pipeline's.

    Args:
        pipeline: whose call it is.
        given: its arguments.
        batch: how many pictures it makes.
        law: of its random numbers; see :class:`~langevin.randomness.Noise`.
    """

    def __init__(self, pipeline: Any, given: Given, batch: int, *, law: Callable[..., Tensor] = torch.randn) -> None:
        check_output_type(given.output_type, "latent")
        self.pipeline = pipeline
        self.given = given
        self.interrupt = False
        views = getattr(pipeline, "_callback_views", {})
        self.callbacks = Callbacks(given, pipeline._callback_tensor_inputs, views)
        self.noise, self.seeds = noise_for(batch, given.generator, given.seed, law)
        self.stages: list[Any] = []
        self.record: dict[str, Any] = {}  # further settings for its pictures

    # -- the course

    def stage(
        self,
        network: Any,
        scheduler: Any,
        shape: tuple[int, ...],
        branches: Mapping[str, Conditions] | None = None,
        guiders: Sequence[Guider] = (),
        *,
        steps: int | None = None,
        run: Any = None,
        codec: Codec = PIXELS,
        told: Mapping[str, Any] | None = None,
        fixed: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        latents: Tensor | None = None,
        name: str = "",
        options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Setup:
        """One network, scheduler, shape and codec, with all that its loop needs.

        Args:
            network: what denoises: any callable; see :class:`~langevin.denoiser.NetworkDenoiser`.
            scheduler: plans the run of ``steps`` steps, with those of ``options`` that it takes; or ``run`` is given.
            shape: of x, ``(batch, …)``.
            branches: conditions by branch name; ``{"positive": {}}`` if None.
            guiders: this stage's, in order; they are copied for it.
            codec: what x stands for.
            told: conditions of all branches.
            fixed: keyword arguments of the network that are no tensors of rows.
            dtype: of x; the network's if None.
            latents: the noise to begin with, where the caller gave it.
            name: of the stage, where the call has several: for the progress bar, callbacks and the record.
            more: further attributes of the :class:`Setup`.

        Raises:
            ValueError: ``latents`` have another shape.
        """
        if run is None:
            taken = {k: v for k, v in (options or {}).items() if k in scheduler.run_options}
            run = scheduler.plan(steps, **taken)
        if latents is not None and tuple(latents.shape) != tuple(shape):
            raise ValueError(f"latents is {tuple(latents.shape)}; {tuple(shape)} is needed for this batch and size")
        device = self.pipeline._execution_device
        dtype = dtype if dtype is not None else getattr(network, "dtype", torch.float32)
        inputs: list[Input] = []
        setup = Setup(
            run=run,
            steps=len(run) if steps is None else steps,
            order=scheduler.order,
            branches=dict(branches) if branches else {"positive": {}},
            guiders=[guider.begin() for guider in guiders],
            network=network,
            denoiser=NetworkDenoiser(network, inputs, **(fixed or {})),
            inputs=inputs,
            codec=codec,
            noise=self.noise,
            shape=tuple(shape),
            device=device,
            dtype=dtype,
            told=Told(told or {}),
            scheduler=scheduler,
            name=name,
            latents=None if latents is None else _brought(latents, device, dtype),
            **more,
        )
        self.stages.append(setup)
        return setup

    def denoise(self, setup: Setup) -> Tensor:
        """Let the stage's guiders prepare it, then run the loop with progress bar and callbacks; x at its end."""
        self.__dict__["setup"] = setup
        self.pipeline.call_begins(self)
        check_guiders(setup)
        for guider in setup.guiders:
            guider.prepare(setup)
        if setup.x is None:
            setup.x = setup.begin()
        check_channels(setup)
        run, start, order = setup.run, setup.start, setup.order
        if self.interrupt:  # an earlier stage was ended before its time
            return setup.x
        end = len(run) if setup.stop is None else setup.stop
        steps = max(setup.steps - (start + len(run) - end) // order, 0)
        total = max(end - start, 0)
        # solvers that start with extra network calls report no progress for those
        warm_up = max(total - steps * order, 0)
        with self.pipeline.progress_bar(total=min(steps, total)) as bar:
            if setup.name:
                bar.set_description(setup.name)

            health = Health(setup, total)
            watched = self.callbacks.on_step_end is not None

            def on_step(step: Step, x: Tensor) -> Tensor | None:
                self.__dict__["step"] = step
                if watched:
                    x = self.callbacks.after_call(self, setup, step, x)
                if step.index % health.every == 0:
                    health.look(step.index, x)
                done = step.index - start + 1
                last = (
                    step.index == (len(run) if setup.stop is None else setup.stop) - 1
                )  # an adaptive run grows on the way
                whole = last or (done > warm_up and done % order == 0)
                if whole:
                    bar.update()
                if whole or self.pipeline._callback_each_call:
                    self.callbacks.after_step((step.index - start) // order, step, x)
                return None if self.interrupt and not last else x

            x = denoise(
                setup.x,
                run,
                by_length(setup.denoiser) if ragged(setup.branches) else setup.denoiser,
                setup.branches,
                setup.guiders,
                noise=setup.noise,
                told=setup.told,
                start=start,
                stop=setup.stop,
                on_step=on_step,
            )
        health.report(x)
        return x

    def decode(self, setup: Setup, x: Tensor) -> Tensor:
        """What x stands for, ``(batch, channels, height, width)`` in about [-1, 1], as the guiders leave it."""
        pixels = setup.codec.decode(x)
        for guider in setup.guiders:
            pixels = guider.finish(pixels, setup)
        return pixels

    def close(self, setup: Setup) -> None:
        """Keep of a stage that is over no more than the record says of it, so that its network can be dropped."""
        over = Over(setup.scheduler, setup.name)
        self.stages = [over if stage is setup else stage for stage in self.stages]
        self.__dict__ |= {"setup": None, "step": None}

    def deliver(self, pixels: Tensor, **record: Any) -> Any:
        """Pictures in the form asked for, each with the settings that made it; "latent" is as it is.

        Args:
            pixels: ``(batch, channels, height, width)`` in [-1, 1]; values outside are clamped.
            record: further settings, or others than the call's arguments; those that are None are left out.
        """
        self.pipeline.maybe_free_model_hooks()
        form = self.given.output_type
        if form == "latent":
            return pixels
        height, width = pixels.shape[-2:]
        length = {"num_frames": pixels.shape[2]} if pixels.ndim == 5 else {}
        record = {"height": height, "width": width, **length, **self.record, **record}
        return deliver(pixels, form, self.settings(record) if form == "pil" else [])

    def deliver_sounds(self, samples: Tensor, sample_rate: int, **record: Any) -> list[Sound]:
        """Sounds of ``(batch, channels, length)`` in [-1, 1], each with the settings that made it."""
        self.pipeline.maybe_free_model_hooks()
        settings = self.settings({**self.record, **record})
        return [Sound(row, sample_rate, its) for row, its in zip(samples.float().cpu(), settings, strict=True)]

    def settings(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is written into each picture: its own seed, its own prompt, the pictures that it was made from."""
        count = len(self.seeds)
        arguments = self.given.record()
        texts = {name: arguments.pop(name) for name in TEXTS if _is_text(arguments.get(name))}
        spread = self.pipeline.spread_arguments(self.given)
        lists = any(isinstance(arguments[name], (list, tuple)) for name in spread)
        alike = count == 1 or not (lists or arguments.get("control") or arguments.get("guiders"))
        common: dict[str, Any] = {}
        each = []
        for k, seed in enumerate(self.seeds):
            if k == 0 or not alike:
                row = k, count
                common = call_settings(self.pipeline, arguments, self.stages, row=row, spread=spread, **record)
            own: dict[str, Any] = {name: _of_row(text, k, count) for name, text in texts.items()}
            each.append({n: value for n, value in {**common, "seed": seed, **own}.items() if value is not None})
        return each

    # -- what callbacks see

    def __getattr__(self, name: str) -> Any:
        if name in ("_interrupt", "_guidance_scale"):
            return getattr(self, name[1:])
        dial = name.removeprefix("_")
        for guider in self._guidance(dial):
            return getattr(guider, guider.dials[dial])
        held = self.__dict__
        return getattr(held["given"] if hasattr(held.get("given"), name) else held["pipeline"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        dial = name.removeprefix("_")
        guiders = self._guidance(dial)
        for guider in guiders:
            setattr(guider, guider.dials[dial], value)
        if not guiders:
            self.__dict__[dial if dial == "interrupt" else name] = value

    def _guidance(self, dial: str) -> list[ClassifierFreeGuidance]:
        return guidance(self.__dict__["setup"], dial) if self.__dict__.get("setup") else []

    @property
    def scheduler(self) -> Any:
        """The stage's scheduler as its familiar methods would stand after the last network call: ``timesteps``,
        ``sigmas`` and ``step_index`` are those of this run.
        """
        setup, step = self.__dict__.get("setup"), self.__dict__.get("step")
        if setup is None:
            return self.pipeline.scheduler
        return setup.scheduler.showing(setup.run, setup.steps, None if step is None else step.index + 1)

    @property
    def guidance_scale(self) -> float:
        return next((g.scale for g in self._guidance("guidance_scale")), getattr(self.given, "guidance_scale", 1.0))

    @property
    def do_classifier_free_guidance(self) -> bool:
        return guided(self.setup)

    @property
    def num_timesteps(self) -> int:
        return max(len(self.setup.run) - self.setup.start, 0)


@dataclass(frozen=True)
class Over:
    """A stage that is over, for the record."""

    scheduler: Any
    name: str


def _brought(latents: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Given latents where they are needed; codes stay whole numbers."""
    return latents.to(device, dtype if latents.is_floating_point() else None)


def _is_text(value: Any) -> bool:
    return all(isinstance(one, str | int) for one in (value if isinstance(value, (list, tuple)) else [value]))


def _of_row(texts: Any, k: int, count: int) -> Any:
    """The text of picture k of ``count``, where each prompt's are adjacent."""
    return texts[k * len(texts) // count] if isinstance(texts, (list, tuple)) else texts


class Health:
    """Says in one warning when x stopped being finite, since its picture is black. It looks at most sixteen times a
    stage, and waits for no accelerator before the end.
    """

    def __init__(self, setup: Setup, calls: int) -> None:
        self.setup = setup
        self.every = max(1, -(-calls // 16))
        self.sums: dict[int, Tensor] = {}

    def look(self, index: int, x: Tensor) -> None:
        """After network call ``index``."""
        if x.is_floating_point():
            self.sums[index] = x.sum(dtype=torch.float32)

    def report(self, x: Tensor) -> None:
        """The warning, if there is anything to warn of in this x or before."""
        self.look(len(self.setup.run) - 1, x)
        looked = list(self.sums)
        bad = torch.stack([*self.sums.values()]).isfinite().logical_not().nonzero().flatten().tolist() if looked else []
        if not bad:
            return
        setup, last = self.setup, looked[bad[0]]
        first = looked[bad[0] - 1] + 1 if bad[0] else setup.start
        place = f"network call {last + 1}" if first == last else f"one of the network calls {first + 1} to {last + 1}"
        cure = "use float32 or bfloat16" if setup.dtype == torch.float16 else "look at the weights and the inputs"
        logger.warning(
            "x is NaN or infinite from %s of %d on (%s, %s); %s.",
            place, len(setup.run), type(setup.network).__name__, setup.dtype, cure,
        )  # fmt: skip


def check_guiders(setup: Setup) -> None:
    """Raises ValueError if a guider of pictures is to work on a video."""
    if setup.codec.axes > 2:
        names = [type(guider).__name__ for guider in setup.guiders if getattr(guider, "pictures_only", False)]
        if names:
            raise ValueError(f"{names[0]} works on pictures; what is made here is a video, {tuple(setup.shape)}")


def check_channels(setup: Setup) -> None:
    """Raises ValueError unless the network takes x and what is joined to it."""
    takes = getattr(setup.network, "config", {}).get("in_channels") if hasattr(setup.network, "config") else None
    if takes is None or setup.x is None or setup.x.ndim < 3:
        return
    joined = setup.told.to("positive", setup.branches["positive"]).get("channels", {})
    given = setup.x.shape[1] + sum(tensor.shape[1] for tensor in joined.values())
    if takes != given:
        names = f" and what is joined to it ({', '.join(joined)}) have" if joined else " has"
        raise ValueError(f"this network takes {takes} channels, where x{names} {given}")


def compose_guiders(guidance_scale: float, guidance_rescale: float, guiders: Sequence[Guider]) -> list[Guider]:
    """Classifier-free guidance first, then ``guiders`` as they come, then rescale.

    A :class:`ClassifierFreeGuidance` among ``guiders`` takes the place of the built-in one, the last of several that of
    all: the caller's that of the pipeline's own. So does a :class:`GuidanceRescale`.
    """
    guidance: list[Guider] = [ClassifierFreeGuidance(guidance_scale)]
    guidance += [g for g in guiders if isinstance(g, ClassifierFreeGuidance)]
    rest = [g for g in guiders if not isinstance(g, ClassifierFreeGuidance)]
    if guidance_rescale > 0 and not any(isinstance(g, GuidanceRescale) for g in rest):
        rest.append(GuidanceRescale(guidance_rescale))
    return [guidance[-1], *rest]
