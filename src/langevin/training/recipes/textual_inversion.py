"""Textual inversion: a new word's vectors learn, and nothing else (Gal et al. 2022, 2208.01618)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langevin.checks import Count
from langevin.training.data import FolderRows, Framing, Row
from langevin.training.flags import BadFlags, Filter, Rate, Whole
from langevin.training.latent import LatentFlags, LatentRecipe
from langevin.training.words import TEMPLATES, NewWords, initial_vectors

FILE = "learned_embeds{}.safetensors"


@dataclass(kw_only=True)
class InversionFlags(LatentFlags):
    """Teach a checkpoint a word from a few pictures.

    Args:
        placeholder_token: the new word, such as <cat-toy>.
        initializer_token: the word that it begins as; a single token.
        num_vectors: how many vectors it has.
        learnable_property: whether pictures share an object or a style; says which texts describe them.
        templates: a file of texts instead, one in each line, with {} for the word.
        repeats: an epoch has every picture so often.
        save_steps: steps from one file learned_embeds-steps-N to the next; 0 for none.
        save_as_full_pipeline: save the checkpoint with the word in it too.
        no_safe_serialization: write .bin instead of .safetensors; refused.
        tokenizer_name: the checkpoint's own tokenizer is used; any other is refused.
        validation_prompt, num_validation_images: pictures of it are made every validation_steps.
        validation_epochs: no more; validation_steps.
    """

    output_dir: str = "text-inversion-model"
    tracker_project_name: str = "textual_inversion"
    image_interpolation_mode: Filter = "bicubic"
    random_flip: bool = True
    max_train_steps: Count | None = 5000
    max_grad_norm: Rate = 0.0
    validation_steps: Count | None = 100
    placeholder_token: str = ""
    initializer_token: str = ""
    num_vectors: Count = 1
    learnable_property: Literal["object", "style"] = "object"
    templates: str | None = None
    repeats: Count = 100
    save_steps: Whole = 500
    save_as_full_pipeline: bool = False
    no_safe_serialization: bool = False
    tokenizer_name: str | None = None
    validation_prompt: str | None = None
    num_validation_images: Count = 4
    validation_epochs: Count | None = None

    required: ClassVar[tuple[str, ...]] = (
        "pretrained_model_name_or_path", "train_data_dir", "placeholder_token", "initializer_token",
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.no_safe_serialization:
            raise BadFlags("--no_safe_serialization: words are written as .safetensors alone; leave it out")
        if self.templates and not Path(self.templates).expanduser().is_file():
            raise BadFlags(f"--templates={self.templates} is no file")


class TextualInversion(LatentRecipe):
    """A word for a text-to-image model."""

    flags_class = InversionFlags
    tags = ("stable-diffusion", "text-to-image", "diffusers", "textual_inversion", "diffusers-training", "langevin")
    texts_stay = False

    def load(self) -> Mapping[str, nn.Module]:
        pipe, flags = self.load_pipeline(), self.flags
        pipe.unet.to(self.device, self.dtype)
        pipe.text_encoder.float()
        begin = initial_vectors(pipe.tokenizer, pipe.text_encoder, flags.initializer_token, flags.num_vectors)
        pipe.load_textual_inversion({flags.placeholder_token: begin})
        given = Path(flags.templates).expanduser().read_text(encoding="utf-8").splitlines() if flags.templates else None
        self.templates = [line for line in given if line.strip()] if given else TEMPLATES[flags.learnable_property]
        self.words = NewWords(begin, pipe.text_encoder)
        return {"words": self.words}

    def rows(self) -> Sequence[Row]:
        rows = FolderRows(Path(self.flags.train_data_dir).expanduser())
        if not len(rows):
            raise BadFlags(f"there are no pictures in --train_data_dir={self.flags.train_data_dir}")
        return [dict(row) for row in rows] * self.flags.repeats

    @property
    def framing(self) -> Framing:
        flags = self.flags
        side, kind = flags.resolution, flags.image_interpolation_mode
        return Framing(side, side, flags.center_crop, flags.random_flip, kind, stretch=True)

    def caption(self, row: Row, rng: random.Random) -> str:
        return rng.choice(self.templates).format(self.flags.placeholder_token)

    def states(self, batch: Mapping[str, Any], encoder: Any = None) -> Tensor:
        from langevin.prompts.textual_inversion import expand_words

        return self.read([expand_words(self.pipe.tokenizer, text) for text in batch["text"]])

    def loss(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any], draws: Any) -> Tensor:
        with self.words.spoken(networks["words"]()):
            return super().loss({"unet": self.pipe.unet}, batch, draws)

    def keep(self, name: str, network: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        end = "" if self.step is None else f"-steps-{self.step}"
        vectors = network.vectors.detach().cpu().contiguous()
        save_file({self.flags.placeholder_token: vectors}, folder / FILE.format(end))

    def take_up(self, name: str, network: Any, folder: Path) -> None:
        with torch.no_grad():
            network.vectors.copy_(load_file(folder / FILE.format(""))[self.flags.placeholder_token])

    def save(self, networks: Mapping[str, Any], folder: Path) -> None:
        self.keep("words", networks["words"], folder)
        if self.flags.save_as_full_pipeline and self.step is None:
            self.words.settle()
            self.pipe.save_pretrained(folder)

    def saves_at(self, step: int, total: int, per_epoch: int) -> bool:
        return step == total or bool(self.flags.save_steps and step % self.flags.save_steps == 0)

    def pictures(self, networks: Mapping[str, Any], step: int) -> list[Any]:
        prompt = self.flags.validation_prompt
        self.words.settle()
        return self.paint({}, [prompt] if prompt else [], self.flags.num_validation_images)
