"""Texts to embeddings with a tokenizer and a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from langevin.prompts.encoder import PromptEncoder
from langevin.prompts.weighting import Encoding, embed_trees, grammar

_LONG_PROMPTS = ("chunk", "cut")


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
    """Encode the prompts of a call, or take embeddings that were given.

    Prompt and negative prompt get the same number of windows of the encoder: what is shorter is filled up with the
    empty prompt, given embeddings too if they are whole windows.

    Args:
        pictures: rows per prompt (``num_images_per_prompt``), interleaved.
        clip_skip_negative: leave layers out for the negative prompt too. Right, but not what users' existing
            pictures were made with, so off by default.
        prompt_weighting: how prompts are read, and what weights do: a name in
            :data:`langevin.prompts.weighting.GRAMMARS`.
        long_prompts: "chunk" encodes a prompt longer than the encoder's window in several, "cut" only its beginning,
            as the reference does, and names the words lost in a warning.

    Raises:
        ValueError: if counts or shapes do not fit together, or a choice is none.
        PromptSyntaxError: if the grammar does not allow a prompt; a ValueError too.
    """
    grammar(prompt_weighting)
    if long_prompts not in _LONG_PROMPTS:
        raise ValueError(f"long_prompts is {long_prompts!r}; allowed: {', '.join(map(repr, _LONG_PROMPTS))}")
    texts = [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
    count = len(texts) if prompt_embeds is None else prompt_embeds.shape[0]
    negatives: list[str] = []
    if with_negative and negative_prompt_embeds is None:
        negatives = _match_negative(negative_prompt, count)

    def ready(embeds: Tensor) -> Tensor:
        return embeds.to(device=device, dtype=dtype).repeat_interleave(pictures, dim=0)

    positive, negative = prompt_embeds, negative_prompt_embeds
    if positive is None or (with_negative and negative is None):
        window = tokenizer.model_max_length
        if positive is not None:
            window = min(window, positive.shape[1])  # given embeddings may be shorter than the encoder's window
        encoder = PromptEncoder(tokenizer, text_encoder, window=window, device=device)
        encode = Encoding(encoder, clip_skip)
        encode_negative = encode if clip_skip_negative or clip_skip is None else Encoding(encoder)

        def embed(encode: Encoding, texts: Sequence[str]) -> list[Tensor]:
            parse, arithmetic = grammar(prompt_weighting)
            return embed_trees(encode, [parse(text) for text in texts], arithmetic, cut=long_prompts == "cut")

        own = texts if positive is None else []
        if encode_negative is encode:
            both = embed(encode, negatives + own)
            ns, ps = both[: len(negatives)], both[len(negatives) :]
        else:
            ns, ps = embed(encode_negative, negatives), embed(encode, own)
        ps = ps if positive is None else [positive]
        ns = [negative] if with_negative and negative is not None else ns
        longest = max(embeds.shape[1] for embeds in ns + ps)
        positive = torch.cat([encode.padded(embeds, longest) for embeds in ps])
        negative = torch.cat([encode_negative.padded(embeds, longest) for embeds in ns]) if ns else None
    if not with_negative:
        return TextEncoding(ready(positive), None)
    assert negative is not None
    if negative.shape != positive.shape:
        raise ValueError(
            f"negative_prompt_embeds is {tuple(negative.shape)} and prompt_embeds {tuple(positive.shape)}; "
            "both need the same shape"
        )
    return TextEncoding(ready(positive), ready(negative))


def _match_negative(negative_prompt: str | Sequence[str] | None, count: int) -> list[str]:
    """One negative text per prompt."""
    if negative_prompt is None or isinstance(negative_prompt, str):
        return [negative_prompt or ""] * count
    negatives = list(negative_prompt)
    if len(negatives) == 1:
        negatives *= count
    if len(negatives) != count:
        raise ValueError(f"{len(negatives)} negative prompts for {count} prompts; give one, or one each")
    return negatives
