"""DreamBooth: a few pictures of a subject, and its class kept by prior preservation (Ruiz et al. 2022, 2208.12242)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import langevin
from langevin.checks import Count
from langevin.training import losses
from langevin.training.classes import make_class_pictures
from langevin.training.data import Draws, FolderRows, Frame, Row, picture
from langevin.training.flags import BadFlags, Filter, Rate
from langevin.training.latent import LatentFlags, LatentRecipe


@dataclass(kw_only=True)
class DreamBoothFlags(LatentFlags):
    """Teach a checkpoint a subject from a few pictures.

    Args:
        instance_data_dir, instance_prompt: folder of pictures of the subject, and what all of them show.
        with_prior_preservation, prior_loss_weight: learn from pictures of its class too, and how much.
        class_data_dir, class_prompt: folder of them, and what they show.
        num_class_images: as many are made with the checkpoint if fewer are there.
        sample_batch_size, prior_generation_precision: of making them.
        train_text_encoder: train the text encoder too.
        offset_noise: the same as noise_offset=0.1.
        tokenizer_name, tokenizer_max_length, text_encoder_use_attention_mask: of other encoders than CLIP; refused.
        pre_compute_text_embeddings: texts are encoded once anyway, where the text encoder is not trained.
        skip_save_text_encoder: leave the text encoder out of the result; it is always kept here.
        class_labels_conditioning, validation_images: of networks that enlarge; refused.
        pretrained_vae_name_or_path: another autoencoder than the checkpoint's.
        save_steps: the same as checkpointing_steps.
        validation_prompt: pictures of it are made every validation_steps.
        num_validation_images, validation_scheduler: how many, and how.
    """

    output_dir: str = "dreambooth-model"
    tracker_project_name: str = "dreambooth"
    train_batch_size: Count = 4
    num_train_epochs: Count = 1
    learning_rate: Rate = 5e-6
    image_interpolation_mode: Filter = "bilinear"
    validation_steps: Count | None = 100
    instance_data_dir: str = ""
    instance_prompt: str = ""
    with_prior_preservation: bool = False
    prior_loss_weight: Rate = 1.0
    class_data_dir: str | None = None
    class_prompt: str | None = None
    num_class_images: Count = 100
    sample_batch_size: Count = 4
    prior_generation_precision: Literal["no", "fp32", "fp16", "bf16"] | None = None
    train_text_encoder: bool = False
    offset_noise: bool = False
    tokenizer_name: str | None = None
    tokenizer_max_length: Count | None = None
    text_encoder_use_attention_mask: bool = False
    pre_compute_text_embeddings: bool = False
    skip_save_text_encoder: bool = False
    class_labels_conditioning: str | None = None
    validation_images: list[str] | None = None
    pretrained_vae_name_or_path: str | None = None
    save_steps: Count | None = None
    validation_prompt: str | None = None
    num_validation_images: Count = 4
    validation_scheduler: Literal["DPMSolverMultistepScheduler", "DDPMScheduler"] = "DPMSolverMultistepScheduler"

    required: ClassVar[tuple[str, ...]] = ("pretrained_model_name_or_path", "instance_data_dir", "instance_prompt")

    def check(self) -> None:
        self.train_data_dir = self.train_data_dir or self.instance_data_dir or None
        super().check()
        if self.with_prior_preservation and not (self.class_data_dir and self.class_prompt):
            raise BadFlags("--with_prior_preservation needs --class_data_dir and --class_prompt")
        if self.pre_compute_text_embeddings and self.train_text_encoder:
            raise BadFlags("--train_text_encoder changes what --pre_compute_text_embeddings keeps; give one of them")
        for name in (
            "tokenizer_name",
            "text_encoder_use_attention_mask",
            "class_labels_conditioning",
            "validation_images",
        ):
            if getattr(self, name):
                raise BadFlags(f"--{name} is for DeepFloyd IF, which is not trained here; leave it out")
        self.noise_offset = 0.1 if self.offset_noise else self.noise_offset
        self.checkpointing_steps = self.save_steps or self.checkpointing_steps


class DreamBooth(LatentRecipe):
    """A text-to-image model that knows a subject."""

    flags_class = DreamBoothFlags
    tags = ("stable-diffusion", "text-to-image", "dreambooth", "diffusers", "diffusers-training", "langevin")

    def load(self) -> Mapping[str, nn.Module]:
        flags, other = self.flags, self.flags.pretrained_vae_name_or_path
        pipe = self.load_pipeline(**({"vae": langevin.AutoencoderKL.from_pretrained(other)} if other else {}))
        if flags.with_prior_preservation:
            folder, count = Path(str(flags.class_data_dir)), flags.num_class_images
            made = make_class_pictures(pipe, folder, flags.class_prompt, count, flags.sample_batch_size)
            self.class_pictures += made[:count]
        self.texts_stay = not flags.train_text_encoder
        trained = {"unet": pipe.unet}
        if flags.train_text_encoder:
            trained["text_encoder"] = pipe.text_encoder.float()
        return {name: network.requires_grad_(True) for name, network in trained.items()}

    def rows(self) -> Sequence[Row]:
        """Pairs of a subject's and a class's picture; the shorter list begins anew."""
        flags = self.flags
        subject = [row["image"] for row in FolderRows(Path(flags.instance_data_dir).expanduser())]
        if not subject:
            raise BadFlags(f"there are no pictures in --instance_data_dir={flags.instance_data_dir}")
        if not flags.with_prior_preservation:
            return [{"image": path} for path in subject]
        self.class_pictures: list[Path] = []  # filled when the checkpoint is there to make them
        return Pairs(subject, self.class_pictures, flags.num_class_images)

    def views(self, row: Row) -> list[Any]:
        return [picture(row[name]) for name in ("image", "class") if name in row]

    def caption(self, row: Row, rng: Random) -> str:
        return self.flags.instance_prompt

    def more(self, row: Row, frame: Frame) -> dict[str, Any]:
        return {"class_text": self.flags.class_prompt} if "class" in row else {}

    def loss(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any], draws: Draws) -> Tensor:
        law, flags = self.law(batch), self.flags
        drawn = [(self.drawn(law[:, k], draws), draws) for k in range(law.shape[1])]
        parts = [(clean, *self.noised(clean, draws)) for clean, draws in drawn]
        clean, noise, x, t = (torch.cat(part) for part in zip(*parts, strict=True))
        rows = len(law)
        texts = [*batch["text"], *batch.get("class_text", [])]
        states = self.states({"text": texts}, networks.get("text_encoder"))
        target = losses.target(self.scheduler, clean, noise, t, self.prediction_type)
        mask = batch.get("mask")
        if mask is not None and len(clean) > rows:
            mask = torch.cat([mask, torch.ones_like(mask)])
        subject, *prior = self.measured(networks["unet"](x, t, states).sample, target, t, mask).split(rows)
        return subject + flags.prior_loss_weight * prior[0] if prior else subject

    def pictures(self, networks: Mapping[str, Any], step: int) -> list[Any]:
        if not self.flags.validation_prompt:
            return []
        pipe = self.with_networks(networks)
        pipe.scheduler = getattr(langevin, self.flags.validation_scheduler).from_config(pipe.scheduler.config)
        return self.painted(pipe, self.flags.validation_prompt, num_images_per_prompt=self.flags.num_validation_images)


class Pairs(Sequence):
    """Pictures of a subject, each with one of its class; the shorter list begins anew."""

    def __init__(self, subject: Sequence[Path], others: Sequence[Path], count: int) -> None:
        self.subject, self.others, self.least = subject, others, count

    def __len__(self) -> int:
        return max(len(self.subject), self.least)

    def __getitem__(self, index: Any) -> Any:
        return {name: paths[index % len(paths)] for name, paths in (("image", self.subject), ("class", self.others))}
