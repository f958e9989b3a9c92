"""What a picture is about, told by way of a projection: unCLIP's decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step
from langevin.latest import Latest


@dataclass
class ProjectedEmbedding(Guider):
    """Makes of a text, its vector and a picture's CLIP vector what unCLIP's decoder is told: tokens, and class labels
    for its time embedding (Ramesh et al. 2022, 2204.06125, section 2.1).

    The text is projected at the network's door, so whatever changes a branch's text on the way is seen. The negative
    branch is told the vector that the projection has learned for no picture. Of several guiders of this kind the last
    counts: a caller's own takes the place of what a prior found.

    Args:
        embeds: vectors ``(n, dim)``; n is 1, one per prompt, or one per picture.
        text_proj: a :class:`langevin.UnCLIPTextProjModel`.

    Raises:
        ValueError: when the call begins, for another number or width of vectors.

    Example:
        >>> vectors = pipe.image_encoder(pixels).image_embeds
        >>> pipe("a cat", guiders=[ProjectedEmbedding(vectors, pipe.text_proj)])
    """

    embeds: Tensor
    text_proj: Any

    def prepare(self, setup: Setup) -> None:
        batch, count, dim = setup.shape[0], len(self.embeds), self.text_proj.config.clip_embeddings_dim
        prompts = batch // setup.pictures
        if self.embeds.ndim != 2 or self.embeds.shape[1] != dim or count not in (1, prompts, batch):
            given = tuple(self.embeds.shape)
            raise ValueError(f"image embeddings are {given}; ({prompts}, {dim}) is needed, one for each prompt")
        embeds = self.embeds.to(setup.device, setup.dtype).repeat_interleave(batch // count, dim=0)
        setup.told["image_embeds"] = embeds
        if "negative" in setup.branches:
            nothing = self.text_proj.learned_classifier_free_guidance_embeddings.to(embeds).expand_as(embeds)
            setup.branches["negative"] = {**setup.branches["negative"], "image_embeds": nothing}
        self._projected: Latest[dict[str, Tensor]] = Latest()
        others = [one for one in setup.inputs if not isinstance(getattr(one, "__self__", None), ProjectedEmbedding)]
        setup.inputs[:] = [*others, self.project]

    def project(self, x: Tensor, step: Step, names: Sequence[str], told: dict[str, Any]) -> dict[str, Any]:
        """``told`` with what the decoder takes in the text's and the picture's place."""
        parts = [told[name] for name in ("encoder_hidden_states", "proj_embedding", "image_embeds", "attention_mask")]
        rest = {name: value for name, value in told.items() if name not in ("proj_embedding", "image_embeds")}
        return {**rest, **self._projected(parts, lambda: self._project(*parts))}

    def _project(self, tokens: Tensor, vector: Tensor, picture: Tensor, seen: Tensor) -> dict[str, Tensor]:
        told, labels = self.text_proj(image_embeddings=picture, prompt_embeds=vector, text_encoder_hidden_states=tokens)
        extra = told.shape[1] - tokens.shape[1]
        return {
            "encoder_hidden_states": told,
            "class_labels": labels,
            "attention_mask": F.pad(seen, (extra, 0), value=True),
        }
