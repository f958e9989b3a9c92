"""Text to image: the whole UNet goes on learning in the latents of a checkpoint (Rombach et al. 2022, 2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from langevin.checks import Count
from langevin.training import losses
from langevin.training.data import Draws
from langevin.training.flags import BadFlags, Rate
from langevin.training.latent import LatentFlags, LatentRecipe


@dataclass(kw_only=True)
class TextToImageFlags(LatentFlags):
    """Fine-tune a text-to-image checkpoint on pictures with captions.

    Args:
        non_ema_revision: revision of the UNet to train from, where the average begins with another; refused here.
        dream_training, dream_detail_preservation: DREAM (2312.00210): what the network gets wrong goes into the target.
        validation_prompts: one picture of each is made now and then.
        validation_epochs: epochs from one validation to the next.
    """

    output_dir: str = "sd-model-finetuned"
    tracker_project_name: str = "text2image-fine-tune"
    non_ema_revision: str | None = None
    dream_training: bool = False
    dream_detail_preservation: Rate = 1.0
    validation_prompts: list[str] | None = None
    validation_epochs: Count = 5

    def check(self) -> None:
        super().check()
        if self.non_ema_revision:
            raise BadFlags("--non_ema_revision is no more; the published name for it is --variant=non_ema")


class TextToImage(LatentRecipe):
    """A text-to-image model, fine-tuned on pictures with captions."""

    flags_class = TextToImageFlags
    tags = ("stable-diffusion", "text-to-image", "diffusers", "diffusers-training", "langevin")

    def load(self) -> Mapping[str, nn.Module]:
        return {"unet": self.load_pipeline().unet.requires_grad_(True)}

    def loss(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any], draws: Draws) -> Tensor:
        if not self.flags.dream_training:
            return super().loss(networks, batch, draws)
        clean, unet = self.latents(batch, draws), networks["unet"]
        noise, x, t = self.noised(clean, draws)
        states = self.states(batch)
        with torch.no_grad():
            said = unet(x, t, states).sample
        detail, kind = self.flags.dream_detail_preservation, self.prediction_type
        x, target = losses.dream(said, noise, x, self.scheduler, t, detail, kind)
        return self.measured(unet(x, t, states).sample, target, t)

    def pictures(self, networks: Mapping[str, Any], step: int) -> list[Any]:
        return self.paint(networks, self.flags.validation_prompts or [])

    def validates_at(self, step: int, total: int, per_epoch: int) -> bool:
        return super().validates_at(step, total, per_epoch) or step % (self.flags.validation_epochs * per_epoch) == 0
