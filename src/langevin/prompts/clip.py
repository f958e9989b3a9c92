"""Texts to embeddings with a CLIP tokenizer and text encoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def encode_clip(
    tokenizer: Any,
    text_encoder: Any,
    texts: Sequence[str],
    *,
    clip_skip: int | None = None,
    length: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Embeddings of each text, padded to the encoder's window.

    Args:
        clip_skip: how many of the encoder's last layers to leave out; the final norm is applied all the same.
        length: tokens per text; the tokenizer's window if None. Longer texts are cut, with a warning that names
            the words lost.

    Returns:
        ``(len(texts), length, dim)`` in the encoder's dtype.

    Raises:
        ValueError: if ``clip_skip`` leaves no layer.
    """
    length = length or tokenizer.model_max_length
    tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    _warn_of_lost_words(tokenizer, texts, length)
    config = text_encoder.config
    mask = tokens.attention_mask.to(device) if getattr(config, "use_attention_mask", False) else None
    ids = tokens.input_ids.to(device)
    if clip_skip is None:
        return text_encoder(ids, attention_mask=mask)[0]
    layers = config.num_hidden_layers
    if not 0 <= clip_skip <= layers:
        raise ValueError(
            f"clip_skip is {clip_skip}; this text encoder has {layers} layers, so 0 to {layers} are allowed"
        )
    hidden = text_encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
    return getattr(text_encoder, "text_model", text_encoder).final_layer_norm(hidden)


def _warn_of_lost_words(tokenizer: Any, texts: Sequence[str], length: int) -> None:
    for text in texts:
        if 4 * len(text) < length:  # cannot be too long: a token takes at least a quarter of a character
            continue
        ids = tokenizer(text, truncation=False, verbose=False).input_ids
        if len(ids) > length:
            lost = tokenizer.decode(ids[length - 1 : -1])
            logger.warning("The prompt is longer than the text encoder's %d tokens; not seen: %r", length, lost)


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
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> TextEncoding:
    """Encode the prompts of a call, or take embeddings that were given.

    Args:
        pictures: rows per prompt (``num_images_per_prompt``), interleaved.
        clip_skip_negative: leave layers out for the negative prompt too. Right, but not what users' existing
            pictures were made with, so off by default.

    Raises:
        ValueError: if counts or shapes do not fit together.
    """
    texts = [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
    count = len(texts) if prompt_embeds is None else prompt_embeds.shape[0]
    negatives: list[str] = []
    if with_negative and negative_prompt_embeds is None:
        negatives = _match_negative(negative_prompt, count)

    def encode(texts: Sequence[str], **options: Any) -> Tensor:
        return encode_clip(tokenizer, text_encoder, texts, device=device, **options)

    def ready(embeds: Tensor) -> Tensor:
        return embeds.to(device=device, dtype=dtype).repeat_interleave(pictures, dim=0)

    skip_negative = clip_skip if clip_skip_negative else None
    positive, negative = prompt_embeds, negative_prompt_embeds
    if positive is None and negatives and skip_negative == clip_skip:
        negative, positive = encode(negatives + texts, clip_skip=clip_skip).split([len(negatives), len(texts)])
    if positive is None:
        positive = encode(texts, clip_skip=clip_skip)
    if not with_negative:
        return TextEncoding(ready(positive), None)
    if negative is None:
        negative = encode(negatives, clip_skip=skip_negative, length=positive.shape[1])
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
