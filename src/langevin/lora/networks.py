"""What every network of the library can do with LoRAs, under the reference's names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from langevin.checkpoints import folders
from langevin.lora import adapters, custom, files, training, writing
from langevin.lora.weights import check_weight

Names = str | Sequence[str]


class Adapted:
    """LoRAs in one network. Pipelines have the same for all theirs: :class:`langevin.pipelines.lora.LoraMixin`."""

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """Put a fresh LoRA into the network, as PEFT's ``LoraConfig`` says, and freeze all else.

        Raises:
            ValueError: the config wants what is not there.
        """
        config = adapter_config if isinstance(adapter_config, Mapping) else adapter_config.to_dict()
        targets = config.get("target_modules")
        _refuse(config)
        self.requires_grad_(False)  # type: ignore[attr-defined]
        training.add_lora(
            self,
            config.get("r", 8),
            config.get("lora_alpha", 8),
            training.ATTENTION if not targets else targets if isinstance(targets, str) else sorted(targets),
            name=adapter_name,
            start=config.get("init_lora_weights", True),
            dropout=config.get("lora_dropout", 0.0),
            use_dora=bool(config.get("use_dora")),
            use_rslora=bool(config.get("use_rslora")),
            rank_pattern=config.get("rank_pattern"),
            alpha_pattern=config.get("alpha_pattern"),
        )

    def set_adapters(self, adapter_names: Names, weights: Any = None) -> None:
        """Use these LoRAs, with these weights (1 where None), and no others."""
        adapters.set_weights(self, weighed(adapter_names, weights, adapters.loaded(self).origins))

    def set_adapter(self, adapter_name: Names) -> None:
        """Use this LoRA, or these, and no others."""
        self.set_adapters(adapter_name)

    def active_adapters(self) -> list[str]:
        """Names of the LoRAs in use."""
        return list(adapters.loaded(self).active)

    def delete_adapters(self, adapter_names: Names) -> None:
        """Take LoRAs out."""
        adapters.remove(self, weighed(adapter_names, None, adapters.loaded(self).origins))

    def enable_lora(self) -> None:
        """Undo :meth:`disable_lora`."""
        adapters.set_weights(self, adapters.loaded(self).active, enabled=True)

    def disable_lora(self) -> None:
        """Use no LoRA for now."""
        adapters.set_weights(self, adapters.loaded(self).active, enabled=False)

    enable_adapters, disable_adapters = enable_lora, disable_lora

    def fuse_lora(self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: Any = None) -> None:
        """Add the LoRAs in use, or those named, to the network's own weights; see :func:`fuse`."""
        fuse(self, lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self) -> None:
        """Put back the very weights that were there before."""
        adapters.unfuse(self)

    def load_attn_procs(
        self, pretrained_model_name_or_path_or_dict: Any, adapter_name: str | None = None, **kwargs: Any
    ) -> None:
        """Load a LoRA for this network from a file; or projections of Custom Diffusion, which take the place of its
        own. Arguments are as in ``load_lora_weights`` of pipelines.
        """
        where = {name: kwargs.pop(name, None) for name in ("weight_name", "subfolder", "use_safetensors")}
        file = files.read(pretrained_model_name_or_path_or_dict, folders.take_options(kwargs), **where)
        if custom.is_custom(file.tensors):
            custom.load(self, file.tensors, file.said)
            return
        pieces = files.pieces(file, {"unet": self})
        adapters.add(self, adapter_name or free_name(adapters.loaded(self).origins), pieces["unet"], file.origin)

    def save_attn_procs(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Any = None,
        safe_serialization: bool = True,
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save one of the network's LoRAs, the one in use if None is named, for ``load_lora_weights``."""
        name = adapter_name or next(iter(adapters.loaded(self).active), "default")
        if not is_main_process:
            return
        writing.write(
            save_directory,
            writing.named("unet", training.lora_state_dict(self, name)),
            {f"unet.{key}": value for key, value in training.lora_metadata(self, name).items()},
            weight_name=weight_name,
            safe_serialization=safe_serialization,
        )


_UNKNOWN = ("modules_to_save", "layers_to_transform", "trainable_token_indices", "target_parameters", "exclude_modules")


def _refuse(config: Mapping[str, Any]) -> None:
    """Raises ValueError for what would be left out in silence."""
    wanted = [name for name in _UNKNOWN if config.get(name)]
    if wanted or config.get("bias", "none") != "none":
        raise ValueError(f"this LoraConfig sets {', '.join(wanted) or 'bias'}, which is not supported; leave it out")


def fuse(network: Any, scale: float, safe: bool, names: Names | None) -> None:
    """Add LoRAs to a network's own weights, each ``scale`` times its weight."""
    known = adapters.loaded(network)
    active = known.active if known.enabled else {}
    if names is not None:
        there = [name for name in listed(names) if name in known.origins]
        active = {name: active.get(name, 1.0) for name in there}
    check_weight("fuse_lora's lora_scale", scale)
    adapters.fuse(network, active, scale, safe)


def weighed(names: Names, weights: Any, there: Any) -> dict[str, Any]:
    """Weights by name: one for all, or one for each; 1 where None.

    Raises:
        ValueError: a name is not among ``there``, or there are not as many weights as names.
    """
    each = listed(names)
    unknown = [name for name in each if name not in there]
    if unknown:
        raise ValueError(f"there is no LoRA {', '.join(map(repr, unknown))}; there are: {', '.join(there) or 'none'}")
    several = isinstance(weights, (list, tuple))
    if several and len(weights) != len(each):
        raise ValueError(f"{len(weights)} weights for {len(each)} LoRAs; give one number, or one each")
    given = list(weights) if several else [weights] * len(each)
    return {name: 1.0 if weight is None else weight for name, weight in zip(each, given, strict=True)}


def listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def free_name(there: Any) -> str:
    """The name of a LoRA that is given none: the reference's."""
    number = len(there)
    while f"default_{number}" in there:
        number += 1
    return f"default_{number}"
