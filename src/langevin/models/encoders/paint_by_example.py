"""What Paint by Example is told: one token for a picture, through a bottleneck, so that it is understood and not copied
(Yang et al. 2023, 2211.13227, section 3.2).

Imported only when a checkpoint has one, since it is built on transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel

from langevin.models.layers.transformer import PlainBlock


class PaintByExampleMapper(nn.Module):
    """A few transformer blocks of one head over the picture's token, one for every five layers of the picture model.

    Args:
        config: of the picture model.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, layers = config.hidden_size, (config.num_hidden_layers + 1) // 5
        self.blocks = nn.ModuleList(PlainBlock(dim, heads=1, head_dim=dim) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (pictures, tokens, dim); its shape is kept."""
        for block in self.blocks:
            x = block(x)
        return x


class PaintByExampleImageEncoder(PreTrainedModel):
    """CLIP's vector of a picture, mapped to one token; and the token for no picture, ``uncond_vector``.

    Args:
        config: of a ``CLIPVisionModel``.
        proj_size: width of the token; the config's ``projection_dim``, else 768, if None.
    """

    config_class = CLIPVisionConfig
    library_name = "paint_by_example"
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _no_split_modules = ["CLIPEncoderLayer"]

    def __init__(self, config: Any, proj_size: int | None = None) -> None:
        super().__init__(config)
        dim = config.hidden_size
        self.proj_size = int(proj_size or getattr(config, "projection_dim", None) or 768)
        self.model = CLIPVisionModel(config)
        self.mapper = PaintByExampleMapper(config)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.proj_out = nn.Linear(dim, self.proj_size)
        self.uncond_vector = nn.Parameter(torch.randn(1, 1, self.proj_size))
        self.post_init()

    def forward(self, pixel_values: Tensor, return_uncond_vector: bool = False) -> Any:
        """Read pictures.

        Args:
            pixel_values: ``(pictures, 3, size, size)``, as a feature extractor leaves them.
            return_uncond_vector: give the token for no picture, ``(1, 1, proj_size)``, too.

        Returns:
            Tokens ``(pictures, 1, proj_size)``, or a pair.
        """
        vectors = self.model(pixel_values=pixel_values).pooler_output
        tokens = self.proj_out(self.final_layer_norm(self.mapper(vectors[:, None])))
        return (tokens, self.uncond_vector) if return_uncond_vector else tokens
