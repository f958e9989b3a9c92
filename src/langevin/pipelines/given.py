"""What a call is given: names, types, defaults, checks, documentation and record of its arguments, in one place.

A family of pipelines writes its arguments as a frozen dataclass of :class:`Given`; a pipeline of the family adds its
own in a subclass, says in ``positional`` in which order they may be given without their names, and takes them all at
once::

    @dataclass(frozen=True, kw_only=True)
    class BrighterGiven(TextGiven):
        amount: Share = 0.1
        positional = "prompt amount"

    class BrighterPipeline(StableDiffusionBase):
        @takes(BrighterGiven)
        def __call__(self, given: BrighterGiven) -> Any:
            return self.generate(given, [Brighter(given.amount)])

People call ``pipe("a cat", 0.2, seed=7)``; editors, ``help`` and type checkers see every argument.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch import Generator

from langevin.checks import Count, bare, check_fields, hints, shown
from langevin.guiders.base import Guider, is_guider
from langevin.signatures import argument_entries

P = ParamSpec("P")
G = TypeVar("G", bound="Given")
S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What every pipeline's call takes.

    Args:
        generator: one for the batch, or a list with one per picture; or ``seed``.
        output_type: "pil", "np" ``(batch, height, width, channels)`` or "pt" ``(batch, channels, height, width)``, both
            in [0, 1].
        return_dict: give a tuple instead of an output object if False.
        callback_on_step_end, callback_on_step_end_tensor_inputs: ``(call, i, t, tensors) -> tensors`` after every
            network call, and the names of the tensors it gets; see :class:`langevin.pipelines.call.Call`.
        callback, callback_steps: the older form, ``callback(i, t, latents)`` after every ``callback_steps``-th step.
        seed: picture k is made from ``seed + k``, or give a list with one per picture. Made alone with its own seed, a
            picture is the same.
        guiders: see :mod:`langevin.guiders`; they stack on the pipeline's own.
        lora: which loaded LoRAs this call uses, with their weights, ``{"ink": 0.8}``, instead of those that
            ``set_adapters`` says; ``{}`` is none. A weight may be ``{"unet": 0.8, "text_encoder": 0.5}``. Those that
            the prompt names, ``<lora:ink:0.8>`` or ``withLora(ink, 0.8)``, are used too.
    """

    generator: Generator | Sequence[Generator] | None = None
    output_type: Literal["pil", "np", "pt"] = "pil"
    return_dict: bool = True
    callback_on_step_end: Callable[..., Any] | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    callback: Callable[..., Any] | None = None
    callback_steps: Count | None = None
    seed: int | Sequence[int] | None = None
    guiders: Sequence[Guider] = ()
    lora: Mapping[str, Any] | None = None

    #: names of the arguments that may be given without their names, in order
    positional: ClassVar[str] = ""
    #: names of those that pictures do not record, since they say nothing of what is in them
    unrecorded: ClassVar[tuple[str, ...]] = (
        "generator",
        "output_type",
        "return_dict",
        "callback_on_step_end_tensor_inputs",
    )

    def __post_init__(self) -> None:
        check_fields(self, _CHECKED_ELSEWHERE)
        seed: Any = self.seed
        if hasattr(seed, "tolist"):  # numpy's numbers and arrays
            object.__setattr__(self, "seed", seed.tolist())
        self._check_lists("guiders")
        listed = self.generator if isinstance(self.generator, (list, tuple)) else [self.generator]
        wrong = [one for one in listed if not isinstance(one, Generator | None)]
        if wrong or not listed:
            given = shown(wrong[0]) if wrong else "an empty list"
            raise ValueError(f"generator is {given}; it must be a torch.Generator, or a list with one per picture")

    def _check_lists(self, *names: str) -> None:
        for name in names:
            listed = getattr(self, name)
            if is_guider(listed) or isinstance(listed, (str, Mapping)) or not isinstance(listed, Sequence):
                raise ValueError(f"{name} is a {type(listed).__name__}; it must be a list of guiders, {name}=[…]")
            wrong = [one for one in listed if not is_guider(one)]
            if wrong:
                raise ValueError(f"{name} holds {shown(wrong[0])}; it must be a list of guiders, such as [Windows()]")

    def record(self) -> dict[str, Any]:
        """The arguments by name, as far as pictures record them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in self.unrecorded}
        return {**values, **self.__dict__.get(_AS_GIVEN, {})}

    def changed(self: G, **values: Any) -> G:
        """The same with other values."""
        same = dataclasses.replace(self, **values)
        before = {name: value for name, value in self.__dict__.get(_AS_GIVEN, {}).items() if name not in values}
        if before:
            object.__setattr__(same, _AS_GIVEN, before)
        return same

    def said_otherwise(self: G, **values: Any) -> G:
        """The same with other values, of which pictures record what they were."""
        before = {**{name: getattr(self, name) for name in values}, **self.__dict__.get(_AS_GIVEN, {})}
        same = dataclasses.replace(self, **values)
        object.__setattr__(same, _AS_GIVEN, before)
        return same


_AS_GIVEN = "_as_given"
_CHECKED_ELSEWHERE = ("seed", "generator", "guiders", "control", "prompt", "negative_prompt")
"""Whose words of what is wrong say more."""


# -- functions that take them ----------------------------------------------------------------------------------------


def takes(given: Callable[P, G]) -> Callable[[Callable[[S, G], R]], Callable[Concatenate[S, P], R]]:
    """The decorated method is called with the arguments of a dataclass, and gets them as one object.

    What it returns is an output; ``return_dict=False`` makes a tuple of it here. Gradients are off. The dataclass is
    the method's attribute ``given``.
    """
    kind: type[Given] = given  # type: ignore[assignment]

    def decorate(function: Callable[[S, G], R]) -> Callable[Concatenate[S, P], R]:
        signature = signature_of(kind)

        @functools.wraps(function)
        @torch.no_grad()
        def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError as error:
                raise TypeError(_misused(type(self).__name__, signature, kwargs, error)) from None
            arguments = dict(list(bound.arguments.items())[1:])
            values: Any = kind(**arguments)
            if hasattr(self, "for_call"):
                self, values = self.for_call(values)
            output: Any = function(self, values)
            return output if values.return_dict else in_a_tuple(output)

        call.given = kind  # type: ignore[attr-defined]
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        call.__doc__ = documented(function.__doc__, kind)
        return call  # type: ignore[return-value]

    return decorate


def in_a_tuple(output: Any) -> tuple[Any, ...]:
    """An output's values, None among them, in the order that the reference has in tuples."""
    names = getattr(output, "in_tuples", None) or [f.name for f in dataclasses.fields(output)]
    return tuple(getattr(output, name) for name in names)


