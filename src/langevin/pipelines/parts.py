"""What a pipeline is made of: its parts by name, and the settings beside them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from langevin.checkpoints import model_index
from langevin.checkpoints.config import ConfigMixin

Init = TypeVar("Init", bound=Callable[..., None])


def takes_parts(init: Init) -> Init:
    """The decorated constructor's arguments become the object's parts and settings; then its body runs.

    @takes_parts
    def __init__(self, unet, scheduler):
        pass
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def made(self: Parts, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            init(self, *args, **kwargs)  # says it in Python's own words
            raise
        bound.apply_defaults()
        self.take_parts(dict(list(bound.arguments.items())[1:]))
        init(self, *args, **kwargs)

    return made  # type: ignore[return-value]


class Parts(ConfigMixin):
    """An object made of parts (networks, a scheduler, a tokenizer, …) and settings.

    Both are arguments of its constructor: parts are those without a default and those in ``_optional_components``,
    which may be None; the others are settings. :func:`takes_parts` makes the object of them.
    """

    config_name = model_index.INDEX
    _optional_components: list[str] = []

    def take_parts(self, arguments: Mapping[str, Any]) -> None:
        """Make a constructor's arguments this pipeline's parts and settings.

        Args:
            arguments: all by name.
        """
        makers = [cls for cls in type(self).__mro__ if issubclass(cls, Parts) and "__init__" in vars(cls)]
        settings = {name for cls in makers for name in cls._arguments()[1]}
        self.register_modules(**{name: value for name, value in arguments.items() if name not in settings})
        self.register_to_config(**{name: value for name, value in arguments.items() if name in settings})

    def register_modules(self, **parts: Any) -> None:
        """Make objects the pipeline's parts: attributes, listed in :attr:`components` and ``config``."""
        self.__dict__["_parts"] = [*dict.fromkeys([*self._part_names(), *parts])]
        for name, part in parts.items():
            setattr(self, name, part)

    def _part_names(self) -> list[str]:
        return self.__dict__.get("_parts", [])

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in self._part_names():
            self.register_to_config(**{name: model_index.origin(value)})

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name; ``OtherPipeline(**pipe.components)`` shares them with another pipeline."""
        return {name: getattr(self, name) for name in self._part_names()}

    @property
    def name_or_path(self) -> str | None:
        """What was given to :meth:`from_pretrained`."""
        return self.config.get("_name_or_path")

    def _networks(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.components.items() if isinstance(part, nn.Module)}

    @classmethod
    def _arguments(cls) -> tuple[list[str], list[str]]:
        """Names of the constructor's parts and of its settings."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        parts = [p.name for p in named if p.default is p.empty or p.name in cls._optional_components]
        return parts, [p.name for p in named if p.name not in parts]
