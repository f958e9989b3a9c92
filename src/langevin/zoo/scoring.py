"""How well texts fit pictures, by a CLIP: the one in the box, or any other.

A CLIP turns a picture and a text into vectors whose cosine is larger the better they fit. What a cosine means differs
from model to model, so ``langevin/shapes-clip`` brings a ``calibration`` measured on pictures that it was not trained
on: the logistic function that turns a cosine into how often such a text was true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langevin.checkpoints import folders, transformers_parts
from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.files import read_json
from langevin.prompts.readers.vision import VisionReader


@dataclass(frozen=True)
class Fit:
    """How a text fits a picture.

    ``cosine`` is of the two vectors, -1 to 1. ``share`` is the text's part of 1 among the texts that were compared, as
    CLIP is trained to divide it. ``chance`` is how likely the text is true of the picture; None without a calibration.
    """

    text: str
    cosine: float
    share: float
    chance: float | None


class Scorer:
    """Says how well texts fit a picture.

    Args:
        clip: a ``CLIPModel`` of transformers.
        tokenizer: its tokenizer.
        feature_extractor: brings pictures into its form.
        calibration: ``{"scale": a, "offset": b}``: a text of cosine c is true with chance ``1 / (1 + exp(-a*c - b))``.

    Example:
        >>> from langevin.zoo.scoring import Scorer
        >>> best, *others = Scorer.load("langevin/shapes-clip").fits(picture, ["a red circle", "a blue circle"])
        >>> best.text, best.chance > 0.5
        ('a red circle', True)
    """

    def __init__(
        self, clip: Any, tokenizer: Any, feature_extractor: Any, calibration: dict[str, float] | None = None
    ) -> None:
        self.clip, self.tokenizer, self.calibration = clip.eval(), tokenizer, calibration
        self._reader = VisionReader(clip, feature_extractor)

    @classmethod
    def load(cls, name: str | Path, **options: Any) -> Scorer:
        """From a folder as published CLIPs have it, a name in the box, or a hub id.

        Args:
            name: which.
            options: for the hub, as ``from_pretrained`` takes them.

        Raises:
            CheckpointError: there is no such folder, or no CLIP in it.
        """
        folder = folders.resolve(name, **options)
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        if config.get("model_type") != "clip":
            raise CheckpointError(f"{folder} is no CLIP of both texts and pictures; give a folder of a CLIPModel.")
        clip, tokenizer, extractor = (
            transformers_parts.load(transformers_parts.find_class(kind), folder.parent, folder.name, dtype=dtype)
            for kind, dtype in (("CLIPModel", torch.float32), ("CLIPTokenizer", None), ("CLIPImageProcessor", None))
        )
        calibration = config.get("calibration")
        if calibration is not None and not _is_calibration(calibration):
            raise CheckpointError(
                f"{folder / 'config.json'} has the calibration {calibration!r}; two numbers, scale and offset, are "
                "needed."
            )
        return cls(clip, tokenizer, extractor, calibration)

    @torch.no_grad()
    def cosines(self, images: Any, texts: Sequence[str]) -> Tensor:
        """The cosine of each picture and each text, (pictures, texts).

        Args:
            images: as :meth:`langevin.VisionReader.pixels` takes them.
            texts: the texts.
        """
        pixels, tokens = self._reader.pixels(images), self._tokens(texts)
        vision = self.clip.get_image_features(pixel_values=pixels)
        words = self.clip.get_text_features(**tokens)
        vision, words = (v if isinstance(v, Tensor) else v.pooler_output for v in (vision, words))
        return torch.nn.functional.normalize(vision, dim=-1) @ torch.nn.functional.normalize(words, dim=-1).t()

    def _tokens(self, texts: Sequence[str]) -> Any:
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("a text is missing or empty; give at least one, with words in it")
        return self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")

    def fits(self, image: Any, texts: Sequence[str]) -> list[Fit]:
        """How well each text fits a picture, the best first."""
        cosines = self.cosines(image, texts)[0]
        shares = (cosines * self.clip.logit_scale.exp()).softmax(0)
        made = [
            Fit(text, cosine, share, self.chance(cosine))
            for text, cosine, share in zip(texts, cosines.tolist(), shares.tolist(), strict=True)
        ]
        return sorted(made, key=lambda fit: -fit.cosine)

    def chance(self, cosine: float) -> float | None:
        """How often a text of this cosine is true; None where that was not measured."""
        if self.calibration is None:
            return None
        inner = torch.tensor(self.calibration["scale"] * cosine + self.calibration["offset"], dtype=torch.float64)
        return float(inner.sigmoid())


def _is_calibration(given: Any) -> bool:
    numbers = [given.get(name) for name in ("scale", "offset")] if isinstance(given, dict) else [None]
    return all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
