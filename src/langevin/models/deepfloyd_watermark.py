"""DeepFloyd IF's mark, in the lower right corner of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin

_WHOLE, _SIDE, _MARGIN = 1024, 62, 14
"""On a picture of 1024 x 1024 pixels the mark has 62 in each direction, 14 from the corner."""


class IFWatermarker(ModelMixin):
    """Lays a mark over pictures. It holds the mark, ``watermark_image``: 62 x 62 pixels, RGBA, 0 to 255.

    Example:
        >>> marker = IFWatermarker.from_pretrained("DeepFloyd/IF-I-XL-v1.0", subfolder="watermarker")
        >>> marker.apply_watermark([picture], sample_size=64)
    """

    library_name = "deepfloyd_if"
    watermark_image: Tensor

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("watermark_image", torch.zeros(_SIDE, _SIDE, 4))

    def apply_watermark(self, images: Sequence[Any], sample_size: int | None = None) -> Sequence[Any]:
        """Mark PIL images in their place.

        Args:
            images: all of the first one's size.
            sample_size: the side that the network was made for: on a picture with a smaller one, the mark goes where
                it would be on that picture enlarged to it, as in the reference, which is outside. The pictures' own
                height if None.

        Returns:
            The images.
        """
        from PIL import Image

        if not len(images):
            return images
        mark = Image.fromarray(self.watermark_image.cpu().to(torch.uint8).numpy(), "RGBA")
        width, height = images[0].size
        share = min(height, width) / (sample_size or height)
        if share < 1:
            width, height = int(width / share), int(height / share)
        scale = math.sqrt(width * height) / _WHOLE
        side, margin = int(_SIDE * scale), int(_MARGIN * scale)
        if side < 1:
            return images
        mark = mark.resize((side, side), Image.Resampling.BICUBIC)
        for image in images:
            image.paste(mark, (width - margin - side, height - margin - side), mark.getchannel("A"))
        return images
