"""LoRA: small matrices beside the attention's own learn, and nothing else (Hu et al. 2021, 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from langevin import add_lora, load_lora_state_dict, lora_metadata, lora_parameters, lora_state_dict
from langevin.checks import Count
from langevin.training.flags import BadFlags
from langevin.training.latent import LatentFlags, LatentRecipe

FILE = "pytorch_lora_weights.safetensors"


@dataclass(kw_only=True)
class LoraFlags(LatentFlags):
    """Train a LoRA on pictures with captions.

    Args:
        rank: of the matrices; alpha is the same.
        validation_prompt: pictures of it are made now and then.
        num_validation_images: how many.
        validation_epochs: epochs from one validation to the next.
    """

    output_dir: str = "sd-model-finetuned-lora"
    tracker_project_name: str = "text2image-fine-tune"
    rank: Count = 4
    validation_prompt: str | None = None
    num_validation_images: Count = 4
    validation_epochs: Count = 1

    def check(self) -> None:
        super().check()
        if self.use_ema:
            raise BadFlags("--use_ema averages whole networks, and a LoRA is none; leave it out")


class Lora(LatentRecipe):
    """A LoRA for a text-to-image model."""

    flags_class = LoraFlags
    tags = ("stable-diffusion", "text-to-image", "diffusers", "diffusers-training", "lora", "langevin")

    def load(self) -> Mapping[str, nn.Module]:
        unet = self.load_pipeline().unet.to(self.device, self.dtype)
        add_lora(unet, self.flags.rank)
        return {"unet": unet}

    def trained(self, networks: Mapping[str, nn.Module]) -> list[nn.Parameter]:
        return lora_parameters(networks["unet"])

    def keep(self, name: str, network: nn.Module, folder: Path) -> None:
        folder.mkdir()
        save_file(lora_state_dict(network, form="peft"), folder / FILE)

    def take_up(self, name: str, network: nn.Module, folder: Path) -> None:
        load_lora_state_dict(network, load_file(folder / FILE))

    def save(self, networks: Mapping[str, Any], folder: Path) -> None:
        unet = networks["unet"]
        said = {"unet_lora_layers": lora_state_dict(unet), "unet_lora_adapter_metadata": lora_metadata(unet)}
        type(self.pipe).save_lora_weights(folder, **said)

    def pictures(self, networks: Mapping[str, Any], step: int) -> list[Any]:
        prompt = self.flags.validation_prompt
        return self.paint(networks, [prompt] if prompt else [], self.flags.num_validation_images)

    def validates_at(self, step: int, total: int, per_epoch: int) -> bool:
        return super().validates_at(step, total, per_epoch) or step % (self.flags.validation_epochs * per_epoch) == 0
