"""What every network shares: its config, dtype and device, and loading and saving."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from langevin.checkpoints import folders, saving, settings, weights
from langevin.checkpoints.boundary import first_line
from langevin.checkpoints.config import ConfigMixin
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import listing, read_json
from langevin.lora.networks import Adapted

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="ModelMixin")


class ModelMixin(Adapted, nn.Module, ConfigMixin):
    """Base of all networks.

    A network decorates its ``__init__`` with :func:`~langevin.checkpoints.config.register_to_config`; this class then
    loads and saves it as a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``.
    """

    config_name = "config.json"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating-point parameter."""
        return next((t.dtype for t in self._tensors() if t.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next((t.device for t in self._tensors()), torch.device("cpu"))

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.parameters()
        yield from self.buffers()

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters hold."""
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else set()
        counted = (p for p in self.parameters() if id(p) not in tables and (p.requires_grad or not only_trainable))
        return sum(p.numel() for p in counted)

    def get_memory_footprint(self) -> int:
        """Bytes of parameters and buffers."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

    # -- gradient checkpointing: submodules that can do it have an attribute ``gradient_checkpointing``

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them: less memory, more time.

        Raises:
            ValueError: no layer of this network can do it.
        """
        able = [module for module in self.modules() if hasattr(module, "gradient_checkpointing")]
        if not able:
            raise ValueError(f"{type(self).__name__} has no layer that can do gradient checkpointing.")
        for module in able:
            module.gradient_checkpointing = True  # type: ignore[assignment]

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations for the backward pass."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False  # type: ignore[assignment]

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any layer does gradient checkpointing."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Does nothing: attention here always is memory-efficient (``scaled_dot_product_attention``)."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Does nothing; see :meth:`enable_xformers_memory_efficient_attention`."""

    def set_attention_slice(self, slice_size: Any = "auto") -> None:
        """Does nothing: attention here never holds the whole score matrix, so there is nothing to slice."""

    # -- loading

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn keys of older checkpoints into today's. Networks with a past override this."""
        return state_dict

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool = True,
        ignore_mismatched_sizes: bool = False,
        device_map: Any = None,
        disable_mmap: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Build a network and give it the weights of a checkpoint; it comes in eval mode.

        Args:
            pretrained_model_name_or_path: a folder, a name in the box, or a hub id.
            subfolder: folder below it, such as ``"unet"``.
            torch_dtype: dtype of the weights; float32 where None, whatever the file has; ``"auto"`` keeps the file's.
            dtype: the same by its newer name.
            variant: ``"fp16"`` reads ``diffusion_pytorch_model.fp16.safetensors``.
            use_safetensors: True reads nothing else, False reads ``.bin``, None prefers safetensors.
            low_cpu_mem_usage: do not make and fill weights that the file replaces. False gives the same network, at
                more time and memory.
            ignore_mismatched_sizes: start weights whose shape differs from the file's afresh instead of raising.
            device_map: a device to load onto, or ``"auto"``.
            disable_mmap: copy the weights into memory, so that nothing that happens to the file later matters.
                Otherwise those that need no conversion stay mapped from it.
            output_loading_info: return ``(network, {"missing_keys": …, "unexpected_keys": …, "mismatched_keys": …})``.
            kwargs: options of :func:`langevin.checkpoints.folders.resolve`, and settings that override the config's.

        Raises:
            CheckpointError: something is missing, damaged, of the wrong shape, or leads out of the folder.

        Example:
            >>> unet = UNet2DConditionModel.from_pretrained("langevin/shapes", subfolder="unet")
        """
        hub = folders.take_options(kwargs)
        root = folders.resolve(
            pretrained_model_name_or_path, choose=_network_files(subfolder, variant, use_safetensors), **hub
        )
        folder = folders.inside(root, subfolder)
        if not folder.is_dir():
            raise CheckpointError(f"There is no folder {subfolder!r} in {root}; it has: {listing(root)}.")
        config = read_json(folders.inside(root, subfolder, cls.config_name))
        files = weights.locate(folder, variant, use_safetensors, root=root)
        model, info = cls._load(
            config,
            kwargs,
            files,
            dtype=weights.parse_dtype(dtype if dtype is not None else torch_dtype or torch.float32),
            device=weights.parse_device(device_map),
            low_cpu_mem_usage=low_cpu_mem_usage,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            disable_mmap=disable_mmap,
        )
        source = str(pretrained_model_name_or_path)
        model.register_to_config(_name_or_path=str(Path(source, subfolder)) if subfolder else source)
        return (model, info) if output_loading_info else model

    @classmethod
    def _load(
        cls: type[Self],
        config: dict[str, Any],
        overrides: dict[str, Any],
        files: list[Path],
        *,
        dtype: torch.dtype | None,
        device: Any,
        low_cpu_mem_usage: bool,
        ignore_mismatched_sizes: bool,
        disable_mmap: bool,
    ) -> tuple[Self, dict[str, list]]:
        where = str(files[0] if len(files) == 1 else files[0].parent)
        place = files[0].parent
        held = cls.convert_state_dict(weights.opened(files))  # before anything is built: it says how large it can be
        settings.check(cls, {k: v for k, v in config.items() if k not in overrides}, place / cls.config_name)
        try:
            with weights.Measured(held, fast=low_cpu_mem_usage):
                model = cls.from_config(config, **overrides)
        except Exception as error:  # whatever a constructor makes of settings that are not its own
            described = config.get("_class_name", "no class")
            raise CheckpointError(
                f"No {cls.__name__} can be built from the config in {place}, which is that of {described}: "
                f"{first_line(error)}"
            ) from error
        weights.compare(model, held, where, ignore_mismatched_sizes)
        copy = disable_mmap or not weights.may_stay(files)
        tensors = weights.converted(held, dtype, device or "cpu", copy)
        info = weights.assign(model, tensors, where, ignore_mismatched_sizes)
        fresh = weights.without_storage(model)
        if fresh:
            with weights.Measured(held, fast=False):
                initialised = type(model)(**model._own_settings())
            for name in fresh:
                _put(model, name, _get(initialised, name))
        started = info["missing_keys"] + [key for key, *_ in info["mismatched_keys"]]
        if started:
            message = "%s lacks %s; %d weights of this %s start from random numbers and need training."
            logger.warning(message, where, _some(started), len(started), cls.__name__)
        if info["unexpected_keys"]:
            message = "%s has weights that a %s has no place for; they are ignored: %s."
            logger.warning(message, where, cls.__name__, _some(info["unexpected_keys"]))
        # weights are of that dtype and there already; this is for buffers and weights that no file has
        model.to(device=device, dtype=dtype)
        return model.eval(), info

    def _own_settings(self) -> dict[str, Any]:
        return {name: self.config[name] for name in self._settings_names() if name in self.config}

    # -- saving

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Any = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save config and weights into a folder; see :func:`langevin.checkpoints.saving.new_version` for how.

        Weights that the folder had under the same variant, in whatever format or number of shards, are replaced; other
        files stay.

        Args:
            save_directory: the folder.
            is_main_process: where False nothing is done (for distributed training).
            save_function: accepted for old code, not used.
            safe_serialization: True writes ``.safetensors``, False a pickle (``.bin``).
            variant: ``"fp16"`` writes ``diffusion_pytorch_model.fp16.safetensors``.
            max_shard_size: larger weights are split into several files with an index.
            push_to_hub: upload the folder afterwards; ``kwargs`` go to :func:`langevin.checkpoints.folders.push`.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if not is_main_process:
            return
        with saving.new_version(save_directory) as folder:
            self.to_json_file(folder / self.config_name)
            weights.write(
                folder,
                self.state_dict(),
                safe_serialization=safe_serialization,
                variant=variant,
                max_shard_size=max_shard_size,
            )
        if push_to_hub:
            folders.push(save_directory, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            return ConfigMixin.__getattr__(self, name)

    __repr__ = nn.Module.__repr__


def _network_files(subfolder: str | None, variant: str | None, use_safetensors: bool | None) -> folders.Choose:
    """Choose a network's config and weights among a hub repository's files."""
    prefix = f"{subfolder}/" if subfolder else ""

    def choose(names: list[str], fetch: Any) -> list[str]:
        here = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        here = [name for name in here if "/" not in name]
        return [prefix + name for name in ["config.json", *weights.needed(here, variant, use_safetensors)]]

    return choose


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + f", … ({len(names)} in all)" * (len(names) > most)


def _get(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, tensor)
