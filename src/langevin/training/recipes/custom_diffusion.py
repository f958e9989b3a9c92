"""Custom Diffusion: new words, and what cross-attention makes of texts, learn several concepts at once (Kumari et al.
2022, 2212.04488).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from langevin.checks import Count
from langevin.lora.custom import file_name
from langevin.training.classes import Concept, ConceptPairs, make_classes, scaled
from langevin.training.data import Draws, Row, picture
from langevin.training.flags import BadFlags, Filter, Rate
from langevin.training.recipes.dreambooth import DreamBooth, DreamBoothFlags
from langevin.training.words import add_words, load_words, save_words

FILE = "pytorch_custom_diffusion_weights.safetensors"


@dataclass(kw_only=True)
class CustomFlags(DreamBoothFlags):
    """Teach a checkpoint one concept or several from a few pictures each.

    Args:
        concepts_list: a JSON file: a list of instance_prompt, class_prompt, instance_data_dir, class_data_dir.
        modifier_token: new words joined by +, such as <new1>+<new2>.
        initializer_token: the words that they begin as, joined by +; of each the first token.
        freeze_model: crossattn_kv trains keys and values of cross-attention, crossattn its queries and outputs too.
        real_prior: class pictures are real ones, listed in class_data_dir's images.txt with their texts in caption.txt.
        hflip: mirror every other picture, as random_flip does.
        noaug: no random scaling of pictures.
        no_safe_serialization: write .bin; refused.
    """

    output_dir: str = "custom-diffusion-model"
    tracker_project_name: str = "custom-diffusion"
    image_interpolation_mode: Filter = "bilinear"
    learning_rate: Rate = 1e-5
    num_class_images: Count = 200
    checkpointing_steps: Count = 250  # type: ignore[assignment]
    validation_steps: Count | None = 50
    num_validation_images: Count = 2
    concepts_list: str | None = None
    modifier_token: str | None = None
    initializer_token: str = "ktn+pll+ucd"
    freeze_model: Literal["crossattn_kv", "crossattn"] = "crossattn_kv"
    real_prior: bool = False
    hflip: bool = False
    noaug: bool = False
    no_safe_serialization: bool = False

    required: ClassVar[tuple[str, ...]] = ("pretrained_model_name_or_path",)

    def check(self) -> None:
        if self.no_safe_serialization:
            raise BadFlags("--no_safe_serialization: weights are written as .safetensors alone; leave it out")
        self.concepts = self._concepts()
        self.train_data_dir = self.concepts[0].instance_data_dir
        if self.with_prior_preservation:
            self.class_data_dir, self.class_prompt = self.concepts[0].class_data_dir, self.concepts[0].class_prompt
        words, begin = (self.modifier_token or "").split("+"), self.initializer_token.split("+")
        if self.modifier_token and len(words) > len(begin):
            raise BadFlags(f"--modifier_token has {len(words)} words and --initializer_token {len(begin)}; one each")
        self.random_flip = self.random_flip or self.hflip
        super().check()

    def _concepts(self) -> list[Concept]:
        if self.concepts_list is None:
            return [
                Concept(self.instance_data_dir, self.instance_prompt, self.class_data_dir, self.class_prompt).checked()
            ]
        try:
            listed = json.loads(Path(self.concepts_list).expanduser().read_text(encoding="utf-8"))
            return [
                Concept(**{k: v for k, v in one.items() if k in Concept.__annotations__}).checked() for one in listed
            ]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, BadFlags):
                raise
            raise BadFlags(f"--concepts_list={self.concepts_list} is no JSON list of concepts: {error}") from None


class CustomDiffusion(DreamBooth):
    """A text-to-image model that knows one concept or several."""

    flags_class = CustomFlags
    tags = ("stable-diffusion", "text-to-image", "diffusers", "custom-diffusion", "diffusers-training", "langevin")

    def load(self) -> Mapping[str, nn.Module]:
        flags, pipe = self.flags, self.load_pipeline()
        if flags.with_prior_preservation and not flags.real_prior:
            make_classes(pipe, flags, self.made)
        self.texts_stay = not flags.modifier_token
        unet = pipe.unet.to(self.device, self.dtype)
        for parameter in self.projections(unet).values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        self.words: Any = None
        if not flags.modifier_token:
            return {"unet": unet}
        self.names = flags.modifier_token.split("+")
        self.words = add_words(pipe, self.names, flags.initializer_token.split("+")[: len(self.names)])
        return {"unet": unet, "words": self.words}

    def projections(self, unet: Any) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by the names that they have in files."""
        trained = (
            ("to_k", "to_v") if self.flags.freeze_model == "crossattn_kv" else ("to_k", "to_v", "to_q", "to_out.0")
        )
        return {
            f"{file_name(layer, name)}.{part}": parameter
            for name, module in unet.named_modules()
            if name.endswith("attn2")
            for layer in trained
            for part, parameter in module.get_submodule(layer).named_parameters()
        }

    def rows(self) -> Sequence[Row]:
        self.made: list[list] = [[] for _ in self.flags.concepts]
        return ConceptPairs(self.flags, self.made)

    def example(self, index: int, row: Row, rng: Random) -> dict[str, Any]:
        framing, cell, side = self.framing, self.pipe.vae_scale_factor, self.flags.resolution
        image, said, mask = picture(row["image"]), "", torch.ones(1, side // cell, side // cell)
        if self.flags.noaug:
            pixels = framing.apply(image, framing.choose(image.size, rng))
        else:
            if self.flags.random_flip and rng.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels, mask, said = scaled(image, side, cell, rng)
        made: dict[str, Any] = {"text": said + row["text"], "mask": mask}
        if "class" not in row:
            return {**made, "pixels": pixels[None]}
        path, class_text = row["class"]
        other = picture(path)
        both = torch.stack([pixels, framing.apply(other, framing.choose(other.size, rng))])
        return {**made, "pixels": both, "class_text": class_text}

    def prepare(self, rows: Sequence[Row]) -> None:
        """Pictures are scaled anew each time, so nothing is worth keeping."""

    def loss(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any], draws: Draws) -> Tensor:
        if self.words is None:
            return super().loss(networks, batch, draws)
        with self.words.spoken(networks["words"]()):
            return super().loss({"unet": networks["unet"]}, batch, draws)

    def keep(self, name: str, network: Any, folder: Path) -> None:
        if name == "words":
            return save_words(self.names, network, folder)
        folder.mkdir(parents=True, exist_ok=True)
        kept = {key: one.detach().cpu().contiguous() for key, one in self.projections(network).items()}
        save_file(kept, folder / FILE)

    def take_up(self, name: str, network: Any, folder: Path) -> None:
        if name == "words":
            return load_words(self.names, network, folder)
        held = load_file(folder / FILE)
        for key, parameter in self.projections(network).items():
            parameter.data.copy_(held[key])

    def save(self, networks: Mapping[str, Any], folder: Path) -> None:
        for name, network in networks.items():
            self.keep(name, network, folder)

    def pictures(self, networks: Mapping[str, Any], step: int) -> list[Any]:
        if self.words is not None:
            self.words.settle()
        return super().pictures({"unet": networks["unet"]}, step)
