"""What every pipeline shares: its parts, where they come from, where they live, and how they are saved."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import langevin
from langevin.checkpoints import folders, saving, transformers_parts, weights
from langevin.checkpoints.config import ConfigMixin, read_json
from langevin.checkpoints.errors import CheckpointError
from langevin.models.base import ModelMixin

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="DiffusionPipeline")

INDEX = "model_index.json"
CALL_DEFAULTS = "_call_defaults"
"""Entry of ``model_index.json`` for what a checkpoint's calls do best with, such as ``{"guidance_scale": 3.0}``. The
reference library passes over entries that begin with an underscore."""

PARTS_FROM = "_parts_from"
"""Entry of ``model_index.json`` that names a model in the box whose parts take the place of those without a folder."""

_LIBRARY_OF = {"StableDiffusionSafetyChecker": "stable_diffusion"}
"""Under which name the reference finds classes of ours that it does not keep in its top level."""

_CONFIG_FILES = (".json", ".txt", ".model", ".jinja")


class DiffusionPipeline(ConfigMixin):
    """Base of all pipelines, and the one door to checkpoints: ``from_pretrained`` gives the class that a folder names.

    A pipeline is made of parts (networks, a scheduler, a tokenizer, …) and settings. Both are arguments of its
    constructor: parts are those without a default and those in ``_optional_components``, which may be None; the others
    are settings. The constructor hands its parts to :meth:`register_modules`.

    Example:
        >>> from langevin import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("langevin/shapes")
        >>> pipe("a red circle", seed=7).images[0].save("circle.png")
    """

    config_name = INDEX
    #: order in which networks take turns on the accelerator, ``"text_encoder->unet->vae"``
    model_cpu_offload_seq: str | None = None
    _optional_components: list[str] = []
    _exclude_from_cpu_offload: list[str] = []
    _progress_bar_config: dict[str, Any] = {}
    _offload_device: torch.device | None = None

    # -- parts

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
            self.register_to_config(**{name: _origin(value)})

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name; ``OtherPipeline(**pipe.components)`` shares them with another pipeline."""
        return {name: getattr(self, name) for name in self._part_names()}

    @property
    def name_or_path(self) -> str | None:
        """What was given to :meth:`from_pretrained`."""
        return self.config.get("_name_or_path")

    def call_default(self, name: str, otherwise: float) -> float:
        """The number that this checkpoint names for a call's argument where it is not given, else ``otherwise``.

        Raises:
            CheckpointError: the checkpoint's entry is no number.
        """
        value = (self.config.get(CALL_DEFAULTS) or {}).get(name, otherwise)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"{self.name_or_path} has {value!r} as its default {name}; a number is needed.")
        return value

    def _networks(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.components.items() if isinstance(part, nn.Module)}

    @classmethod
    def _arguments(cls) -> tuple[list[str], list[str]]:
        """Names of the constructor's parts and of its settings."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        parts = [p.name for p in named if p.default is p.empty or p.name in cls._optional_components]
        return parts, [p.name for p in named if p.name not in parts]

    # -- loading

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
        choose = functools.partial(cls._files_needed, subfolder, set(kwargs), variant, use_safetensors)
        root = folders.inside(folders.resolve(given, choose=choose, **hub), subfolder)
        index = _checked_index(root)
        pipeline_class = cls._class_for(index, root)
        parts, settings = pipeline_class._arguments()

        values = {name: index[name] for name in settings if name in index}
        values |= {name: kwargs.pop(name) for name in [*parts, *settings] if name in kwargs}
        pipeline_class._tell_ignored(index, kwargs, parts + settings, root)
        to_load, homes = {}, {}
        for name in parts:
            listed = index.get(name)
            if name in index and not (isinstance(listed, list) and len(listed) == 2):
                raise CheckpointError(f"{root / INDEX} has {listed!r} for {name!r}; an entry is [library, class].")
            if name in values:
                _check_replacement(name, values[name], listed, pipeline_class)
            elif listed is not None and listed[1] is not None:
                homes[name] = _home(root, index, name)
                to_load[name] = _part_class(name, listed[0], listed[1], homes[name])
            elif listed is not None or name in pipeline_class._optional_components:
                values[name] = None
            else:
                raise CheckpointError(
                    f"{root / INDEX} lists no {name!r}, which {pipeline_class.__name__} needs; pass {name}=…."
                )

        variants = _variants(root, {n: c for n, c in to_load.items() if homes[n] == root}, variant)
        dtypes = dtype if dtype is not None else torch_dtype
        for name, part_class in to_load.items():
            options: dict[str, Any] = {
                "variant": variants.get(name),
                "use_safetensors": use_safetensors,
                "dtype": _dtype_of(name, dtypes),
            }
            values[name] = _load_part(part_class, homes[name], name, low_cpu_mem_usage, options)
        pipe = pipeline_class(**values)
        pipe.register_to_config(_name_or_path=given)
        if isinstance(index.get(CALL_DEFAULTS), dict):
            pipe.register_to_config(**{CALL_DEFAULTS: index[CALL_DEFAULTS]})
        if device is not None:
            pipe.to(device)
        return pipe

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike, **kwargs: Any) -> str:
        """Bring a pipeline into the hub's cache and return its folder; arguments as in :meth:`from_pretrained`."""
        hub = folders.take_options(kwargs)
        options: tuple[Any, ...] = (None, set(), kwargs.get("variant"), kwargs.get("use_safetensors"))
        return str(folders.resolve(pretrained_model_name, choose=functools.partial(cls._files_needed, *options), **hub))

    @classmethod
    def _class_for(cls, index: dict[str, Any], root: Path) -> type[DiffusionPipeline]:
        """This class, or where it is only the door, the one that ``model_index.json`` names."""
        name = index.get("_class_name")
        if isinstance(name, (list, tuple)):
            raise CheckpointError(
                f"{root / INDEX} names a pipeline in a Python file of its own ({name}); code from a "
                "checkpoint is never run."
            )
        if cls is not DiffusionPipeline:
            return cls
        if not isinstance(name, str):
            raise CheckpointError(
                f"{root / INDEX} has no _class_name; call from_pretrained of the right pipeline class."
            )
        if name.startswith(("Onnx", "OV")):
            raise CheckpointError(f"{root} is an ONNX or OpenVINO checkpoint ({name}); only PyTorch weights are read.")
        found = _public(name.removeprefix("Flax"))
        if isinstance(found, type) and issubclass(found, DiffusionPipeline):
            return found
        pipelines = [public for public in langevin.__all__ if public.endswith("Pipeline")]
        raise CheckpointError(
            f"{root / INDEX} names the pipeline class {name!r}, which langevin does not have; "
            f"{_nearest(name, pipelines)}."
        )

    @classmethod
    def _tell_ignored(cls, index: dict[str, Any], kwargs: dict[str, Any], known: list[str], root: Path) -> None:
        if kwargs:
            listed = ", ".join(f"{name} ({_nearest(name, known)})" for name in kwargs)
            logger.warning("%s takes no %s; ignored.", cls.__name__, listed)
        extra = [k for k, v in index.items() if k not in known and not k.startswith("_") and v != [None, None]]
        if extra:
            message = "%s does not know these entries of %s and ignores them: %s."
            logger.warning(message, cls.__name__, root / INDEX, ", ".join(extra))

    @classmethod
    def _files_needed(
        cls,
        subfolder: str | None,
        replaced: set[str],
        variant: str | None,
        use_safetensors: bool | None,
        names: list[str],
        fetch: Any,
    ) -> list[str]:
        """Which files of a hub repository a pipeline needs: not those of other formats, variants and uses."""
        prefix = f"{subfolder}/" if subfolder else ""
        if prefix + INDEX not in names:
            raise CheckpointError(
                f"This hub repository has no {prefix}{INDEX}: it is no pipeline. A single network is "
                "loaded by its own class's from_pretrained."
            )
        index = _checked_index(fetch(prefix + INDEX).parent)
        wanted = [prefix + INDEX]
        for part, entry in index.items():
            if part.startswith("_") or part in replaced or not isinstance(entry, list) or entry[-1:] in ([], [None]):
                continue
            # several networks in one part lie side by side: controlnet, controlnet_1, …
            beside = {name.removeprefix(prefix).split("/")[0] for name in names if name.startswith(prefix)}
            for folder in sorted(f for f in beside if re.fullmatch(rf"{re.escape(part)}(_\d+)?", f)):
                place = f"{prefix}{folder}/"
                here = [name.removeprefix(place) for name in names if name.startswith(place)]
                here = [name for name in here if "/" not in name]
                chosen = [n for n in here if n.endswith(_CONFIG_FILES) and saving.weights_kind(n) is None]
                for wish in dict.fromkeys([variant, None]):
                    found = weights.needed(here, wish, use_safetensors)
                    found = found or transformers_parts.files(here, wish, use_safetensors)
                    if found:
                        chosen += found
                        break
                wanted += [place + name for name in chosen]
        return wanted

    @classmethod
    def from_pipe(cls: type[Self], pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
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
        if CALL_DEFAULTS in pipeline.config:
            made.register_to_config(**{CALL_DEFAULTS: pipeline.config[CALL_DEFAULTS]})
        made._progress_bar_config = pipeline._progress_bar_config
        return made if new_dtype is None else made.to(weights.parse_dtype(new_dtype))

    # -- saving

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
        parts = {name: _unwrapped(part) for name, part in self.components.items() if part is not None}
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
                    with transformers_parts.quiet():
                        part.save_pretrained(folder / name, **chosen)
                else:
                    part.save_pretrained(folder / name, **chosen)
            self.to_json_file(folder / INDEX)
        if push_to_hub:
            folders.push(save_directory, **kwargs)

    # -- where the parts live

    @property
    def device(self) -> torch.device:
        """Device of the first network; the CPU while networks are offloaded."""
        if self._offload_device is not None:
            return torch.device("cpu")
        return next((tensor.device for tensor in self._first_weights()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first network."""
        return next((tensor.dtype for tensor in self._first_weights() if tensor.is_floating_point()), torch.float32)

    def _first_weights(self) -> Iterator[torch.Tensor]:
        for network in self._networks().values():
            yield from network.parameters()

    @property
    def _execution_device(self) -> torch.device:
        """Where networks run, which under offloading is not where they rest."""
        return self._offload_device or self.device

    def to(self: Self, *args: Any, silence_dtype_warnings: bool = False, **kwargs: Any) -> Self:
        """Move or convert all networks: ``to("cuda")``, ``to(torch.float16)``, ``to("cuda", torch.float16)``.

        Args:
            args: a device, a dtype, or both.
            silence_dtype_warnings: do not warn of half precision on the CPU.
            kwargs: ``device=`` and ``dtype=`` (also ``torch_device=`` and ``torch_dtype=``).

        Returns:
            The pipeline itself.

        Raises:
            ValueError: two devices or two dtypes are given, or something that is neither.
        """
        dtypes = [kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs]
        devices = [kwargs.pop(name) for name in ("device", "torch_device") if name in kwargs]
        if kwargs:
            raise ValueError(f"to() takes no {', '.join(kwargs)}; it takes device and dtype.")
        for value in args:
            (dtypes if isinstance(value, torch.dtype) else devices).append(value)
        dtypes, devices = [d for d in dtypes if d is not None], [d for d in devices if d is not None]
        if len(dtypes) > 1 or len(devices) > 1:
            raise ValueError(f"to() got devices {devices} and dtypes {dtypes}; give at most one of each.")
        dtype = weights.parse_dtype(dtypes[0]) if dtypes else None
        device = torch.device(devices[0]) if devices else None

        if self._offload_device is not None and device is not None:
            if device.type != "cpu":
                raise ValueError(
                    "The networks of this pipeline are offloaded and move by themselves; call remove_all_hooks() first."
                )
            self.remove_all_hooks()
        for network in self._networks().values():
            network.to(device=device, dtype=dtype)
        half_on_cpu = self.dtype == torch.float16 and device is not None and device.type == "cpu"
        if half_on_cpu and not silence_dtype_warnings:
            logger.warning("This pipeline is in float16, which is slow on a CPU; pipe.to(torch.float32) is faster.")
        return self

    # -- offloading (accelerate's hooks)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep networks on the CPU, and bring each to the accelerator when its turn comes.

        Args:
            gpu_id: which accelerator, where there are several.
            device: the device to compute on; the machine's accelerator where None.

        Raises:
            ImportError: accelerate is not installed.
            RuntimeError: there is no accelerator.
        """
        accelerate = _accelerate("enable_model_cpu_offload")
        device = _accelerator(gpu_id, device)
        self.remove_all_hooks()
        networks = self._networks()
        order = [name for name in (self.model_cpu_offload_seq or "").split("->") if name in networks]
        self.to("cpu", silence_dtype_warnings=True)
        hooks: list[Any] = []
        for name in order:
            _, hook = accelerate.cpu_offload_with_hook(networks[name], device, hooks[-1] if hooks else None)
            hooks.append(hook)
            _hook_methods(networks[name])
        for name in networks.keys() - order:
            if name in self._exclude_from_cpu_offload:
                networks[name].to(device)
            else:
                _, hook = accelerate.cpu_offload_with_hook(networks[name], device)
                hooks.append(hook)
                _hook_methods(networks[name])
        self.__dict__["_hooks"] = hooks
        self._offload_device = device

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Bring single layers to the accelerator when their turn comes: the least memory, and much slower.

        Arguments and errors are those of :meth:`enable_model_cpu_offload`.
        """
        accelerate = _accelerate("enable_sequential_cpu_offload")
        device = _accelerator(gpu_id, device)
        self.remove_all_hooks()
        self.to("cpu", silence_dtype_warnings=True)
        for name, network in self._networks().items():
            if name in self._exclude_from_cpu_offload:
                network.to(device)
            else:
                accelerate.cpu_offload(network, device, offload_buffers=bool(network._parameters))
        self._offload_device = device

    def maybe_free_model_hooks(self) -> None:
        """At the end of a call: send the network that is still on the accelerator back to the CPU."""
        for hook in self.__dict__.get("_hooks", ()):
            hook.offload()

    def remove_all_hooks(self) -> None:
        """End offloading; networks are on the CPU afterwards."""
        if self._offload_device is None:
            return
        from accelerate.hooks import remove_hook_from_module

        self.maybe_free_model_hooks()
        for network in self._networks().values():
            remove_hook_from_module(network, recurse=True)
            for name in _ENTRANCES:
                network.__dict__.pop(name, None)
        self.__dict__["_hooks"] = []
        self._offload_device = None

    # -- memory and speed

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Does nothing: attention here never holds the whole score matrix, so there is nothing to slice."""

    def disable_attention_slicing(self) -> None:
        """Does nothing; see :meth:`enable_attention_slicing`."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Does nothing: attention here always is memory-efficient (``scaled_dot_product_attention``)."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Does nothing; see :meth:`enable_xformers_memory_efficient_attention`."""

    def enable_vae_slicing(self) -> None:
        """Decode pictures of a batch one by one: less memory."""
        self._of_part("vae", "enable_slicing")()

    def disable_vae_slicing(self) -> None:
        """Decode whole batches."""
        self._of_part("vae", "disable_slicing")()

    def enable_vae_tiling(self) -> None:
        """Decode large pictures in overlapping tiles: less memory."""
        self._of_part("vae", "enable_tiling")()

    def disable_vae_tiling(self) -> None:
        """Decode pictures whole."""
        self._of_part("vae", "disable_tiling")()

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Scale skip connections and backbone of the UNet's last stages (FreeU, arXiv:2309.11497)."""
        self._of_part("unet", "enable_freeu")(s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """Undo :meth:`enable_freeu`."""
        self._of_part("unet", "disable_freeu")()

    def _of_part(self, part: str, method: str) -> Any:
        found = getattr(getattr(self, part, None), method, None)
        if found is None:
            raise ValueError(f"{type(self).__name__} has no {part} with {method}().")
        return found

    # -- around a call

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Options of :class:`tqdm.tqdm` for progress bars, such as ``disable=True``."""
        self._progress_bar_config = kwargs

    def progress_bar(self, iterable: Iterable | None = None, total: int | None = None) -> Any:
        """A progress bar over ``iterable``, or one of ``total`` steps to update by hand.

        Raises:
            ValueError: neither is given.
        """
        from tqdm.auto import tqdm

        if iterable is None and total is None:
            raise ValueError("progress_bar() needs an iterable or a total.")
        options = self._progress_bar_config
        return tqdm(iterable, **options) if iterable is not None else tqdm(total=total, **options)

    @staticmethod
    def numpy_to_pil(images: Any) -> list[Any]:
        """Pictures from an array ``(batch, height, width, channels)`` in [0, 1]."""
        from langevin.media.images import numpy_to_pil

        return numpy_to_pil(images)


# -- model_index.json ------------------------------------------------------------------------------------------------


def _checked_index(root: Path) -> dict[str, Any]:
    """``model_index.json``, refused if an entry is of the wrong shape or leads out of the folder."""
    index = read_json(folders.inside(root, INDEX))
    for name, entry in index.items():
        texts = [name, *(entry if isinstance(entry, list) and not name.startswith("_") else [])]
        texts += [entry] if name == "_class_name" else []
        for text in texts:
            if isinstance(text, str) and ("/" in text or "\\" in text or text in ("", ".", "..") or "\0" in text):
                raise CheckpointError(
                    f"{root / INDEX} has {text!r} in the entry {name!r}, which leads out of its folder; "
                    "it is not opened."
                )
    return index


def _part_class(part: str, library: Any, name: Any, root: Path) -> type:
    """The class that an entry ``part: [library, name]`` means, if the part's folder is there."""
    where = f"{root / INDEX} says {part} is {name!r} of {library!r}"
    if not isinstance(library, str) or not isinstance(name, str):
        raise CheckpointError(f"{where}; an entry is [library, class].")
    if library.startswith(("onnx", "optimum", "openvino")) or name.startswith(("Onnx", "OV", "Flax", "TF")):
        raise CheckpointError(f"{where}; only PyTorch weights are read.")
    if not folders.inside(root, part).is_dir():
        raise CheckpointError(
            f"{where}, but there is no folder {root / part}; the checkpoint is incomplete "
            f"(pass {part}=… to use another)."
        )
    found = transformers_parts.find_class(name) if library == "transformers" else _public(name)
    if isinstance(found, type) and not issubclass(found, DiffusionPipeline) and hasattr(found, "from_pretrained"):
        return found
    if (root / part / f"{library}.py").exists():
        raise CheckpointError(f"{where}, a Python file in the checkpoint; its code is never run. Pass {part}=….")
    raise CheckpointError(f"{where}, a class which langevin does not have; {_nearest(name, langevin.__all__)}.")


def _public(name: str) -> Any:
    """The public object of that name, None where there is none."""
    try:
        return getattr(langevin, name) if name in langevin.__all__ else None
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{name} needs {error.name}: pip install {error.name}.") from None


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(close)}"
    return f"it has: {', '.join(known)}" if len(known) <= 12 else "no name in langevin.__all__ is like it"


def _origin(part: Any) -> tuple[str | None, str | None]:
    """``(library, class)`` of a part, as ``model_index.json`` names them."""
    if part is None:
        return None, None
    cls = type(_unwrapped(part))
    library = cls.__module__.split(".")[0]
    return (_LIBRARY_OF.get(cls.__name__, "diffusers") if library == "langevin" else library), cls.__name__


def _unwrapped(part: Any) -> Any:
    """The network inside one that ``torch.compile`` made."""
    return getattr(part, "_orig_mod", part)


def _check_replacement(part: str, value: Any, listed: Any, pipeline: type) -> None:
    """Refuse what cannot be this part; warn of what hardly can."""
    if value is None or not isinstance(listed, list) or listed[1] is None:
        return
    try:
        wanted = _public(listed[1]) if listed[0] != "transformers" else transformers_parts.find_class(listed[1])
    except CheckpointError:
        return
    if not isinstance(wanted, type) or isinstance(_unwrapped(value), wanted):
        return
    given = f"{part} is a {type(value).__name__}, where {pipeline.__name__} needs a {wanted.__name__}"
    if issubclass(wanted, nn.Module) and not isinstance(value, nn.Module):
        raise CheckpointError(f"{given} or another network.")
    if issubclass(wanted, ConfigMixin) and not issubclass(wanted, nn.Module) and not hasattr(value, "config"):
        raise CheckpointError(f"{given} or another scheduler.")
    if isinstance(value, ModelMixin):
        logger.warning("%s.", given)


def _variants(root: Path, classes: dict[str, type], variant: str | None) -> dict[str, str | None]:
    """The variant to read of each part: the one asked for, where the part has it."""
    chosen: dict[str, str | None] = dict.fromkeys(classes)
    for name in classes if variant else ():
        if any((saving.weights_kind(path.name) or (None, None))[1] == variant for path in (root / name).iterdir()):
            chosen[name] = variant
    if variant and not any(chosen.values()):
        kinds = (saving.weights_kind(path.name) for name in classes for path in (root / name).iterdir())
        found = sorted({kind[1] for kind in kinds if kind and kind[1]})
        there = f"variants there: {', '.join(found)}" if found else "it has no variants; leave variant out"
        raise CheckpointError(f"No part of {root} has weights of the variant {variant!r}; {there}.")
    return chosen


def _home(root: Path, index: dict[str, Any], part: str) -> Path:
    """The folder in which a part's folder is: the pipeline's own, or that of the model in the box that it names."""
    name = index.get(PARTS_FROM)
    if name is None or (root / part).is_dir():
        return root
    home = folders.BOX / str(name).removeprefix("langevin/")
    if not re.fullmatch(r"langevin/[\w-]+", str(name)) or not home.is_dir():
        raise CheckpointError(
            f"{root / INDEX} takes its {part} from {name!r}, which is no model in the box; put a folder {part} into "
            f"{root}, or pass {part}=…."
        )
    return home


def _dtype_of(part: str, dtypes: Any) -> torch.dtype | None:
    if isinstance(dtypes, dict):
        dtypes = dtypes.get(part, dtypes.get("default"))
    return torch.float32 if dtypes is None else weights.parse_dtype(dtypes)


def _load_part(cls: type, root: Path, name: str, low_cpu_mem_usage: bool, options: dict[str, Any]) -> Any:
    if issubclass(cls, ModelMixin):
        options = {**options, "dtype": options["dtype"] or "auto"}
        return cls.from_pretrained(root, subfolder=name, low_cpu_mem_usage=low_cpu_mem_usage, **options)
    if transformers_parts.is_transformers(cls):
        return transformers_parts.load(cls, root, name, **options)
    return cls.from_pretrained(root, subfolder=name)  # type: ignore[attr-defined]


# -- offloading ------------------------------------------------------------------------------------------------------

_ENTRANCES = ("encode", "decode", "embed_condition")
"""Methods besides ``forward`` by which networks are entered."""


def _accelerate(purpose: str) -> Any:
    try:
        import accelerate
    except ImportError:
        raise ImportError(f"{purpose} needs accelerate: pip install accelerate.") from None
    return accelerate


def _accelerator(gpu_id: int | None, device: torch.device | str | None) -> torch.device:
    device = device or weights.accelerator()
    if device is None:
        raise RuntimeError(
            "Offloading moves networks between CPU and accelerator; this machine has none. Pass device=… to name one."
        )
    device = torch.device(device)
    return torch.device(device.type, gpu_id) if gpu_id is not None else device


def _hook_methods(network: nn.Module) -> None:
    """Have a network's other entrances run its hook, as ``forward`` does."""
    for name in _ENTRANCES:
        method = getattr(network, name, None)
        if method is None:
            continue

        @functools.wraps(method)
        def entered(*args: Any, _method: Any = method, **kwargs: Any) -> Any:
            hook: Any = network._hf_hook
            args, kwargs = hook.pre_forward(network, *args, **kwargs)
            return _method(*args, **kwargs)

        network.__dict__[name] = entered
