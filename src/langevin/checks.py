"""Types and ranges of arguments, as annotations that are also checked: ``scale: Annotated[float, Range(0)] = 1.0``."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch


@dataclass(frozen=True)
class Range:
    """A number's range, both ends included: ``Annotated[float, Range(0, 1)]``."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low}"
        return f"{self.low} to {self.high}"


def one_of(values: Iterable[str]) -> Any:
    """The type of one of these texts."""
    return Literal[tuple(values)]  # type: ignore[misc, valid-type]


Count = Annotated[int, Range(1, 10**6)]
"""How many."""
Share = Annotated[float, Range(0, 1)]
"""0 to 1."""


def checked(name: str, value: Any, hint: Any) -> Any:
    """A value of the type that ``hint`` says, in its range, finite; numpy's numbers become Python's.

    Numbers, texts, choices, lists of them, tensors (of finite numbers), callables and classes are held against it; what
    stands in a list or dict of other things is for whoever uses it.

    Raises:
        ValueError: it is not.
    """
    found = list(_plain(value, hint))
    if not found:
        raise ValueError(f"{name} is {shown(value)}; it must be {_wanted(hint)}")
    return found[0]


def _plain(value: Any, hint: Any) -> Iterator[Any]:
    """The value as the hint wants it; nothing where it does not fit."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for fitting in _plain(value, inner[0]):
            if not isinstance(fitting, (int, float)) or all(check.holds(fitting) for check in inner[1:]):
                yield fitting
    elif origin in (Union, types.UnionType):
        for option in inner:
            yield from _plain(value, option)
    elif origin is Literal:
        if isinstance(value, (str, int, type(None))) and value in inner:
            yield value
    elif origin in (list, Sequence) and inner and _is_plain(inner[0]):
        value = value.tolist() if type(value).__module__ == "numpy" else value
        if isinstance(value, (list, tuple)):
            each = [next(_plain(one, inner[0]), _NOTHING) for one in value]
            if _NOTHING not in each:
                yield each if isinstance(value, list) else tuple(each)
    elif origin is tuple and inner and inner[-1] is not Ellipsis:
        if isinstance(value, (list, tuple)) and len(value) == len(inner):
            each = [next(_plain(one, kind), _NOTHING) for one, kind in zip(value, inner, strict=True)]
            if _NOTHING not in each:
                yield tuple(each)
    elif origin in _GENERIC:
        if _GENERIC[origin](value):
            yield value
    elif hint is type(None) or hint is None:
        if value is None:
            yield value
    elif hint in _PLAIN:
        yield from _PLAIN[hint](value)
    elif hint is torch.Tensor:
        if isinstance(value, torch.Tensor) and (not value.is_floating_point() or bool(value.isfinite().all())):
            yield value
    elif hint is Any or not isinstance(hint, type) or isinstance(value, hint):
        yield value


class _Nothing:
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


_NOTHING = _Nothing()


_LARGEST = torch.finfo(torch.float32).max


def _whole(value: Any) -> Iterator[int]:
    if isinstance(value, Integral) and not isinstance(value, bool):
        yield int(value)


def _real(value: Any) -> Iterator[float]:
    if not isinstance(value, Real) or isinstance(value, bool):
        return
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond all floats
        return
    if abs(number) <= _LARGEST:  # which NaN is not
        yield int(value) if isinstance(value, Integral) and abs(number) < 2**53 else number


def _flag(value: Any) -> Iterator[bool]:
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        yield bool(value)


def _text(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value


_PLAIN: Mapping[Any, Callable[[Any], Iterator[Any]]] = {int: _whole, float: _real, bool: _flag, str: _text}
_GENERIC: Mapping[Any, Callable[[Any], bool]] = {
    Callable: callable,
    Mapping: lambda value: isinstance(value, Mapping),
    dict: lambda value: isinstance(value, Mapping),
    Sequence: lambda value: isinstance(value, Sequence) and not isinstance(value, str),
    list: lambda value: isinstance(value, (list, tuple)),
}
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    type(None): "None",
    torch.Tensor: "a tensor without NaN and infinity",
}


def _is_plain(hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Annotated, Union, types.UnionType):
        return all(_is_plain(one) for one in (inner[:1] if origin is Annotated else inner))
    return hint in _PLAIN or origin is Literal or hint is type(None)


def _wanted(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_wanted(inner[0])}, {' and '.join(map(str, inner[1:]))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_wanted(option) for option in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (list, Sequence):
        return f"a list, each {_wanted(inner[0])}" if inner and _is_plain(inner[0]) else "a list"
    if origin is tuple:
        return f"({', '.join(map(_wanted, inner))})"
    if origin in _GENERIC:
        return {Callable: "callable"}.get(origin, "a dict")
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def shown(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool, list, tuple, type(None))) else ""
    return text if text and len(text) <= 80 else f"a {type(value).__name__}"


@functools.cache
def hints(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, with what is annotated to them."""
    try:
        found = get_type_hints(cls, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only a type checker sees
        return {}
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


def check_fields(made: Any, but: Collection[str] = (), of: str = "") -> None:
    """Hold the fields of a dataclass's object against their types; numpy's numbers become Python's.

    Args:
        but: names of fields that are checked elsewhere.
        of: is said behind a field's name.

    Raises:
        ValueError: one does not fit, in one line that says what is allowed.
    """
    for name, hint in hints(type(made)).items():  # type: ignore[arg-type]
        value = getattr(made, name)
        fitting = value if name in but else checked(name + of, value, hint)
        if fitting is not value:
            object.__setattr__(made, name, fitting)


def bare(hint: Any) -> Any:
    """A type without what is annotated to it, as people want to read it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return inner[0]
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(bare, inner))
    return hint
