"""Callbacks of a call, in the current form and in the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from langevin.guiders.base import Step
from langevin.guiders.setup import Setup
from langevin.pipelines.given import Given
from langevin.prompts.lengths import without_lengths

if TYPE_CHECKING:
    from langevin.pipelines.call import Call

TEXT = "encoder_hidden_states"


class Callbacks:
    """The callbacks of a call.

    ``callback_on_step_end(call, i, t, tensors) -> tensors | None`` comes after every network call; an object with an
    attribute ``tensor_inputs`` names its own. ``callback(i, t, latents)`` comes after every ``callback_steps``-th step.

    Args:
        given: the call's arguments.
        allowed: names of tensors that the pipeline has.

    Raises:
        ValueError: for names that the pipeline does not have.
    """

    def __init__(self, given: Given, allowed: Sequence[str]) -> None:
        self.on_step_end = given.callback_on_step_end
        wanted = getattr(self.on_step_end, "tensor_inputs", given.callback_on_step_end_tensor_inputs)
        self.tensor_inputs = list(wanted)
        unknown = [name for name in self.tensor_inputs if name not in allowed]
        if unknown:
            raise ValueError(f"callback tensor inputs {unknown} are unknown here; allowed: {', '.join(allowed)}")
        self.callback = given.callback
        self.every = given.callback_steps or 1

    def after_call(self, call: Call, step: Step, x: Tensor) -> Tensor:
        """Show the call's tensors after a network call; x as the callback leaves it."""
        if self.on_step_end is None:
            return x
        tensors = {name: x if name == "latents" else exposed(call, name) for name in self.tensor_inputs}
        before = {name: _version(tensor) for name, tensor in tensors.items()}
        given = self.on_step_end(call, step.index - step.start, torch.as_tensor(step.timestep), dict(tensors)) or {}
        in_place = {name: tensor for name, tensor in tensors.items() if _version(tensor) != before[name]}
        for name, value in {**in_place, **given}.items():
            if name == "latents":
                x = value
            elif value is not None:
                accept(call, name, value)
        return x

    def after_step(self, i: int, step: Step, x: Tensor) -> None:
        """The older form's call, where it is its turn."""
        if self.callback is not None and (step.index - step.start) % self.every == 0:
            self.callback(i, step.timestep, x)


def _version(tensor: Any) -> int:
    """Counts how often a tensor was changed in its place."""
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


class View:
    """How callbacks see a tensor of a call, where they do not see it as it is: what the reference shows them may be
    repeated for its branches. A pipeline lists its own in ``_callback_views``, by the tensor's name.
    """

    def show(self, call: Call, tensor: Any) -> Any:
        """What the callback gets."""
        return tensor

    def take(self, call: Call, value: Any) -> Any:
        """What it gave back, as the guiders know it."""
        return value


def exposed(call: Call, name: str) -> Any:
    """A tensor under the name by which callbacks know it; None where there is none."""
    setup = call.setup
    if name == "prompt_embeds":
        shown = call.shown_branches() if call.do_classifier_free_guidance else ["positive"]
        embeds = [setup.branches[branch][TEXT] for branch in shown if TEXT in setup.branches[branch]]
        return torch.cat(embeds) if len(embeds) > 1 else embeds[0] if embeds else None
    if name == "negative_prompt_embeds":
        return setup.branches.get("negative", {}).get(TEXT)
    tensor = setup.told.get("channels", {}).get(name, setup.tensors.get(name))
    return call.view(name).show(call, tensor)


def accept(call: Call, name: str, value: Any) -> None:
    """Take back a tensor that a callback returned."""
    setup = call.setup
    if name == "prompt_embeds":
        shown = call.shown_branches()
        parts = value.chunk(len(shown)) if len(value) == len(shown) * setup.shape[0] else [value]
        for branch, embeds in zip(shown if len(parts) > 1 else ["positive"], parts, strict=True):
            _replace_text(setup, branch, embeds)
    elif name == "negative_prompt_embeds":
        _replace_text(setup, "negative", value)
    else:
        value = call.view(name).take(call, value)
        if name in setup.told.get("channels", {}):
            setup.told.put("channels", name, value)
        else:
            setup.tensors[name] = value


def _replace_text(setup: Setup, branch: str, embeds: Tensor) -> None:
    """Give a branch other embeddings. Equal ones in another tensor leave it as it is; its own may have been changed."""
    old = setup.branches[branch][TEXT]
    alike = old is not embeds and old.shape == embeds.shape and old.dtype == embeds.dtype
    if not (alike and torch.equal(old, embeds.to(old.device))):
        told = (
            setup.branches[branch] if old.shape[1:2] == embeds.shape[1:2] else without_lengths(setup.branches[branch])
        )
        setup.branches[branch] = {**told, TEXT: embeds}
