"""LoRAs on pipelines: loaded, weighed, fused and saved under the reference's names, and weighed anew for one call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from langevin.checkpoints import folders
from langevin.checkpoints.errors import CheckpointError
from langevin.lora import adapters, files, training
from langevin.lora.networks import Names, free_name, fuse, listed, weighed
from langevin.media.recording import mark_edited
from langevin.pipelines.placement import Placement
from langevin.prompts.loras import take_loras
from langevin.prompts.textual_inversion import at_home

PARTS = ("unet", "text_encoder")
"""Parts of pipelines that LoRAs are for."""


class LoraMixin(Placement):
    """LoRAs in a pipeline's UNet and text encoder.

    The networks' own weights stay what they are; see :class:`langevin.lora.delta.Delta`. Each call gets networks that
    share everything with the pipeline's own but the LoRAs' weights, so that calls in several threads, each with its
    ``lora={"name": 0.8}``, do not see each other, nor what is loaded or unloaded meanwhile.
    """

    _lora_loadable_modules = list(PARTS)

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
        adapters.check_name(name)
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
                tensors |= files.named(part, layers)
                metadata |= {f"{part}.{key}": value for key, value in (said or {}).items()}
        if not tensors:
            raise ValueError("give unet_lora_layers, text_encoder_lora_layers, or both; there is nothing to save")
        if is_main_process:
            files.write(
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
            adapters.set_weights(network, _of_part(part, chosen, network))

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

    # -- single calls

    def for_call(self, given: Any) -> tuple[Any, Any]:
        """The pipeline as a call sees it, with the call's own weights of LoRAs, and the call's arguments without what
        was said of them.

        Raises:
            ValueError: a LoRA is named that is not there, or is fused.
        """
        if "_loras_of_call" in self.__dict__:  # a call within a call
            return self, given
        prompt, said = take_loras(getattr(given, "prompt", None), getattr(given, "prompt_weighting", ""))
        kwargs = getattr(given, "cross_attention_kwargs", None) or {}
        chosen = given.lora is not None or bool(said)
        networks = {part: network for part, network in self._lora_networks().items() if adapters.is_adapted(network)}
        if not networks and not chosen:
            return self, given
        self._check_called({**(given.lora or {}), **said})
        if said:
            given = given.said_otherwise(prompt=prompt)
        scale = kwargs.get("scale", 1.0)
        adapters.check_weight("cross_attention_kwargs['scale']", scale)
        if "scale" in kwargs:
            given = given.said_otherwise(cross_attention_kwargs={k: v for k, v in kwargs.items() if k != "scale"})
        same = object.__new__(type(self))
        self.__dict__.setdefault("_calls", {})
        self.__dict__.setdefault("_last_call", {})
        same.__dict__.update(self.__dict__, _loras_of_call=True)
        for part, network in networks.items():
            known = adapters.loaded(network)
            usual = known.active if known.enabled else {}
            if chosen or scale != 1 or not hasattr(network, "_orig_mod"):  # what is compiled stays so where it can
                base = usual if given.lora is None else _of_part(part, given.lora, network)
                weights = {**base, **_of_part(part, said, network)}
                same.__dict__[part] = adapters.with_weights(network, weights, scale)
        return same, given

    def _check_called(self, loras: Mapping[str, Any]) -> None:
        there, inside = self._lora_names(), self.fused_loras
        for name in loras:
            if name not in there:
                names = ", ".join(there) or "none"
                raise ValueError(
                    f"this call names the LoRA {name!r:.80}, which is not loaded; there are: {names}; "
                    f"load_lora_weights(…, adapter_name={name!r:.80}) loads one"
                )
            if name in inside:
                raise ValueError(f"this call names the LoRA {name!r}, which is fused; call unfuse_lora() first")

    def _lora_networks(self) -> dict[str, Any]:
        parts = {part: getattr(self, part, None) for part in self._lora_loadable_modules}
        return {part: network for part, network in parts.items() if isinstance(network, nn.Module)}

    def _lora_names(self) -> dict[str, None]:
        return dict.fromkeys(name for n in self._lora_networks().values() for name in adapters.loaded(n).origins)


def recorded_loras(pipeline: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """What pictures record of the LoRAs that a call used or whose weights are fused, and what they cannot.

    Each is ``{"name": …, "file": …, "sha256": …, "weights": {part: weight}, "fused": {part: [weight, scale]}}``, with
    the weights that ``set_adapters`` gave it; those of the call are among its arguments.
    """
    entries: dict[str, dict[str, Any]] = {}
    lost: list[str] = []
    for part, network in getattr(pipeline, "_lora_networks", dict)().items():
        known = adapters.loaded(network)
        here = {name for layer in adapters.adapted_layers(network).values() for name in layer.lora.weights}
        for name, origin in known.origins.items():
            if name not in here and name not in known.fused:
                continue
            if origin is None:
                lost.append(f"the LoRA {name}, which came from no file")
                continue
            entry = entries.setdefault(name, {"name": name, **origin, "weights": {}})
            if known.enabled and name in known.active:
                entry["weights"][part] = known.active[name]
            if name in known.fused:
                entry.setdefault("fused", {})[part] = list(known.fused[name])
    return list(entries.values()), list(dict.fromkeys(lost))


def restore_loras(pipeline: Any, entries: Sequence[Mapping[str, Any]]) -> None:
    """Load the LoRAs that a picture records, with their weights.

    Raises:
        CheckpointError: a file is not there, or is another than it was.
    """
    for entry in entries:
        file = files.read(entry["file"], {})
        if file.origin is None or file.origin["sha256"] != entry["sha256"]:
            raise CheckpointError(f"The LoRA {entry['file']} is another file than when the picture was made.")
        pipeline.load_lora_weights(entry["file"], adapter_name=entry["name"])
    for part, network in pipeline._lora_networks().items():
        for entry in entries:
            if part in entry.get("fused", {}):
                weight, scale = entry["fused"][part]
                adapters.check_weight(entry["name"], weight)
                adapters.fuse(network, {entry["name"]: weight}, scale)
        active = {entry["name"]: entry["weights"][part] for entry in entries if part in entry["weights"]}
        for name, weight in active.items():
            adapters.check_weight(name, weight)
        adapters.set_weights(network, active)


def _of_part(part: str, weights: Mapping[str, Any], network: Any) -> dict[str, Any]:
    """Weights of the LoRAs that are in a part's network."""
    found = {}
    for name, weight in weights.items():
        if isinstance(weight, Mapping):
            unknown = [key for key in weight if key not in PARTS]
            if unknown:
                raise ValueError(f"the weight of {name!r} is for {unknown[0]!r}; parts are: {', '.join(PARTS)}")
            weight = weight.get(part, 1.0)
        adapters.check_weight(name, weight)
        if name in adapters.loaded(network).origins:
            found[name] = weight
    return found
