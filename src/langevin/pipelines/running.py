"""What a program may see and set on a pipeline while its calls run."""

from __future__ import annotations

import weakref
from typing import Any

_SEEN = ("num_timesteps", "guidance_scale", "do_classifier_free_guidance", "clip_skip", "cross_attention_kwargs")


class Running:
    """A pipeline's view of its calls, as the reference has it.

    ``pipe._interrupt = True`` ends every call that runs, after its step: a button "stop", say. ``num_timesteps``,
    ``guidance_scale`` and the like are those of the call that began last. None of it is read by a call, so calls in
    several threads do not see each other.
    """

    def call_begins(self, call: Any) -> None:
        """Know a call, for as long as it lives, whose stage begins."""
        calls = self.__dict__.setdefault("_calls", {})
        for key, known in list(calls.items()):
            if known() is None:
                calls.pop(key, None)
        calls[id(call)] = weakref.ref(call)
        # in place, since a call that weighs LoRAs anew sees the pipeline through an object of its own
        self.__dict__.setdefault("_last_call", {}).update({name: getattr(call, name, None) for name in _SEEN})

    def running_calls(self) -> list[Any]:
        """The calls that run."""
        alive = [known() for known in list(self.__dict__.get("_calls", {}).values())]
        return [call for call in alive if call is not None]

    @property
    def interrupt(self) -> bool:
        """Whether a call that runs is to end after its step."""
        return any(call.interrupt for call in self.running_calls())

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        for call in self.running_calls():
            call.interrupt = value

    _interrupt = interrupt

    def _of_last_call(self, name: str) -> Any:
        return self.__dict__.get("_last_call", {}).get(name)

    @property
    def num_timesteps(self) -> int | None:
        """Network calls of the call that began last; None before the first."""
        return self._of_last_call("num_timesteps")

    @property
    def guidance_scale(self) -> float | None:
        """Of the call that began last."""
        return self._of_last_call("guidance_scale")

    @property
    def do_classifier_free_guidance(self) -> bool | None:
        """Whether the call that began last is guided."""
        return self._of_last_call("do_classifier_free_guidance")

    @property
    def clip_skip(self) -> int | None:
        """Of the call that began last."""
        return self._of_last_call("clip_skip")

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """Of the call that began last."""
        return self._of_last_call("cross_attention_kwargs")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_calls", "_last_call")}
