"""CLIP's picture model: pictures in the place of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from langevin.prompts.readers.base import Given, Reading


class VisionReader:
    """Reads pictures with a feature extractor and a ``CLIPVisionModelWithProjection``.

    What belongs to prompts (weights, windows, words that change on the way) has no meaning here.

    Args:
        image_encoder: of transformers.
        feature_extractor: brings pictures into the encoder's form. Prepared pictures need none.
        outputs: the network's arguments, and what each gets: ``"token"``, the picture's vector as one token,
            ``(rows, 1, dim)``; ``"image_embeds"``, the vector itself, ``(rows, dim)``; ``"aligned"``, all places
            projected as the vector is, and divided by the vector's length, ``(rows, places, dim)``, which is what
            Versatile Diffusion is told; or the name of an entry in the encoder's output.
        device, dtype: of the conditions.

    Example:
        >>> reading = VisionReader(pipe.image_encoder, pipe.feature_extractor).read(picture, pictures=4)
        >>> reading.branches["positive"]["encoder_hidden_states"].shape
        torch.Size([4, 1, 768])
    """

    def __init__(
        self,
        image_encoder: Any,
        feature_extractor: Any = None,
        *,
        outputs: Mapping[str, str] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.image_encoder, self.feature_extractor = image_encoder, feature_extractor
        self.outputs = dict(outputs or {"encoder_hidden_states": "token"})
        self.device, self.dtype = device, dtype

    def read(
        self,
        image: Any = None,
        negative_image: Any = None,
        *,
        pictures: int = 1,
        with_negative: bool = True,
        image_embeds: Given = None,
        prepared: bool | None = None,
        negative_prepared: bool | None = None,
    ) -> Reading:
        """Read the pictures of a call, or take embeddings that were given.

        Args:
            image: a picture or a list of them: PIL, an array ``(height, width, 3)`` or a tensor ``(3, height, width)``,
                arrays and tensors also with a first dimension for several; in [0, 1], or whole numbers to 255.
            negative_image: for the negative branch, one or as many. Where there is none, it is told zeros.
            pictures: rows for each picture given.
            image_embeds: instead of pictures: the first output, ``(n, dim)`` or as the network takes it, or a tensor
                for each output by name.
            prepared: whether a tensor is in the encoder's form already, as a feature extractor leaves it. If None:
                where any of it lies outside [0, 1].
            negative_prepared: the same for the negative branch's; as ``prepared`` if None.

        Raises:
            ValueError: neither or both of pictures and embeddings, or what the encoder cannot take.
        """
        if (image is None) == (image_embeds is None):
            given = "neither" if image is None else "both"
            raise ValueError(f"{given} of image and image_embeds given; give exactly one")
        told = self._given(image_embeds) if image_embeds is not None else self.encode(image, prepared)
        count = len(next(iter(told.values())))
        branches = {"positive": told}
        if with_negative and negative_image is None:
            branches["negative"] = {name: torch.zeros_like(value) for name, value in told.items()}
        elif with_negative:
            other = self.encode(negative_image, prepared if negative_prepared is None else negative_prepared)
            size = len(next(iter(other.values())))
            if size not in (1, count):
                raise ValueError(f"{size} negative pictures for {count} pictures; give one, or one each")
            branches["negative"] = {name: value.expand(count, *value.shape[1:]) for name, value in other.items()}
        rows = {
            branch: {name: self._ready(value).repeat_interleave(pictures, dim=0) for name, value in each.items()}
            for branch, each in branches.items()
        }
        return Reading(dict(rows), None, None, next(iter(self.outputs)))

    def encode(self, image: Any, prepared: bool | None = None) -> dict[str, Tensor]:
        """What each output gets of some pictures, one row for each of them."""
        pixels = self.pixels(image, prepared)
        weight = next(self.image_encoder.parameters())
        given = self.image_encoder(pixels.to(self.device or weight.device, weight.dtype))
        return {name: self._output(given, kind) for name, kind in self.outputs.items()}

    def pixels(self, image: Any, prepared: bool | None = None) -> Tensor:
        """Pictures in the encoder's form, ``(n, 3, size, size)``."""
        whole = isinstance(image, Image.Image | np.ndarray | Tensor)
        listed = [image] if whole else list(image)
        if not listed:
            raise ValueError("image is an empty list; give at least one picture")
        if isinstance(listed[0], Tensor):
            tensor = torch.cat([one[None] if one.ndim == 3 else one for one in listed])
            if tensor.ndim != 4 or tensor.shape[1] != 3:
                raise ValueError(f"image is {tuple(image.shape if whole else tensor.shape)}; (n, 3, height, width)")
            if prepared is None:
                prepared = tensor.is_floating_point() and bool(tensor.min() < 0 or tensor.max() > 1)
            if prepared:
                return tensor
            listed = list(tensor)
        if self.feature_extractor is None:
            raise ValueError("pictures need a feature_extractor; give one, or a tensor in the encoder's form")
        return torch.cat([self._extracted(one) for one in listed])

    def _extracted(self, image: Any) -> Tensor:
        """One picture (an array may hold several) in the encoder's form."""
        if isinstance(image, Image.Image):
            image = image.convert("RGB")
        elif isinstance(image, np.ndarray) and image.ndim == 4:
            return torch.cat([self._extracted(one) for one in image])
        elif not isinstance(image, Tensor | np.ndarray) or image.ndim != 3:
            what = f"{type(image).__name__} {tuple(getattr(image, 'shape', ()))}".removesuffix(" ()")
            raise ValueError(f"image is a {what}; a PIL image, (height, width, 3) or a tensor (3, height, width)")
        more: dict[str, Any] = {}
        if not isinstance(image, Image.Image):
            channels_first = isinstance(image, Tensor)
            more["input_data_format"] = "channels_first" if channels_first else "channels_last"
            fractions = image.is_floating_point() if channels_first else image.dtype.kind == "f"
            if fractions:
                more["do_rescale"] = False
                if image.min() < 0 or image.max() > 1:
                    raise ValueError(f"image lies in {float(image.min())}..{float(image.max())}; [0, 1] is needed")
        return self.feature_extractor(images=image, return_tensors="pt", **more).pixel_values

    def _output(self, given: Any, kind: str) -> Tensor:
        if kind == "token":
            return given.image_embeds[:, None]
        if kind != "aligned":
            return given[kind]
        vision = getattr(self.image_encoder, "vision_model", self.image_encoder)
        places = self.image_encoder.visual_projection(vision.post_layernorm(given.last_hidden_state))
        return places / places[:, :1].norm(dim=-1, keepdim=True)

    def _given(self, image_embeds: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        first = next(iter(self.outputs))
        told = {first: image_embeds} if isinstance(image_embeds, Tensor) else dict(image_embeds)
        if set(told) != set(self.outputs):
            wanted, there = ", ".join(self.outputs), ", ".join(told) or "nothing"
            raise ValueError(f"image_embeds has {there}; {wanted} are needed, in a dict where they are several")
        for name, kind in self.outputs.items():
            if kind == "token" and told[name].ndim == 2:
                told[name] = told[name][:, None]
        return told

    def _ready(self, value: Tensor) -> Tensor:
        return value.to(device=self.device, dtype=self.dtype)


def vectors(
    image_encoder: Any, feature_extractor: Any, image: Any, prepared: bool | None, device: torch.device | str
) -> Tensor:
    """CLIP's vectors of pictures, ``(n, dim)``; see :class:`VisionReader`."""
    reader = VisionReader(image_encoder, feature_extractor, outputs={"embeds": "image_embeds"}, device=device)
    return reader.encode(image, prepared)["embeds"]
