"""ControlNet: a copy of the UNet's first half learns to follow pictures (Zhang et al. 2023, 2302.05543)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor, nn

from langevin.checks import Count, Share
from langevin.training import losses
from langevin.training.data import Draws, Frame, Row, check_column, picture
from langevin.training.flags import BadFlags, Filter, Rate
from langevin.training.latent import LatentFlags, LatentRecipe


@dataclass(kw_only=True)
class ControlNetFlags(LatentFlags):
    """Train a ControlNet on pictures, captions and control pictures.

    Args:
        controlnet_model_name_or_path: go on from this ControlNet, instead of from the UNet's copy.
        tokenizer_name: the checkpoint's own tokenizer is used; any other is refused.
        conditioning_image_column: the data's column of control pictures.
        proportion_empty_prompts: share of texts that are left empty.
        validation_image, validation_prompt: control pictures and prompts, one for each, or one for all.
        num_validation_images: pictures of each pair.
    """

    output_dir: str = "controlnet-model"
    tracker_project_name: str = "train_controlnet"
    train_batch_size: Count = 4
    num_train_epochs: Count = 1
    learning_rate: Rate = 5e-6
    image_interpolation_mode: Filter = "bilinear"
    center_crop: bool = True
    validation_steps: Count | None = 100
    controlnet_model_name_or_path: str | None = None
    tokenizer_name: str | None = None
    conditioning_image_column: str = "conditioning_image"
    proportion_empty_prompts: Share = 0.0
    validation_image: list[str] | None = None
    validation_prompt: list[str] | None = None
    num_validation_images: Count = 4

    def check(self) -> None:
        super().check()
        if self.resolution % 8:
            raise BadFlags(f"--resolution={self.resolution} is no multiple of 8, which the networks need")
        images, prompts = self.validation_image or [], self.validation_prompt or []
        if bool(images) != bool(prompts) or (len(images) != len(prompts) and 1 not in (len(images), len(prompts))):
            raise BadFlags(
                f"there are {len(images)} --validation_image and {len(prompts)} --validation_prompt; one for each, or "
                "one for all"
            )
        missing = [path for path in images if not Path(path).expanduser().is_file()]
        if missing:
            raise BadFlags(f"--validation_image={missing[0]} is no file")
        self.caption_dropout = max(self.caption_dropout, self.proportion_empty_prompts)


class ControlNet(LatentRecipe):
    """A ControlNet for a text-to-image model."""

    flags_class = ControlNetFlags
    tags = ("stable-diffusion", "controlnet", "text-to-image", "diffusers", "diffusers-training", "langevin")

    def load(self) -> Mapping[str, nn.Module]:
        from langevin import ControlNetModel

        unet = self.load_pipeline().unet.to(self.device, self.dtype).eval()
        path = self.flags.controlnet_model_name_or_path
        if path:
            return {"controlnet": ControlNetModel.from_pretrained(path)}
        halvings = int(self.pipe.vae_scale_factor).bit_length()  # from a control picture's size to that of latents
        widths = (16, 32, 96, 256)[-halvings:] if halvings <= 4 else (16, 32, 96, *[256] * (halvings - 3))
        return {"controlnet": ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)}

    def rows(self) -> Sequence[Row]:
        rows = super().rows()
        check_column(rows, self.flags.conditioning_image_column, "conditioning_image_column")
        return rows

    def more(self, row: Row, frame: Frame) -> dict[str, Any]:
        shown = picture(row[self.flags.conditioning_image_column])
        middle = self.framing.choose(shown.size, Random(0))  # it may be of another size than its picture
        return {"shown": self.framing.apply(shown, dataclasses.replace(middle, mirrored=frame.mirrored)) / 2 + 0.5}

    def loss(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any], draws: Draws) -> Tensor:
        clean = self.latents(batch, draws)
        noise, x, t = self.noised(clean, draws)
        states, shown = self.states(batch), batch["shown"]
        down, middle = networks["controlnet"](x, t, states, controlnet_cond=shown, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted = self.pipe.unet(x.to(self.dtype), t, states.to(self.dtype), **residuals).sample
        target = losses.target(self.scheduler, clean, noise, t, self.prediction_type)
        return self.measured(predicted, target, t)

    def save(self, networks: Mapping[str, Any], folder: Path) -> None:
        networks["controlnet"].save_pretrained(folder)

    def pictures(self, networks: Mapping[str, Any], step: int) -> list[Any]:
        from langevin import StableDiffusionControlNetPipeline

        flags, made = self.flags, []
        images, prompts = flags.validation_image or [], flags.validation_prompt or []
        pipe = StableDiffusionControlNetPipeline.from_pipe(self.pipe, controlnet=networks["controlnet"].eval())
        for k in range(max(len(images), len(prompts))):
            shown = picture(images[k % len(images)]).resize((flags.resolution, flags.resolution))
            call = {"image": shown, "num_images_per_prompt": flags.num_validation_images}
            made += [shown, *self.painted(pipe, prompts[k % len(prompts)], **call)]
        return made
