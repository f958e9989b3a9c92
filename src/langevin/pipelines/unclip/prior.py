"""unCLIP's prior as a stage of a call: from texts to the vectors of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langevin.checks import Count
from langevin.codecs.pixels import PlainCodec
from langevin.guiders.base import Guider
from langevin.guiders.classifier_free import AnyGuidance, ClassifierFreeGuidance
from langevin.pipelines.call import Call
from langevin.pipelines.given import Given
from langevin.prompts.readers.base import Reading
from langevin.prompts.readers.pooled import PooledReader

CLIP_TEXT = {"encoder_hidden_states": "tokens", "proj_embedding": "text_embeds", "attention_mask": "filled"}
"""What a prior is told of a text, and of which of CLIP's outputs."""


@dataclass(frozen=True, kw_only=True)
class PriorGiven(Given):
    """What calls with a prior take.

    Args:
        prior_num_inference_steps: of the prior's run.
        prior_guidance_scale: how strictly the prior follows the prompt; 1 is off.
        prior_latents: the noise that the prior begins with, ``(pictures, dim)``.
    """

    prior_num_inference_steps: Count = 25
    prior_guidance_scale: float = 4.0
    prior_latents: Tensor | None = None


def clip_reader(tokenizer: Any, text_encoder: Any, device: torch.device | str, dtype: torch.dtype) -> PooledReader:
    """Turns texts into what a prior is told. It takes one window of the text encoder, and no more."""
    return PooledReader(tokenizer, text_encoder, outputs=CLIP_TEXT, one_window=True, device=device, dtype=dtype)


def guidance_of(text: Reading, scale: float) -> ClassifierFreeGuidance:
    """The guidance of a stage that is told this. Where another stage of the call has made a negative branch needed, a
    scale below 1 counts too, as in the reference.
    """
    return (AnyGuidance if "negative" in text.branches else ClassifierFreeGuidance)(scale)


def picture_vectors(
    call: Call, prior: Any, scheduler: Any, text: Reading, options: Mapping[str, Any] | None = None
) -> Tensor:
    """The prior's stage: CLIP's vectors of pictures that the texts might belong to, ``(pictures, dim)``.

    Args:
        call: of a pipeline whose arguments are a :class:`PriorGiven` with ``num_images_per_prompt``.
        prior, scheduler: a :class:`~langevin.PriorTransformer`, and what plans its run.
        text: by a :func:`clip_reader`.
        options: of the scheduler's run.
    """
    given: Any = call.given
    edits: list[Guider] = [] if text.guider is None else [text.guider]
    stage = call.stage(
        prior,
        scheduler,
        (text.batch, prior.config.embedding_dim),
        text.branches,
        [*edits, guidance_of(text, given.prior_guidance_scale)],
        steps=given.prior_num_inference_steps,
        options=options,
        codec=PlainCodec(),
        dtype=text.dtype,
        latents=given.prior_latents,
        name="prior",
        encode_text=text.again,
        pictures=given.num_images_per_prompt,
    )
    return prior.post_process_latents(call.denoise(stage))
