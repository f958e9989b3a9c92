"""One call of a pipeline: its run, conditions and guiders, and what callbacks may see and change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from langevin.guiders.base import Guider, Setup, Step
from langevin.guiders.classifier_free import ClassifierFreeGuidance
from langevin.guiders.rescale import GuidanceRescale
from langevin.loop import denoise


class Callbacks:
    """The callbacks of a call, in the current form and in the one before it.

    Args:
        on_step_end: ``(call, i, t, tensors) -> tensors | None`` after every network call. An object with an attribute
            ``tensor_inputs`` names its own.
        tensor_inputs: names of the tensors it gets.
        allowed: names that the pipeline has.
        callback, callback_steps: ``callback(i, t, latents)`` after every ``callback_steps``-th step.

    Raises:
        ValueError: for names that the pipeline does not have, or ``callback_steps`` below 1.
    """

    def __init__(
        self,
        on_step_end: Callable | None,
        tensor_inputs: Sequence[str],
        allowed: Sequence[str],
        callback: Callable | None = None,
        callback_steps: int | None = None,
    ) -> None:
        self.on_step_end = on_step_end
        self.tensor_inputs = list(getattr(on_step_end, "tensor_inputs", tensor_inputs))
        unknown = [name for name in self.tensor_inputs if name not in allowed]
        if unknown:
            raise ValueError(f"callback tensor inputs {unknown} are unknown here; allowed: {', '.join(allowed)}")
        if callback_steps is not None and (not isinstance(callback_steps, int) or callback_steps < 1):
            raise ValueError(f"callback_steps is {callback_steps!r}; it must be a whole number of at least 1")
        self.callback = callback
        self.every = callback_steps or 1


class Call:
    """What a callback gets as its first argument: the pipeline, with this call's own settings in front of it.

    ``call.guidance_scale`` may be set to change guidance from the next step on, ``call._interrupt = True`` ends the
    run after this step. Both touch this call only, so that a pipeline can serve several threads. Any other attribute
    is the pipeline's.
    """

    def __init__(self, pipeline: Any, setup: Setup, callbacks: Callbacks, **visible: Any) -> None:
        self.pipeline = pipeline
        self.setup = setup
        self.callbacks = callbacks
        self.interrupt = False
        self.__dict__.update(visible)

    def __getattr__(self, name: str) -> Any:
        if name in ("_interrupt", "_guidance_scale"):
            return getattr(self, name[1:])
        dial = name.removeprefix("_")
        for guider in self._guidance(dial):
            return getattr(guider, guider.dials[dial])
        return getattr(self.__dict__["pipeline"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        dial = name.removeprefix("_")
        guidance = self._guidance(dial)
        for guider in guidance:
            setattr(guider, guider.dials[dial], value)
        if not guidance:
            self.__dict__[dial if dial == "interrupt" else name] = value

    def _guidance(self, dial: str = "guidance_scale") -> list[ClassifierFreeGuidance]:
        """The guiders that have this dial."""
        guiders = self.__dict__["setup"].guiders if "setup" in self.__dict__ else ()
        return [g for g in guiders if isinstance(g, ClassifierFreeGuidance) and dial in g.dials]

    @property
    def guidance_scale(self) -> float:
        return next((g.scale for g in self._guidance()), 1.0)

    @property
    def do_classifier_free_guidance(self) -> bool:
        return "negative" in self.setup.branches and any(g.on for g in self._guidance())

    @property
    def num_timesteps(self) -> int:
        return max(len(self.setup.run) - self.setup.start, 0)

    def denoise(self) -> Tensor:
        """Let the guiders prepare the call, then run the loop with progress bar and callbacks."""
        setup = self.setup
        for guider in setup.guiders:
            guider.prepare(setup)
        if setup.x is None:
            setup.x = setup.first_noise() * setup.run.init_noise_sigma
        run, start, order = setup.run, setup.start, setup.order
        steps = max(setup.steps - start // order, 0)
        total = max(len(run) - start, 0)
        # solvers that start with extra network calls report no progress for those
        warm_up = max(total - steps * order, 0)
        with self.pipeline.progress_bar(total=min(steps, total)) as bar:

            def on_step(step: Step, x: Tensor) -> Tensor | None:
                x = self._on_step_end(step, x)
                done = step.index - start + 1
                last = step.index == len(run) - 1  # an adaptive run grows on the way
                if last or (done > warm_up and done % order == 0):
                    bar.update()
                    i = (step.index - start) // order
                    if self.callbacks.callback is not None and (step.index - start) % self.callbacks.every == 0:
                        self.callbacks.callback(i, step.timestep, x)
                return None if self.interrupt and not last else x

            return denoise(
                setup.x,
                run,
                setup.denoiser,
                setup.branches,
                setup.guiders,
                noise=setup.noise,
                start=start,
                on_step=on_step,
            )

    def decode(self, x: Tensor) -> Tensor:
        """Pictures, ``(batch, channels, height, width)`` in about [-1, 1], as the guiders leave them."""
        pixels = self.setup.codec.decode(x)
        for guider in self.setup.guiders:
            pixels = guider.finish(pixels, self.setup)
        return pixels

    def _on_step_end(self, step: Step, x: Tensor) -> Tensor:
        if self.callbacks.on_step_end is None:
            return x
        self.__dict__["latents"] = x
        tensors = {name: self._expose(name) for name in self.callbacks.tensor_inputs}
        t = torch.as_tensor(step.timestep)
        changed = self.callbacks.on_step_end(self, step.index - step.start, t, tensors) or {}
        for name, value in changed.items():
            self._accept(name, value)
        return self.__dict__["latents"]

    def _shown_branches(self) -> list[str]:
        """Whose texts are "prompt_embeds" while guidance is on, one after the other."""
        order = next((g.callback_branches for g in self._guidance()), ("negative", "positive"))
        return [branch for branch in order if branch in self.setup.branches]

    def _expose(self, name: str) -> Any:
        """A tensor under the name by which callbacks know it."""
        if name == "prompt_embeds":
            positive = self.setup.branches["positive"]["encoder_hidden_states"]
            if not self.do_classifier_free_guidance:
                return positive
            return torch.cat([self.setup.branches[b]["encoder_hidden_states"] for b in self._shown_branches()])
        if name == "negative_prompt_embeds":
            return (
                self.setup.branches["negative"]["encoder_hidden_states"] if "negative" in self.setup.branches else None
            )
        return self.setup.tensors[name] if name in self.setup.tensors else self.__dict__[name]

    def _accept(self, name: str, value: Any) -> None:
        """Take back what a callback returned."""
        if name == "prompt_embeds":
            size = self.setup.branches["positive"]["encoder_hidden_states"].shape[0]
            branches = self._shown_branches()
            if value.shape[0] == len(branches) * size:
                for branch, embeds in zip(branches, value.split(size), strict=True):
                    self._replace(branch, embeds)
            else:
                self._replace("positive", value)
        elif name == "negative_prompt_embeds":
            if value is not None:
                self._replace("negative", value)
        elif name in self.setup.tensors:
            self.setup.tensors[name] = value
        else:
            self.__dict__[name] = value

    def _replace(self, branch: str, embeds: Tensor) -> None:
        old = self.setup.branches[branch]
        if old["encoder_hidden_states"] is not embeds:
            self.setup.branches[branch] = {**old, "encoder_hidden_states": embeds}


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
