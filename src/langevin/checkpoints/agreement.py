"""Whether the parts of one pipeline belong together: what one hands over, the next one must be able to take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langevin.checkpoints.errors import CheckpointError


def check(parts: Mapping[str, Any], root: Path) -> None:
    """Hold the parts that were loaded against each other. What a part does not say is not judged.

    Args:
        parts: by the names that Stable Diffusion gives them; others are passed over.
        root: the checkpoint, for messages.

    Raises:
        CheckpointError: the UNet's cross-attention is of another width than the text encoder's states, the UNet's
            channels are not the autoencoder's latents, or the tokenizer has words that the text encoder lacks.
    """
    unet, vae, text, tokenizer = (parts.get(name) for name in ("unet", "vae", "text_encoder", "tokenizer"))
    width, states = _number(unet, "cross_attention_dim"), _number(text, "hidden_size")
    projected = _setting(unet, "encoder_hid_dim_type") is not None or _setting(unet, "encoder_hid_dim") is not None
    is_clip = type(text).__name__ == "CLIPTextModel"  # others hand over something else than their hidden states
    if is_clip and not projected and width and states and width != states:
        raise CheckpointError(
            f"The parts of {root} do not belong together: the unet reads texts of width {width} (cross_attention_dim), "
            f"the text_encoder gives {states} (hidden_size); use the text encoder that the unet was trained with."
        )
    painted, latents = _number(unet, "out_channels"), _number(vae, "latent_channels")
    if painted and _number(unet, "time_cond_proj_dim") and painted == (latents or 0) + 1:
        painted = latents  # the latent upscaler's paints an estimate of its own error too
    if painted and latents and painted not in (latents, 2 * latents):
        raise CheckpointError(
            f"The parts of {root} do not belong together: the unet paints {painted} channels (out_channels), the vae "
            f"reads {latents} (latent_channels); use the vae that the unet was trained with."
        )
    known, last = _number(text, "vocab_size"), _last_token(tokenizer)
    if known and last is not None and last >= known:
        raise CheckpointError(
            f"The parts of {root} do not belong together: the tokenizer has words up to number {last}, the "
            f"text_encoder's vocabulary ends at {known - 1} (vocab_size); use the tokenizer that belongs to it."
        )


def _setting(part: Any, name: str) -> Any:
    config = getattr(part, "config", None)
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _number(part: Any, name: str) -> int | None:
    """A setting that is a whole number, or a list of the same one; None where it is anything else."""
    value = _setting(part, name)
    if isinstance(value, (list, tuple)) and len(set(map(str, value))) == 1:
        value = value[0]
    return value if type(value) is int else None


def _last_token(tokenizer: Any) -> int | None:
    """The largest number that a tokenizer gives to a word; None where it does not say."""
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
    return max(vocabulary.values(), default=None) if isinstance(vocabulary, Mapping) else None
