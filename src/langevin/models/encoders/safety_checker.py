"""The safety checker of Stable Diffusion 1: tells which pictures come near a list of unwanted concepts.

Imported only when a checkpoint has one, since it is built on transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPVisionModel, PreTrainedModel

CONCEPTS, SPECIAL_CONCEPTS = 17, 3


class StableDiffusionSafetyChecker(PreTrainedModel):
    """CLIP image embeddings held against concept embeddings by cosine, each concept with a threshold of its own.

    A picture is flagged if it is nearer to any of 17 concepts than that concept's threshold. If it is near any of 3
    special concepts, all thresholds come down by 0.01.
    """

    config_class = CLIPConfig
    library_name = "stable_diffusion"
    main_input_name = "clip_input"
    _no_split_modules = ["CLIPEncoderLayer"]

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        dim: Any = config.projection_dim
        vision: Any = config.vision_config
        self.vision_model = CLIPVisionModel(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, dim, bias=False)
        for name, count in (("concept_embeds", CONCEPTS), ("special_care_embeds", SPECIAL_CONCEPTS)):
            setattr(self, name, nn.Parameter(torch.ones(count, dim), requires_grad=False))
            setattr(self, f"{name}_weights", nn.Parameter(torch.ones(count), requires_grad=False))
        self.post_init()

    @torch.no_grad()
    def flag(self, clip_input: Tensor) -> list[bool]:
        """Which of the pictures ``(batch, 3, size, size)``, prepared by the feature extractor, come too near."""
        embeds = self.visual_projection(self.vision_model(clip_input)[1]).float()

        def excess(name: str) -> Tensor:
            concepts, thresholds = getattr(self, name), getattr(self, f"{name}_weights")
            return nn.functional.normalize(embeds) @ nn.functional.normalize(concepts.float()).T - thresholds.float()

        def above(score: Tensor) -> Tensor:  # decided at three decimals
            return (torch.round(score, decimals=3) > 0).any(dim=1)

        special = above(excess("special_care_embeds"))
        score = excess("concept_embeds") + 0.01 * special[:, None]
        return above(score).tolist()

    @torch.no_grad()
    def forward(self, clip_input: Tensor, images: Tensor) -> tuple[Tensor, list[bool]]:
        """Black out the flagged ones of ``images`` (batch first, tensor or numpy); also returns the flags."""
        flags = self.flag(clip_input)
        images = images.clone() if isinstance(images, Tensor) else images.copy()
        for k, flagged in enumerate(flags):
            if flagged:
                images[k] = 0
        return images, flags


SafeStableDiffusionSafetyChecker = StableDiffusionSafetyChecker
"""What checkpoints of Safe Latent Diffusion call it. The weights and the judgement are the same; it is saved under the
usual name."""
