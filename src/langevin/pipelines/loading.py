"""Pipelines in and out of folders: ``from_pretrained`` in the one door, ``save_pretrained``, and parts shared."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from pathlib import Path
from typing import Any, TypeVar

import torch

import langevin
from langevin.checkpoints import agreement, folders, model_index, saving, transformers_parts, weights
from langevin.checkpoints.boundary import first_line, reading
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.model_index import INDEX
from langevin.media.recording import stamp_parts
from langevin.models.base import ModelMixin
from langevin.pipelines.placement import Placement

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="Loading")


class Loading(Placement):
    """Parts that come from a checkpoint and go into one."""

    _progress_bar_config: dict[str, Any] = {}

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        torch_dtype: torch.dtype | str | dict[str, torch.dtype | str] | None = None,
        dtype: torch.dtype | str | dict[str, torch.dtype | str] | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool = True,
        device_map: Any = None,
        disable_mmap: bool = False,
        subfolder: str | None = None,
        custom_pipeline: str | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a pipeline with all its parts.

        Nothing in a checkpoint is ever run: pickles are read as tensors only, and pipelines that bring Python code are
        refused.

        Args:
            pretrained_model_name_or_path: a folder with a ``model_index.json``, a name in the box
                (``"langevin/shapes"``), or a hub id.
            torch_dtype: dtype of all networks, float32 where None; or one for each part,
                ``{"unet": torch.float16, "default": torch.float32}``.
            dtype: the same by its newer name.
            variant: ``"fp16"`` reads ``….fp16.safetensors`` where a part has such a file.
            use_safetensors: True reads nothing else, False reads pickles (``.bin``), None prefers safetensors.
            low_cpu_mem_usage: do not make and fill weights that files replace.
            device_map: a device to bring the pipeline to, such as ``"cuda"``, or ``"auto"``.
            disable_mmap: copy all weights into memory. Otherwise those that need no conversion stay mapped from their
                files, which must then not be overwritten in place while the pipeline lives (files that langevin
                replaces are safe).
            subfolder: folder below, if the pipeline is in one.
            custom_pipeline, trust_remote_code: refused; they would run a stranger's code.
            kwargs: a part (``unet=my_unet``, ``safety_checker=None``) or setting (``requires_safety_checker=False``) to
                use instead of the checkpoint's, and options of :func:`langevin.checkpoints.folders.resolve`
                (``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``).

        Raises:
            CheckpointError: something is missing, damaged, unknown, of the wrong kind, or leads out of the folder.

        Example:
            >>> pipe = DiffusionPipeline.from_pretrained("./my-model", torch_dtype=torch.float16, safety_checker=None)
        """
        if custom_pipeline is not None or trust_remote_code:
            raise CheckpointError(
                "custom_pipeline and trust_remote_code would run a checkpoint's Python code, which is "
                "never done here; import the class yourself and call its from_pretrained."
            )
        device = weights.parse_device(device_map)
        given = str(pretrained_model_name_or_path)
        hub = folders.take_options(kwargs)
        choose = functools.partial(model_index.files_needed, subfolder, set(kwargs), variant, use_safetensors)
        root = folders.inside(folders.resolve(given, choose=choose, **hub), subfolder)
        index = model_index.read(root)
        pipeline_class = cls._class_for(index, root)
        values, listed = pipeline_class._sort_entries(index, kwargs, root)

        here = {name: part_class for name, (part_class, folder) in listed.items() if folder.parent == root}
        variants = model_index.variants(root, here, variant)
        dtypes = dtype if dtype is not None else torch_dtype
        for name, (part_class, folder) in listed.items():
            options: dict[str, Any] = {"variant": variants.get(name), "use_safetensors": use_safetensors}
            options |= {"dtype": _dtype_of(name, dtypes), "disable_mmap": disable_mmap}
            with reading(f"{name} ({part_class.__name__}) in {folder}"):
                values[name] = _load_part(part_class, folder, low_cpu_mem_usage, options)
        agreement.check(values, root)
        try:
            pipe = pipeline_class(**values)
        except CheckpointError:
            raise
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            said = f"The parts of {root} do not make a {pipeline_class.__name__}: {first_line(error)}."
            raise CheckpointError(said) from error
        pipe.register_to_config(_name_or_path=given)
        if isinstance(index.get(model_index.CALL_DEFAULTS), dict):
            pipe.register_to_config(**{model_index.CALL_DEFAULTS: index[model_index.CALL_DEFAULTS]})
        pipe = pipe if device is None else pipe.to(device)
        stamp_parts(pipe, list(listed))
        return pipe

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike, **kwargs: Any) -> str:
        """Bring a pipeline into the hub's cache and return its folder; arguments as in :meth:`from_pretrained`."""
        hub = folders.take_options(kwargs)
        options: tuple[Any, ...] = (None, set(), kwargs.get("variant"), kwargs.get("use_safetensors"))
        return str(
            folders.resolve(pretrained_model_name, choose=functools.partial(model_index.files_needed, *options), **hub)
        )

    @classmethod
    def _class_for(cls, index: dict[str, Any], root: Path) -> type[Loading]:
        """This class, or where it is only the door, the one that ``model_index.json`` names."""
        name = index.get("_class_name")
        if isinstance(name, (list, tuple)):
            raise CheckpointError(
                f"{root / INDEX} names a pipeline in a Python file of its own ({name}); code from a "
                "checkpoint is never run."
            )
        if Loading not in cls.__bases__:
            return cls
        if not isinstance(name, str):
            raise CheckpointError(
                f"{root / INDEX} has no _class_name; call from_pretrained of the right pipeline class."
            )
        if name.startswith(("Onnx", "OV")):
            raise CheckpointError(f"{root} is an ONNX or OpenVINO checkpoint ({name}); only PyTorch weights are read.")
        found = model_index.public(name.removeprefix("Flax"))
        if isinstance(found, type) and issubclass(found, Loading):
            return found
        pipelines = [public for public in langevin.__all__ if public.endswith("Pipeline")]
        raise CheckpointError(
            f"{root / INDEX} names the pipeline class {name!r}, which langevin does not have; "
            f"{model_index.nearest(name, pipelines)}."
        )

    @classmethod
    def _sort_entries(
        cls, index: dict[str, Any], given: dict[str, Any], root: Path
    ) -> tuple[dict[str, Any], dict[str, tuple[type, Path]]]:
        """What the constructor is called with: what is known already, and for each part to load, its class and folder.

        Args:
            index: the folder's ``model_index.json``.
            given: parts and settings to use instead of the index's; others in it are told of and ignored.
            root: the folder.
        """
        parts, settings = cls._arguments()
        values = {name: index[name] for name in settings if name in index}
        values |= {name: given.pop(name) for name in [*parts, *settings] if name in given}
        cls._tell_ignored(index, given, parts + settings, root)
        to_load = {}
        for name in parts:
            listed = index.get(name)
            if name in index and not (isinstance(listed, list) and len(listed) == 2):
                raise CheckpointError(f"{root / INDEX} has {listed!r} for {name!r}; an entry is [library, class].")
            if name in values:
                model_index.check_replacement(name, values[name], listed, cls)
            elif listed is not None and listed[1] is not None:
                folder = model_index.home(root, index, name)
                to_load[name] = model_index.part_class(name, listed[0], listed[1], root, folder), folder
            elif listed is not None or name in cls._optional_components:
                values[name] = None
            else:
                raise CheckpointError(f"{root / INDEX} lists no {name!r}, which {cls.__name__} needs; pass {name}=….")
        return values, to_load

    @classmethod
    def _tell_ignored(cls, index: dict[str, Any], kwargs: dict[str, Any], known: list[str], root: Path) -> None:
        if kwargs:
            listed = ", ".join(f"{name} ({model_index.nearest(name, known)})" for name in kwargs)
            logger.warning("%s takes no %s; ignored.", cls.__name__, listed)
        extra = [k for k, v in index.items() if k not in known and not k.startswith("_") and v != [None, None]]
        if extra:
            message = "%s does not know these entries of %s and ignores them: %s."
            logger.warning(message, cls.__name__, root / INDEX, ", ".join(extra))

    @classmethod
    def from_pipe(cls: type[Self], pipeline: Loading, **kwargs: Any) -> Self:
        """A pipeline of this class that shares another one's parts; no memory is needed.

        Args:
            pipeline: where the parts come from.
            kwargs: parts and settings to use instead, and ``torch_dtype`` to convert the (shared) networks to.
                (The reference converts them to float32 where none is given; here they stay as they are.)

        Raises:
            CheckpointError: this class needs a part that the other pipeline lacks.
        """
        new_dtype = kwargs.pop("torch_dtype", kwargs.pop("dtype", None))
        parts, settings = cls._arguments()
        available = {**pipeline.config, **pipeline.components, **kwargs}
        lacking = [name for name in parts if name not in available and name not in cls._optional_components]
        if lacking:
            raise CheckpointError(
                f"{cls.__name__} needs {', '.join(lacking)}, which {type(pipeline).__name__} lacks; "
                f"pass {lacking[0]}=…."
            )
        values = {name: available.get(name) for name in parts}
        made = cls(**values, **{name: available[name] for name in settings if name in available})
        made.register_to_config(_name_or_path=pipeline.name_or_path)
        if model_index.CALL_DEFAULTS in pipeline.config:
            made.register_to_config(**{model_index.CALL_DEFAULTS: pipeline.config[model_index.CALL_DEFAULTS]})
        made._progress_bar_config = pipeline._progress_bar_config
        return made if new_dtype is None else made.to(weights.parse_dtype(new_dtype))

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: os.PathLike | str,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: str | int | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save all parts into a folder that :meth:`from_pretrained`, and the reference library, can load.

        A process killed in the middle leaves what was there before, whole; see
        :func:`langevin.checkpoints.saving.new_version`. Other files in the folder stay.

        Args:
            save_directory: the folder.
            safe_serialization: True writes ``.safetensors``, False pickles (``.bin``; networks of transformers are
                always written as safetensors).
            variant: ``"fp16"`` writes ``diffusion_pytorch_model.fp16.safetensors``, and so on.
            max_shard_size: larger weights are split into several files; ``"10GB"`` where None.
            push_to_hub: upload the folder afterwards; ``kwargs`` go to :func:`langevin.checkpoints.folders.push`.

        Raises:
            CheckpointError: the folder cannot be written, or a part has no ``save_pretrained``.
        """
        parts = {name: model_index.unwrapped(part) for name, part in self.components.items() if part is not None}
        for name, part in parts.items():
            if not hasattr(part, "save_pretrained"):
                raise CheckpointError(f"The part {name!r} is a {type(part).__name__}, which has no save_pretrained.")
        options = {"safe_serialization": safe_serialization, "variant": variant, "max_shard_size": max_shard_size}
        for name, part in parts.items():
            if hasattr(part, "refuse_leftovers"):  # what a folder holds beside would be read back as parts of this one
                part.refuse_leftovers(Path(save_directory, name))
        with saving.new_version(save_directory) as folder:
            for name, part in parts.items():
                takes = inspect.signature(part.save_pretrained).parameters
                chosen = {key: value for key, value in options.items() if key in takes and value is not None}
                if transformers_parts.is_transformers(type(part)):
                    if "variant" not in takes and transformers_parts.is_model(type(part)) and variant:
                        chosen["variant"] = variant
                    transformers_parts.save(part, folder / name, **chosen)
                else:
                    part.save_pretrained(folder / name, **chosen)
            model_index.write(folder, type(self).__name__, self.config)
        if push_to_hub:
            folders.push(save_directory, **kwargs)


def _dtype_of(part: str, dtypes: Any) -> torch.dtype | None:
    if isinstance(dtypes, dict):
        dtypes = dtypes.get(part, dtypes.get("default"))
    return torch.float32 if dtypes is None else weights.parse_dtype(dtypes)


def _load_part(cls: type, folder: Path, low_cpu_mem_usage: bool, options: dict[str, Any]) -> Any:
    root, name = folder.parent, folder.name
    if issubclass(cls, ModelMixin):
        options = {**options, "dtype": options["dtype"] or "auto"}
        return cls.from_pretrained(root, subfolder=name, low_cpu_mem_usage=low_cpu_mem_usage, **options)
    if transformers_parts.is_transformers(cls):
        return transformers_parts.load(cls, root, name, **options)
    return cls.from_pretrained(root, subfolder=name)  # type: ignore[attr-defined]
