"""Texts to embeddings with a tokenizer and a text encoder, in one function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from langevin.prompts.readers.base import How
from langevin.prompts.readers.clip import CLIPReader


class TextEncoding:
    """Prompt and negative prompt of one call, as embeddings ready for the loop.

    Attributes:
        positive: ``(prompts · pictures, tokens, dim)``, each prompt's rows adjacent.
        negative: the same shape, or None where no negative branch was asked for.
    """

    def __init__(self, positive: Tensor, negative: Tensor | None) -> None:
        self.positive = positive
        self.negative = negative


def encode_prompts(
    tokenizer: Any,
    text_encoder: Any,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None = None,
    *,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    with_negative: bool = True,
    pictures: int = 1,
    clip_skip: int | None = None,
    clip_skip_negative: bool = False,
    prompt_weighting: str = "compel",
    long_prompts: Literal["chunk", "cut"] = "chunk",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> TextEncoding:
    """The embeddings of prompts that do not change on the way, all padded to the longest with the empty prompt.

    The arguments, and what is raised, are those of :meth:`langevin.prompts.readers.base.TextReader.read`, which also
    says how many tokens of each row count.
    """
    branches = CLIPReader(tokenizer, text_encoder, device=device, dtype=dtype).encode(
        prompt,
        negative_prompt,
        How(clip_skip, clip_skip_negative, prompt_weighting, long_prompts),
        prompt_embeds,
        negative_prompt_embeds,
        pictures=pictures,
        with_negative=with_negative,
    )
    embeds = {name: told["encoder_hidden_states"] for name, told in branches.items()}
    return TextEncoding(embeds["positive"], embeds.get("negative"))
