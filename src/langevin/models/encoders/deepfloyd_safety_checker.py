"""DeepFloyd IF's safety checker: tells which pictures are not safe for work, and which carry somebody's watermark.

Imported only when a checkpoint has one, since it is built on transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPVisionModelWithProjection, PreTrainedModel


class IFSafetyChecker(PreTrainedModel):
    """Two linear judges over CLIP's vector of a picture (LAION's detectors).

    Args:
        config: of CLIP; its ``vision_config`` is read.

    Example:
        >>> checker = IFSafetyChecker.from_pretrained("DeepFloyd/IF-I-XL-v1.0", subfolder="safety_checker")
        >>> checker.flag(torch.rand(2, 3, 224, 224))
        [(False, False), (False, True)]
    """

    config_class = CLIPConfig
    library_name = "deepfloyd_if"
    main_input_name = "clip_input"
    _no_split_modules = ["CLIPEncoderLayer"]

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        vision: Any = config.vision_config
        self.vision_model = CLIPVisionModelWithProjection(vision)
        self.p_head = nn.Linear(vision.projection_dim, 1)
        self.w_head = nn.Linear(vision.projection_dim, 1)
        self.post_init()

    @torch.no_grad()
    def flag(self, clip_input: Tensor, p_threshold: float = 0.5, w_threshold: float = 0.5) -> list[tuple[bool, bool]]:
        """Which of the pictures ``(batch, 3, size, size)``, prepared by the feature extractor, are not safe for work,
        and which have a watermark: those that a judge puts above its threshold.
        """
        vectors = self.vision_model(pixel_values=clip_input).image_embeds
        unsafe = self.p_head(vectors)[:, 0] > p_threshold
        marked = self.w_head(vectors)[:, 0] > w_threshold
        return list(zip(unsafe.tolist(), marked.tolist(), strict=True))

    @torch.no_grad()
    def forward(
        self, clip_input: Tensor, images: Any, p_threshold: float = 0.5, w_threshold: float = 0.5
    ) -> tuple[Any, list[bool], list[bool]]:
        """Black out the flagged ones of ``images`` (batch first, tensor or numpy); also returns both kinds of flags."""
        flags = self.flag(clip_input, p_threshold, w_threshold)
        images = images.clone() if isinstance(images, Tensor) else images.copy()
        for k, either in enumerate(map(any, flags)):
            if either:
                images[k] = 0
        return images, [unsafe for unsafe, _ in flags], [marked for _, marked in flags]