def signature_of(given: type[Given]) -> inspect.Signature:
    """``self``, then the ``positional`` arguments in their order, then the others by name."""
    fields = {f.name: f for f in dataclasses.fields(given)}
    annotations = hints(given)  # type: ignore[arg-type]

    def parameter(name: str, kind: Any) -> inspect.Parameter:
        field = fields[name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        return inspect.Parameter(name, kind, default=default, annotation=bare(annotations[name]))

    first = given.positional.split()
    rest = [name for name in fields if name not in first]
    return inspect.Signature(
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
            *(parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in first),
            *(parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in rest),
        ]
    )


def _misused(owner: str, signature: inspect.Signature, kwargs: Mapping[str, Any], error: TypeError) -> str:
    known = [name for name in signature.parameters if name != "self"]
    unknown = [name for name in kwargs if name not in known]
    if not unknown:
        return f"{owner}: {error}"
    close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
    hint = f"nearest: {close[0]}" if close else f"it takes: {', '.join(known)}"
    return f"{owner} takes no argument {unknown[0]!r}; {hint}"


def documented(doc: str | None, given: type[Given]) -> str:
    """A method's docstring with what the dataclass and its bases say of their arguments, the pipeline's own first."""
    own = inspect.cleandoc(doc or "")
    arguments = "".join(f"    {names}: {told}\n" for names, told in argument_entries(given).items())
    head, _, tail = own.partition("\n\nRaises:")
    return f"{head}\n\nArgs:\n{arguments}" + (f"\nRaises:{tail}" if tail else "")
