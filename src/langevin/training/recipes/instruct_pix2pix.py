"""Editing by instruction: a UNet that is shown the picture too (Brooks et al. 2022, 2211.09800)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from langevin.checks import Count, Share
from langevin.training import losses
from langevin.training.data import Draws, Framing, Row, check_column, picture
from langevin.training.flags import BadFlags, Filter
from langevin.training.latent import LatentFlags, LatentRecipe


@dataclass(kw_only=True)
class InstructFlags(LatentFlags):
    """Train a model that edits pictures as it is told.

    Args:
        original_image_column, edited_image_column, edit_prompt_column: the data's columns.
        conditioning_dropout_prob: p: text is left out for 2p of all examples, the picture for 2p, both for p.
        val_image_url: a picture to edit in validations, by its path or address.
        validation_prompt: what to do with it.
        num_validation_images: how often.
        validation_epochs: epochs from one validation to the next.
        non_ema_revision: refused; the published name for it is --variant=non_ema.
    """

    output_dir: str = "instruct-pix2pix-model"
    tracker_project_name: str = "instruct-pix2pix"
    resolution: Count = 256
    image_interpolation_mode: Filter = "bicubic"
    original_image_column: str = "input_image"
    edited_image_column: str = "edited_image"
    edit_prompt_column: str = "edit_prompt"
    conditioning_dropout_prob: Share | None = None
    val_image_url: str | None = None
    validation_prompt: str | None = None
    num_validation_images: Count = 4
    validation_epochs: Count = 1
    non_ema_revision: str | None = None

    def check(self) -> None:
        super().check()
        if self.non_ema_revision:
            raise BadFlags("--non_ema_revision is no more; the published name for it is --variant=non_ema")
        if (self.val_image_url is None) != (self.validation_prompt is None):
            raise BadFlags("--val_image_url and --validation_prompt go together; give both or none")
        self.image_column, self.caption_column = self.edited_image_column, self.edit_prompt_column


class InstructPix2Pix(LatentRecipe):
    """A model that edits pictures as it is told."""

    flags_class = InstructFlags
    tags = ("stable-diffusion", "instruct-pix2pix", "image-to-image", "diffusers", "diffusers-training", "langevin")
    view_count: ClassVar[int] = 2

    def load(self) -> Mapping[str, nn.Module]:
        unet = self.load_pipeline().unet
        return {"unet": widened(unet, 2 * self.pipe.vae.config.latent_channels).requires_grad_(True)}

    def rows(self) -> Sequence[Row]:
        rows = super().rows()
        check_column(rows, self.flags.original_image_column, "original_image_column")
        return rows

    @property
    def framing(self) -> Framing:
        flags = self.flags
        side, kind = flags.resolution, flags.image_interpolation_mode
        return Framing(side, side, False, flags.random_flip, kind, stretch=True)

    def views(self, row: Row) -> list[Any]:
        return [picture(row[name]) for name in (self.flags.edited_image_column, self.flags.original_image_column)]

    def loss(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any], draws: Draws) -> Tensor:
        law, share = self.law(batch), self.flags.conditioning_dropout_prob
        clean, shown = self.drawn(law[:, 0], draws), law[:, 1, 0]
        noise, x, t = self.noised(clean, draws)
        texts = batch["text"]
        if share:
            lot = draws.uniform()
            texts = ["" if one < 2 * share else text for one, text in zip(lot.tolist(), texts, strict=True)]
            shown = shown * ((lot < share) | (lot >= 3 * share)).view(-1, 1, 1, 1)
        states = self.states({"text": texts})
        target = losses.target(self.scheduler, clean, noise, t, self.prediction_type)
        return self.measured(networks["unet"](torch.cat([x, shown], 1), t, states).sample, target, t)

    def with_networks(self, networks: Mapping[str, Any]) -> Any:
        from langevin import StableDiffusionInstructPix2PixPipeline

        return StableDiffusionInstructPix2PixPipeline.from_pipe(self.pipe, **networks)

    def pictures(self, networks: Mapping[str, Any], step: int) -> list[Any]:
        flags = self.flags
        if flags.val_image_url is None:
            return []
        from langevin.media.load import load_image

        shown = load_image(flags.val_image_url).convert("RGB").resize((flags.resolution, flags.resolution))
        call = {"image": shown, "height": None, "width": None}
        return [shown, *self.paint(networks, [flags.validation_prompt], flags.num_validation_images, **call)]


def widened(unet: Any, channels: int) -> Any:
    """A UNet with so many input channels: the further ones begin at 0, all else is what it was, biases too.

    One that has them already comes back as it is.

    Raises:
        BadFlags: it has another number than its output's.
    """
    if unet.config.in_channels == channels:
        return unet
    if unet.config.in_channels != unet.config.out_channels:
        raise BadFlags(
            f"the UNet has {unet.config.in_channels} input channels; {channels} or {unet.config.out_channels} would do"
        )
    wide = type(unet).from_config({**unet.config, "in_channels": channels})
    held = unet.state_dict()
    weight = held["conv_in.weight"]
    held["conv_in.weight"] = torch.cat(
        [weight, weight.new_zeros(len(weight), channels - weight.shape[1], *weight.shape[2:])], 1
    )
    wide.load_state_dict(held)
    return wide
