"""LoRAs in calls: each call's own weights, what pictures record of them, and how that is followed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from langevin.checkpoints.errors import CheckpointError
from langevin.lora import adapters, files
from langevin.lora.weights import check_weight
from langevin.pipelines.placement import Placement
from langevin.prompts.loras import take_loras

PARTS = ("unet", "text_encoder")
"""Parts of pipelines that LoRAs are for."""


class LoraCalls(Placement):
    """Calls of a pipeline with weights of LoRAs of their own.

    Each call gets networks that share everything with the pipeline's own but the LoRAs' weights, so that calls in
    several threads, each with its ``lora={"name": 0.8}``, do not see each other, nor what is loaded or unloaded
    meanwhile. A call that began when there was none uses the pipeline's own networks, and would see the first one.
    """

    _lora_loadable_modules = list(PARTS)

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
        check_weight("cross_attention_kwargs['scale']", scale)
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
                base = usual if given.lora is None else of_part(part, given.lora, network)
                weights = {**base, **of_part(part, said, network)}
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
                check_weight(entry["name"], weight)
                adapters.fuse(network, {entry["name"]: weight}, scale)
        active = {entry["name"]: entry["weights"][part] for entry in entries if part in entry["weights"]}
        adapters.set_weights(network, active)


def of_part(part: str, weights: Mapping[str, Any], network: Any) -> dict[str, Any]:
    """Weights of the LoRAs that are in a part's network."""
    found = {}
    for name, weight in weights.items():
        if isinstance(weight, Mapping):
            unknown = [key for key in weight if key not in PARTS]
            if unknown:
                raise ValueError(f"the weight of {name!r} is for {unknown[0]!r}; parts are: {', '.join(PARTS)}")
            weight = weight.get(part, 1.0)
        check_weight(name, weight)
        if name in adapters.loaded(network).origins:
            found[name] = weight
    return found
