"""Callbacks of a call, in the current form and in the one before it, and what they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from langevin.guiders.base import Setup
from langevin.guiders.classifier_free import ClassifierFreeGuidance
from langevin.guiders.step import Step
from langevin.pipelines.given import Given
from langevin.prompts.lengths import replaced

TEXT = "encoder_hidden_states"


class View:
    """How callbacks see a tensor of a call, where they do not see it as it is: what the reference shows them may be
    repeated for its branches. A pipeline lists its own in ``_callback_views``, by the tensor's name.
    """

    def show(self, setup: Setup, tensor: Any) -> Any:
        """What the callback gets."""
        return tensor

    def take(self, setup: Setup, value: Any) -> Any:
        """What it gave back, as the guiders know it."""
        return value


class Callbacks:
    """The callbacks of a call.

    ``callback_on_step_end(call, i, t, tensors) -> tensors | None`` comes after every network call; an object with an
    attribute ``tensor_inputs`` names its own. ``callback(i, t, latents)`` comes after every ``callback_steps``-th step.

    Args:
        given: the call's arguments.
        allowed: names of tensors that the pipeline has.
        views: of those that are not shown as they are, by name.

    Raises:
        ValueError: for names that the pipeline does not have.
    """

    def __init__(self, given: Given, allowed: Sequence[str], views: Mapping[str, View]) -> None:
        self.on_step_end = given.callback_on_step_end
        wanted = getattr(self.on_step_end, "tensor_inputs", given.callback_on_step_end_tensor_inputs)
        self.tensor_inputs = list(wanted)
        unknown = [name for name in self.tensor_inputs if name not in allowed]
        if unknown:
            raise ValueError(f"callback tensor inputs {unknown} are unknown here; allowed: {', '.join(allowed)}")
        self.views = views
        self.callback = given.callback
        self.every = given.callback_steps or 1

    def after_call(self, call: Any, setup: Setup, step: Step, x: Tensor) -> Tensor:
        """Show the stage's tensors after a network call; x as the callback leaves it."""
        assert self.on_step_end is not None
        tensors = {name: x if name == "latents" else self._shown(setup, name) for name in self.tensor_inputs}
        before = {name: _version(tensor) for name, tensor in tensors.items()}
        given = self.on_step_end(call, step.index - step.start, torch.as_tensor(step.timestep), dict(tensors)) or {}
        in_place = {name: tensor for name, tensor in tensors.items() if _version(tensor) != before[name]}
        for name, value in {**in_place, **given}.items():
            if name == "latents":
                x = value
            elif value is not None:
                self._take(setup, name, value)
        return x

    def after_step(self, i: int, step: Step, x: Tensor) -> None:
        """The older form's call, where it is its turn."""
        if self.callback is not None and (step.index - step.start) % self.every == 0:
            self.callback(i, step.timestep, x)

    def _shown(self, setup: Setup, name: str) -> Any:
        """A tensor under the name by which callbacks know it; None where there is none."""
        if name == "prompt_embeds":
            shown = text_branches(setup) if guided(setup) else ["positive"]
            embeds = [setup.branches[branch][TEXT] for branch in shown if TEXT in setup.branches[branch]]
            if len({one.shape[1:] for one in embeds}) > 1:  # texts of different lengths
                return setup.branches["positive"][TEXT]
            return torch.cat(embeds) if len(embeds) > 1 else embeds[0] if embeds else None
        if name == "negative_prompt_embeds":
            return setup.branches.get("negative", {}).get(TEXT)
        tensor = setup.told.get("channels", {}).get(name, setup.tensors.get(name))
        return self.views.get(name, _PLAIN).show(setup, tensor)

    def _take(self, setup: Setup, name: str, value: Any) -> None:
        """Take back a tensor that a callback returned."""
        if name == "prompt_embeds":
            shown = text_branches(setup)
            parts = value.chunk(len(shown)) if len(value) == len(shown) * setup.shape[0] else [value]
            for branch, embeds in zip(shown if len(parts) > 1 else ["positive"], parts, strict=True):
                _replace_text(setup, branch, embeds)
        elif name == "negative_prompt_embeds":
            _replace_text(setup, "negative", value)
        else:
            value = self.views.get(name, _PLAIN).take(setup, value)
            if name in setup.told.get("channels", {}):
                setup.told.put("channels", name, value)
            else:
                setup.tensors[name] = value


_PLAIN = View()


def guidance(setup: Setup, dial: str = "guidance_scale") -> list[ClassifierFreeGuidance]:
    """The guiders of a stage that have this dial."""
    return [g for g in setup.guiders if isinstance(g, ClassifierFreeGuidance) and dial in g.dials]


def guided(setup: Setup) -> bool:
    """Whether there is classifier-free guidance in a stage."""
    return "negative" in setup.branches and any(g.on for g in guidance(setup))


def text_branches(setup: Setup) -> list[str]:
    """Whose texts are "prompt_embeds" while guidance is on, one after the other."""
    order = next((g.callback_branches for g in guidance(setup)), ("negative", "positive"))
    return [branch for branch in order if branch in setup.branches]


def _version(tensor: Any) -> int:
    """Counts how often a tensor was changed in its place."""
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


def _replace_text(setup: Setup, branch: str, embeds: Tensor) -> None:
    """Give a branch other embeddings. Equal ones in another tensor leave it as it is; its own may have been changed."""
    old = setup.branches[branch][TEXT]
    alike = old is not embeds and old.shape == embeds.shape and old.dtype == embeds.dtype
    if not (alike and torch.equal(old, embeds.to(old.device))):
        setup.branches[branch] = replaced(setup.branches[branch], TEXT, embeds)
