"""Boxes with texts or pictures as tokens to attend to (GLIGEN: Li et al., 2023, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def box_features(boxes: Tensor, frequencies: int = 8) -> Tensor:
    """sin and cos of box corners at frequencies 100^(i/n): (batch, objects, 4) in [0, 1] -> (batch, objects, 8 * n)."""
    steps = torch.arange(frequencies, device=boxes.device, dtype=torch.float32)
    angle = boxes[..., None].float() * torch.exp(steps * (math.log(100) / frequencies))  # batch, objects, 4, n
    parts = torch.stack([angle.sin(), angle.cos()], dim=-1)  # batch, objects, 4, n, 2
    return parts.permute(0, 1, 3, 4, 2).flatten(2).to(boxes.dtype)


def _mlp(dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 512), nn.SiLU(), nn.Linear(512, 512), nn.SiLU(), nn.Linear(512, out_dim))


def _or_null(feature: Tensor | None, mask: Tensor | None, null: Tensor) -> Tensor:
    """``feature`` (batch, objects, dim) where ``mask`` (batch, objects) is 1, ``null`` (dim,) where it is 0."""
    if feature is None or mask is None:
        raise ValueError("grounding needs an embedding and a mask for each box: see BoxProjection.forward")
    mask = mask[..., None]
    return feature * mask + (1 - mask) * null


class BoxProjection(nn.Module):
    """Grounding tokens of boxes and what is in them: (batch, objects or 2 * objects, out_dim).

    ``with_images``: each object has a text and an image feature, and so two tokens.
    """

    def __init__(self, feature_dim: int, out_dim: int, *, with_images: bool = False) -> None:
        super().__init__()
        self.with_images = with_images
        if with_images:
            self.linears_text = _mlp(feature_dim + 64, out_dim)
            self.linears_image = _mlp(feature_dim + 64, out_dim)
            self.null_text_feature = nn.Parameter(torch.zeros(feature_dim))
            self.null_image_feature = nn.Parameter(torch.zeros(feature_dim))
        else:
            self.linears = _mlp(feature_dim + 64, out_dim)
            self.null_positive_feature = nn.Parameter(torch.zeros(feature_dim))
        self.null_position_feature = nn.Parameter(torch.zeros(64))

    def forward(
        self,
        boxes: Tensor,
        masks: Tensor,
        positive_embeddings: Tensor | None = None,
        phrases_masks: Tensor | None = None,
        image_masks: Tensor | None = None,
        phrases_embeddings: Tensor | None = None,
        image_embeddings: Tensor | None = None,
    ) -> Tensor:
        """``boxes`` (batch, objects, 4) in [0, 1]; masks (batch, objects); embeddings (…, feature_dim)."""
        place = _or_null(box_features(boxes), masks, self.null_position_feature)
        if not self.with_images:
            what = _or_null(positive_embeddings, masks, self.null_positive_feature)
            return self.linears(torch.cat([what, place], dim=-1))
        text = _or_null(phrases_embeddings, phrases_masks, self.null_text_feature)
        image = _or_null(image_embeddings, image_masks, self.null_image_feature)
        tokens = [
            self.linears_text(torch.cat([text, place], dim=-1)),
            self.linears_image(torch.cat([image, place], dim=-1)),
        ]
        return torch.cat(tokens, dim=1)
