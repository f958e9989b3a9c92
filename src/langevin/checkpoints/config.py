"""Configurations: what a model, scheduler or pipeline was built with, kept as JSON beside its weights."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from langevin.checkpoints import folders, saving, settings
from langevin.checkpoints.boundary import reading
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import read_json, to_json

logger = logging.getLogger(__name__)

REFERENCE_VERSION = "0.42.1"
"""Version of diffusers whose folder layout is written; it goes into ``_diffusers_version``."""

Self = TypeVar("Self", bound="ConfigMixin")


class FrozenConfig(dict):
    """A read-only dict whose keys are attributes too: ``config.sample_size == config["sample_size"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"config has no key {name!r}; it has: {', '.join(self)}") from None

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a config is read-only; build a new object with from_config(config, key=value)")

    __setitem__ = __delitem__ = __setattr__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse

    def __reduce__(self) -> tuple:
        return (type(self), (dict(self),))


class ConfigMixin:
    """An object that can be built from a JSON file, and remembers its constructor's arguments in ``self.config``.

    Subclasses set ``config_name``, the file's name, and decorate ``__init__`` with :func:`register_to_config`.
    """

    config_name: str = "config.json"
    #: under which name ``model_index.json`` says where the class is to be found
    library_name: str = "diffusers"
    #: constructor arguments that are no settings, such as other objects
    ignore_for_config: list[str] = []

    def register_to_config(self, **settings: Any) -> None:
        """Merge ``settings`` into the config."""
        self.__dict__["_config"] = FrozenConfig({**self.__dict__.get("_config", {}), **settings})

    @property
    def config(self) -> FrozenConfig:
        """The settings, read-only."""
        return self.__dict__.get("_config") or FrozenConfig()

    @classmethod
    def _settings_names(cls) -> list[str]:
        """Names of the constructor's arguments that are settings."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return [p.name for p in parameters if p.kind not in variadic and p.name not in cls.ignore_for_config]

    @classmethod
    def load_config(
        cls,
        source: str | os.PathLike | dict,
        *,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        return_commit_hash: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Read a config as a dict.

        Args:
            source: a folder, a config file, a hub id, or a dict, which is copied.
            subfolder: folder below ``source`` that has the file.
            return_unused_kwargs: return ``(config, kwargs that are not options of the hub)``.
            return_commit_hash: add the hub's commit, or None for a local folder, to what is returned.
            kwargs: options of :func:`langevin.checkpoints.folders.resolve`.

        Raises:
            CheckpointError: there is no such file, or it is not a JSON object.
        """
        hub = folders.take_options(kwargs)
        commit = None
        if isinstance(source, dict):
            config = dict(source)
        else:
            path = Path(source)
            if not _is_file(path):
                folder = folders.resolve(source, choose=folders.only(cls.config_name, subfolder), **hub)
                commit = folders.commit_of(folder)
                path = folders.inside(folder, subfolder, cls.config_name)
            config = read_json(path)
        extra = ([kwargs] if return_unused_kwargs else []) + ([commit] if return_commit_hash else [])
        return (config, *extra) if extra else config

    @classmethod
    def from_config(
        cls: type[Self], config: dict | str | os.PathLike, return_unused_kwargs: bool = False, **overrides: Any
    ) -> Any:
        """Build an object with the settings of ``config``.

        Settings that the config's owner left at the default are not carried over: the new class's own defaults hold
        for them. Settings that were read from a file are all carried over. Keys that the class does not know are kept
        in the new object's config.

        Args:
            config: another object's ``config``, a dict, or a folder.
            return_unused_kwargs: return ``(object, what of config and overrides was not used)``.
            overrides: settings that take precedence over the config's.

        Raises:
            CheckpointError: ``config`` is neither, or the folder has no config.

        Example:
            >>> ddim = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
        """
        if not isinstance(config, (dict, str, os.PathLike)):
            raise CheckpointError(f"{cls.__name__}.from_config needs a dict or a folder; got {config!r}.")
        if not isinstance(config, dict):
            config = cls.load_config(config)
        assert isinstance(config, dict)
        settings, kept, ignored = cls._split_settings(config, overrides)
        made = cls(**settings)
        made.register_to_config(**kept)
        if return_unused_kwargs:
            return made, {**kept, **ignored}
        if ignored:
            logger.warning("%s has no settings %s; they are ignored.", cls.__name__, ", ".join(map(repr, ignored)))
        return made

    @classmethod
    def _split_settings(cls, config: dict, overrides: dict[str, Any]) -> tuple[dict, dict, dict]:
        """Sort a config into constructor arguments, other entries to keep, and overrides nobody wants."""
        names = cls._settings_names()
        left_at_default = config.get("_use_default_values") or ()
        carried = {k: v for k, v in config.items() if k not in left_at_default and k != "_use_default_values"}
        settings = {k: v for k, v in carried.items() if k in names and not k.startswith("_")}
        accepted = {k: v for k, v in overrides.items() if k in names or k in cls.ignore_for_config}
        settings |= accepted
        ignored = {k: v for k, v in overrides.items() if k not in accepted}

        kept = {k: v for k, v in carried.items() if k not in settings}
        if "_class_name" in kept:
            kept["_class_name"] = cls.__name__
        # another class's or a live object's config has other settings in it for a reason: nothing to warn of
        if config.get("_class_name", cls.__name__) == cls.__name__ and "_use_default_values" not in config:
            odd = [k for k in kept if not k.startswith("_")]
            # settings of schedulers that it can be swapped for survive a swap there and back
            for relative in getattr(cls, "_get_compatibles", list)() if odd else ():
                odd = [k for k in odd if k not in relative._settings_names()]
            if odd:
                listed = ", ".join(f"{k}={kept[k]!r}" for k in odd)
                file = cls.config_name
                logger.warning(
                    "%s does not know these entries of its %s; they do nothing: %s", cls.__name__, file, listed
                )
        return settings, kept, ignored

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike | dict,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Build an object from the config file in a folder.

        Args:
            pretrained_model_name_or_path: a folder, a name in the box, or a hub id.
            subfolder: folder below it that has the file, such as ``"scheduler"``.
            return_unused_kwargs: return ``(object, what was not used)``.
            kwargs: options of :func:`langevin.checkpoints.folders.resolve`, and settings that override the file's.

        Raises:
            CheckpointError: there is no such file, or it cannot be read.

        Example:
            >>> scheduler = DDIMScheduler.from_pretrained("langevin/shapes", subfolder="scheduler")
        """
        config, kwargs = cls.load_config(
            pretrained_model_name_or_path, subfolder=subfolder, return_unused_kwargs=True, **kwargs
        )
        if isinstance(pretrained_model_name_or_path, dict):
            return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        file = Path(pretrained_model_name_or_path, subfolder or "", cls.config_name)
        settings.check(cls, {name: value for name, value in config.items() if name not in kwargs}, file)
        with reading(f"{file} as the config of a {cls.__name__}", "correct the file, or use another"):
            return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the config file into a folder, which is made if need be. The file is replaced in one move.

        Args:
            save_directory: the folder.
            push_to_hub: upload the folder; ``kwargs`` are those of :func:`langevin.checkpoints.folders.push`.

        Raises:
            CheckpointError: the folder is a file, or a setting cannot be written as JSON.
        """
        saving.replace_file(saving.make_folder(save_directory) / self.config_name, self.to_json_string().encode())
        if push_to_hub:
            folders.push(save_directory, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """The same as :meth:`save_config`; networks and pipelines save their weights too."""
        self.save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """The config as JSON, keys sorted."""
        return config_text(type(self).__name__, self.config)

    def to_json_file(self, path: str | os.PathLike) -> None:
        """Write :meth:`to_json_string` into a file, which is replaced in one move."""
        saving.replace_file(Path(path), self.to_json_string().encode())

    def __getattr__(self, name: str) -> Any:
        # unet.in_channels was once how settings were read; config.in_channels is now
        settings = self.__dict__.get("_config")
        if name.startswith("_") or settings is None or name not in settings:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        message = f"{type(self).__name__}.{name} is a setting: read it as .config.{name}"
        warnings.warn(message, FutureWarning, stacklevel=2)
        return settings[name]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def _is_file(path: Path) -> bool:
    """Whether there is such a file; False for what can be no path at all, which is told elsewhere."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def config_text(class_name: str, entries: Mapping[str, Any]) -> str:
    """The text of a config file: the entries of an object of that class as JSON, keys sorted."""
    # where it was read from is no setting, and nobody else's business
    kept = {k: v for k, v in entries.items() if k not in ("_use_default_values", "_name_or_path")}
    return to_json({**kept, "_class_name": class_name, "_diffusers_version": REFERENCE_VERSION})


def register_to_config(init: Any) -> Any:
    """Decorate ``__init__`` so that all its arguments, defaults included, become ``self.config``.

    Which of them were not given is noted in ``config["_use_default_values"]``: :meth:`ConfigMixin.from_config` does not
    carry those over. (The reference notes arguments given by position there as well, and so loses them; here they
    count as given.) Where a class and its base are both decorated, the class's own arguments hold.
    """
    signature = inspect.signature(init)
    catch_all = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]

    @functools.wraps(init)
    def wrapped(self: ConfigMixin, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        given = {*bound.arguments, *kwargs}
        bound.apply_defaults()
        values = dict(list(bound.arguments.items())[1:])
        for name in catch_all:
            values |= values.pop(name)
        known = self.__dict__.get("_config", {}) if type(self).__init__ is not wrapped else {}
        values = {k: v for k, v in values.items() if k not in self.ignore_for_config and k not in known}
        defaults = [*known.get("_use_default_values", ()), *(k for k in values if k not in given)]
        self.register_to_config(**values, **({"_use_default_values": defaults} if defaults else {}))
        init(self, *args, **kwargs)

    return wrapped
