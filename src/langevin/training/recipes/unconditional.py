"""Pictures from nothing: a new UNet learns ε or x0 in pixel space (Ho et al. 2020, 2006.11239)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from torch import Tensor, nn

from langevin.checks import Count
from langevin.training import losses
from langevin.training.average import Average, powered
from langevin.training.data import Draws, Framing, Row, picture, rows_of
from langevin.training.flags import Filter, PictureFlags, Rate, RateName
from langevin.training.recipe import Recipe

LEVELS = 6
UNET = {
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
}
"""113 million numbers, the original's. Another network is a config file: ``--model_config_name_or_path``."""


@dataclass(kw_only=True)
class UnconditionalFlags(PictureFlags):
    """Train a diffusion model on pictures alone.

    Args:
        num_epochs: how often every picture is used, as num_train_epochs is elsewhere.
        model_config_name_or_path: folder with the config.json of a UNet2DModel, whose weights begin anew.
        preserve_input_precision: pictures are always read as they are here.
        eval_batch_size: pictures of a validation.
        save_images_epochs, save_model_epochs: epochs from one validation, and one saved result, to the next.
        ddpm_num_steps, ddpm_beta_schedule: of the noise that is trained with.
        ddpm_num_inference_steps: of the pictures of a validation.
        prediction_type: what the network learns to give.
        ema_inv_gamma, ema_power, ema_max_decay: of the average, 1 - (1 + step / inv_gamma) ** -power up to max_decay.
        logger: the same as report_to.
        overwrite_output_dir, hub_private_repo: nothing reads them, as in the original.
    """

    output_dir: str = "ddpm-model-64"
    resolution: Count = 64
    image_interpolation_mode: Filter = "bilinear"
    lr_scheduler: RateName = "cosine"
    num_epochs: Count = 100
    adam_beta1: Rate = 0.95
    adam_weight_decay: Rate = 1e-6
    tracker_project_name: str = "train_unconditional"
    model_config_name_or_path: str | None = None
    preserve_input_precision: bool = False
    eval_batch_size: Count = 16
    save_images_epochs: Count = 10
    save_model_epochs: Count = 10
    ddpm_num_steps: Count = 1000
    ddpm_beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    ddpm_num_inference_steps: Count = 1000
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    ema_inv_gamma: Rate = 1.0
    ema_power: Rate = 0.75
    ema_max_decay: Rate = 0.9999
    logger: Literal["tensorboard", "wandb"] | None = None
    overwrite_output_dir: bool = False
    hub_private_repo: bool = False


class Unconditional(Recipe):
    """A diffusion model of pictures, without conditions."""

    flags_class = UnconditionalFlags
    tags = ("diffusers", "diffusers-training", "unconditional-image-generation", "langevin")

    def check(self) -> None:
        self.flags.report_to = self.flags.logger or self.flags.report_to
        self.flags.num_train_epochs = self.flags.num_epochs
        super().check()

    def load(self) -> Mapping[str, nn.Module]:
        from langevin import DDPMScheduler, UNet2DModel

        flags = self.flags
        config = (
            UNET
            if flags.model_config_name_or_path is None
            else UNet2DModel.load_config(flags.model_config_name_or_path)
        )
        self.scheduler = DDPMScheduler(
            num_train_timesteps=flags.ddpm_num_steps,
            beta_schedule=flags.ddpm_beta_schedule,
            prediction_type=flags.prediction_type,
        )
        return {"unet": UNet2DModel.from_config({"sample_size": flags.resolution, **config})}

    def rows(self) -> Sequence[Row]:
        return rows_of(self.flags)

    def example(self, index: int, row: Row, rng: Random) -> dict[str, Any]:
        side, flags = self.flags.resolution, self.flags
        framing = Framing(side, side, flags.center_crop, flags.random_flip, flags.image_interpolation_mode)
        image = picture(row[flags.image_column])
        return {"clean": framing.apply(image, framing.choose(image.size, rng))}

    def loss(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any], draws: Draws) -> Tensor:
        clean, kind = batch["clean"], self.flags.prediction_type
        noise = draws.normal(tuple(clean.shape))
        t = draws.whole(len(self.scheduler))
        predicted = networks["unet"](self.scheduler.add_noise(clean, noise, t), t).sample
        error = predicted.float() - losses.target(self.scheduler, clean, noise, t, kind)
        weight = losses.signal_to_noise(self.scheduler, t) if kind == "sample" else 1.0
        return weight * losses.mean_of_rows(losses.squared(error))

    def average(self, network: nn.Module) -> Average:
        flags = self.flags
        decay = functools.partial(
            powered, inv_gamma=flags.ema_inv_gamma, power=flags.ema_power, most=flags.ema_max_decay
        )
        return Average(network, decay, "cpu" if flags.offload_ema else None)

    def pipeline(self, networks: Mapping[str, Any]) -> Any:
        from langevin import DDPMPipeline

        return DDPMPipeline(unet=networks["unet"].eval(), scheduler=self.scheduler)

    def save(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        self.pipeline(networks).save_pretrained(folder)

    def pictures(self, networks: Mapping[str, nn.Module], step: int) -> list[Any]:
        steps, count = self.flags.ddpm_num_inference_steps, self.flags.eval_batch_size
        pipe = self.pipeline({"unet": networks["unet"].to(self.device)})
        pipe.set_progress_bar_config(leave=False, desc="validation")
        return pipe(batch_size=count, num_inference_steps=steps, seed=self.flags.seed or 0).images

    def validates_at(self, step: int, total: int, per_epoch: int) -> bool:
        return step == total or step % (self.flags.save_images_epochs * per_epoch) == 0

    def saves_at(self, step: int, total: int, per_epoch: int) -> bool:
        return step == total or step % (self.flags.save_model_epochs * per_epoch) == 0
