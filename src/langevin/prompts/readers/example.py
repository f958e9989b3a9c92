"""Pictures to one token each, as Paint by Example is told; see :mod:`langevin.models.encoders.paint_by_example`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from langevin.prompts.readers.base import Reading
from langevin.prompts.readers.vision import VisionReader


class ExampleReader(VisionReader):
    """Pictures to ``encoder_hidden_states``, ``(rows, 1, dim)``; the negative branch gets the encoder's token for no
    picture.
    """

    def read(self, *args: Any, **more: Any) -> Reading:
        reading = super().read(*args, **more)
        if "negative" in reading.branches:
            (name,) = self.outputs
            shape = reading.branches["positive"][name].shape
            none = self._ready(self.image_encoder.uncond_vector)
            reading.branches["negative"] = {name: none.expand(shape)}
        return reading

    def encode(self, image: Any, prepared: bool | None = None) -> dict[str, Tensor]:
        (name,) = self.outputs
        weight = next(self.image_encoder.parameters())
        pixels = self.pixels(image, prepared).to(self.device or weight.device, weight.dtype)
        return {name: self.image_encoder(pixels)}
