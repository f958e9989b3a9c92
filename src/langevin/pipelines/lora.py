"""LoRAs on pipelines: loaded, weighed, fused and saved under the reference's names, and weighed anew for one call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from langevin.checkpoints import folders
from langevin.lora import adapters, files, training, writing
from langevin.lora.networks import Names, free_name, fuse, listed, weighed
from langevin.lora.weights import check_name
from langevin.media.recording import mark_edited
from langevin.pipelines.lora_calls import PARTS, LoraCalls, of_part
from langevin.prompts.textual_inversion import at_home


class LoraMixin(LoraCalls):
    """LoRAs in a pipeline's UNet and text encoder.

    The networks' own weights stay what they are; see :class:`langevin.lora.delta.Delta`.
    """

    # -- in and out

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA; it is the only one in use then, at weight 1.

        Known are the files of the reference (all its forms), of PEFT and of kohya's scripts, with rank and alpha of
        each layer, convolutions (LoCon) and DoRA. Nothing in a file is ever run. What fits nowhere is named in a
        warning.

        Args:
            pretrained_model_name_or_path_or_dict: a file; a folder or hub id with ``pytorch_lora_weights.safetensors``
                or ``.bin``; or a state dict.
            adapter_name: what it is called here; ``default_0`` and so on where None.
            hotswap: put it in the place of the one of that name, which keeps its weight.
            kwargs: ``weight_name`` (the file in a folder or on the hub), ``subfolder``, ``use_safetensors``, and
                options of :func:`langevin.checkpoints.folders.resolve`.

        Raises:
            ValueError: the name is taken.
            CheckpointError: there is no such file, it is damaged, made for another model, or nothing in it fits.
                Nothing is changed then.

        Example:
            >>> pipe.load_lora_weights("./ink.safetensors", adapter_name="ink")
            >>> pipe("a red circle", lora={"ink": 0.8})
        """
        networks = self._lora_networks()
        there = self._lora_names()
        name = free_name(there) if adapter_name is None else adapter_name
        check_name(name)
        if name in there and not hotswap:
            raise ValueError(f"there is a LoRA {name!r} already; give another adapter_name, or hotswap=True")
        where = {option: kwargs.pop(option, None) for option in ("weight_name", "subfolder", "use_safetensors")}
        hub = folders.take_options(kwargs)
        unknown = set(kwargs) - {"low_cpu_mem_usage", "local_dir", "framework", "torch_dtype"}
        if unknown:
            raise TypeError(f"load_lora_weights() got unexpected arguments: {', '.join(sorted(unknown))}")
        file = files.read(pretrained_model_name_or_path_or_dict, hub, **where)
        with at_home(self):
            pieces = files.pieces(file, networks)
            for part, network in networks.items():
                before = adapters.loaded(network).active
                adapters.remove(network, [name])
                if part in pieces:
                    adapters.add(network, name, pieces[part], file.origin)
                    if name in there:
                        adapters.set_weights(network, {**before, **({} if name in before else {name: 1.0})})
                elif name not in there:
                    adapters.set_weights(network, {})

    def unload_lora_weights(self) -> None:
        """Take all LoRAs out. Those that are fused stay in the networks' own weights."""
        self.delete_adapters(list(self._lora_names()))

    def delete_adapters(self, adapter_names: Names) -> None:
        """Take LoRAs out by name."""
        gone = weighed(adapter_names, None, self._lora_names())
        with at_home(self):
            for network in self._lora_networks().values():
                if set(adapters.loaded(network).fused) & set(gone):
                    mark_edited(network)
                adapters.remove(network, gone)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        unet_lora_layers: Any = None,
        text_encoder_lora_layers: Any = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Any = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a LoRA as one file, which :meth:`load_lora_weights` loads, here and in the reference.

        Args:
            save_directory: the folder.
            unet_lora_layers, text_encoder_lora_layers: state dicts, as
                :func:`langevin.lora.training.lora_state_dict` gives them; or networks with a LoRA, of which that in use
                is saved with its metadata.
            is_main_process: where False nothing is done (for distributed training).
            weight_name: the file's name, ``pytorch_lora_weights.safetensors`` where None.
            save_function: accepted for old code, not used.
            safe_serialization: True writes ``.safetensors``, False a pickle (``.bin``), which has no metadata.
            unet_lora_adapter_metadata, text_encoder_lora_adapter_metadata: PEFT's settings, as
                :func:`langevin.lora.training.lora_metadata` gives them; needed where alpha is not the rank.

        Raises:
            ValueError: there is nothing to save.
            CheckpointError: it cannot be written.
        """
        given = {"unet": (unet_lora_layers, unet_lora_adapter_metadata)}
        given["text_encoder"] = text_encoder_lora_layers, text_encoder_lora_adapter_metadata
        tensors: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        for part, (layers, said) in given.items():
            if isinstance(layers, nn.Module) and adapters.is_adapted(layers):
                name = next(iter(adapters.loaded(layers).active), "default")
                said = training.lora_metadata(layers, name) if said is None else said
                layers = training.lora_state_dict(layers, name)
            if layers:
                tensors |= writing.named(part, layers)
                metadata |= {f"{part}.{key}": value for key, value in (said or {}).items()}
        if not tensors:
            raise ValueError("give unet_lora_layers, text_encoder_lora_layers, or both; there is nothing to save")
        if is_main_process:
            writing.write(
                save_directory, tensors, metadata, weight_name=weight_name, safe_serialization=safe_serialization
            )

    # -- weights

    def set_adapters(self, adapter_names: Names, adapter_weights: Any = None) -> None:
        """Use these LoRAs and no others.

        Args:
            adapter_names: one or several.
            adapter_weights: a number for all, or a list with one each; 1 where None. In a number's place may stand
                ``{"unet": 0.8, "text_encoder": 0.5}``, and for the UNet ``{"down": 0.5, "up": {"block_1": [1, 0.3]}}``:
                numbers by block and by transformer in it; what is not named has 1.
        """
        chosen = weighed(adapter_names, adapter_weights, self._lora_names())
        for part, network in self._lora_networks().items():
            adapters.set_weights(network, of_part(part, chosen, network))

    def get_active_adapters(self) -> list[str]:
        """Names of the LoRAs in use."""
        return list(dict.fromkeys(name for n in self._lora_networks().values() for name in adapters.loaded(n).active))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of the LoRAs in each network that has any."""
        there = {part: list(adapters.loaded(network).origins) for part, network in self._lora_networks().items()}
        return {part: names for part, names in there.items() if names}

    def disable_lora(self) -> None:
        """Use no LoRA until :meth:`enable_lora`. Those that are fused stay."""
        for network in self._lora_networks().values():
            adapters.set_weights(network, adapters.loaded(network).active, enabled=False)

    def enable_lora(self) -> None:
        """Undo :meth:`disable_lora`."""
        for network in self._lora_networks().values():
            adapters.set_weights(network, adapters.loaded(network).active, enabled=True)

    # -- fused

    def fuse_lora(
        self,
        components: Sequence[str] = PARTS,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Names | None = None,
    ) -> None:
        """Add LoRAs to the networks' own weights, so that they cost no time; call arguments do not reach them then.

        Args:
            components: of these parts.
            lora_scale: times the weights of :meth:`set_adapters`, which stay what they are.
            safe_fusing: raise ValueError where sums are not finite.
            adapter_names: which; those in use where None.
        """
        if adapter_names is not None:
            weighed(adapter_names, None, self._lora_names())
        with at_home(self):
            for part in self._components(components):
                fuse(self._lora_networks()[part], lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self, components: Sequence[str] = PARTS) -> None:
        """Put back the very weights that the networks had before."""
        with at_home(self):
            for part in self._components(components):
                adapters.unfuse(self._lora_networks()[part])

    @property
    def fused_loras(self) -> set[str]:
        """Names of the LoRAs that are fused."""
        return {name for network in self._lora_networks().values() for name in adapters.loaded(network).fused}

    @property
    def num_fused_loras(self) -> int:
        return len(self.fused_loras)

    def _components(self, components: Sequence[str]) -> list[str]:
        there = self._lora_networks()
        unknown = [part for part in listed(components) if part not in PARTS]
        if unknown:
            raise ValueError(f"components has {unknown[0]!r}; parts that LoRAs are for: {', '.join(PARTS)}")
        return [part for part in listed(components) if part in there]
