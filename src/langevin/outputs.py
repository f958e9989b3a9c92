"""What networks, schedulers and pipelines return: a dataclass that is a mapping and unpacks like a tuple."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any


class BaseOutput(Mapping):
    """Base of output dataclasses: ``out.images``, ``out["images"]`` and ``out[0]`` are the same thing.

    Fields that are None do not count: they have no key, no index, and are left out of :meth:`to_tuple`.
    Decorate subclasses with ``@dataclass`` (``eq=False`` is not needed: outputs compare by identity).

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Answer(BaseOutput):
        ...     images: list
        ...     scores: list | None = None
        >>> Answer(["picture"])[0] == Answer(["picture"])["images"] == ["picture"]
        True
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # tensors have no single truth value, so outputs that hold them must not be compared field by field
        cls.__eq__ = object.__eq__  # type: ignore[method-assign]
        cls.__hash__ = object.__hash__  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        # Code that maps over mappings (accelerate's casts, for one) rebuilds them as type(out)({key: value, …}).
        first, *rest = [field.name for field in fields(self)]  # type: ignore[arg-type]
        given = getattr(self, first)
        if type(given) is dict and all(getattr(self, name) is None for name in rest):
            for name in [first, *rest]:
                setattr(self, name, given.get(name))

    def keys(self) -> list[str]:  # type: ignore[override]
        """Names of the fields that are not None, in their order."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the fields that are not None."""
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{type(self).__name__} has no {key!r}; it has: {', '.join(self.keys())}")
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())
