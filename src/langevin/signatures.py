"""Functions that take another one's arguments beside their own, and what docstrings say of arguments."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def also_takes(
    model: Callable[..., Any], leave_out: Collection[str] = (), *, evaluate: bool = False
) -> Callable[[Function], Function]:
    """The decorated function's ``**common`` are the arguments of ``model`` that it does not name itself.

    ``help`` and ``inspect.signature`` show them all, unknown ones raise a TypeError, and those that are not given
    arrive with their defaults, as if they were written out.

    Args:
        leave_out: names of arguments of ``model`` that are not taken.
        evaluate: show annotations as objects, not as the texts that they are in the source.
    """

    def decorate(function: Function) -> Function:
        own, theirs = (inspect.signature(f, eval_str=evaluate).parameters.values() for f in (function, model))
        named = [p for p in own if p.kind is not p.VAR_KEYWORD]
        taken = {*leave_out, *(p.name for p in named)}
        others = [p.replace(kind=p.KEYWORD_ONLY) for p in theirs if p.name not in taken]
        signature = inspect.Signature([*named, *others])

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(*bound.args, **bound.kwargs)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        checked.__annotations__ = {p.name: p.annotation for p in others} | function.__annotations__
        return checked  # type: ignore[return-value]

    return decorate


_ARGS = re.compile(r"^\s*Args:\n(.*?)(?=^\S|\Z)", re.M | re.S)
_ENTRY = re.compile(r"^    (?=\w)(.*?)(?=^    \w|\Z)", re.M | re.S)


def argument_entries(cls: type) -> dict[str, str]:
    """What a class and its bases say of arguments in their docstrings' ``Args``, the class's own first.

    Returns:
        From the names of an entry, as in ``"height, width"``, to its text, lines and all.
    """
    entries: dict[str, str] = {}
    for base in cls.__mro__:
        found = _ARGS.search(inspect.cleandoc(vars(base).get("__doc__") or "") + "\n")
        for entry in _ENTRY.findall(found[1]) if found else ():
            names, _, text = entry.partition(":")
            told = {name.strip() for name in names.split(",")}
            if not any(told & {n.strip() for n in known.split(",")} for known in entries):
                entries[names] = text.strip()
    return entries


def argument_docs(cls: type) -> dict[str, str]:
    """The same, one line for each argument."""
    return {
        name.strip(): " ".join(text.split())
        for names, text in argument_entries(cls).items()
        for name in names.split(",")
    }
