"""Text to image with Stable Diffusion, with no word left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from langevin.checks import Range
from langevin.guiders.attend_and_excite import AttendAndExcite
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import TextGiven, middle
from langevin.prompts.chunks import chunk_text
from langevin.prompts.encoder import PromptEncoder
from langevin.prompts.tree import Text
from langevin.prompts.weighting import grammar

_IP_ADAPTER = "ip_adapter_image ip_adapter_image_embeds"
THRESHOLDS = {0: 0.05, 10: 0.5, 20: 0.8}


@dataclass(frozen=True, kw_only=True)
class AttendAndExciteGiven(TextGiven):
    """Arguments of :class:`StableDiffusionAttendAndExcitePipeline`.

    Args:
        token_indices: places of the words that must be in the picture; see
            :meth:`StableDiffusionAttendAndExcitePipeline.get_indices`. Or a list of places for each prompt.
        max_iter_to_alter: how many steps move x.
        thresholds: step -> how much each word must be looked at after it, 0 to 1.
        scale_factor: how far x is moved; 0 is off.
        attn_res: rows and columns of the attention maps that count, (16, 16) for 512 pixels. None: the picture's
            width, then its height, over 4 latents, as in the reference; that its maps are then read the wrong way
            round matters to pictures that are not square.
        scaled_input: see :class:`langevin.AttendAndExcite`; the reference's False matters to schedulers that count
            in σ.
    """

    token_indices: Sequence[int] | Sequence[Sequence[int]] | None = field(default=None, kw_only=False)
    max_iter_to_alter: Annotated[int, Range(0)] = 25
    thresholds: Mapping[int, float] = field(default_factory=THRESHOLDS.copy)
    scale_factor: Annotated[float, Range(0)] = 20
    attn_res: tuple[int, int] | None = (16, 16)
    scaled_input: bool = False

    positional = (
        f"prompt token_indices height width num_inference_steps {middle(without=_IP_ADAPTER)} "
        "callback callback_steps cross_attention_kwargs max_iter_to_alter thresholds scale_factor attn_res clip_skip"
    )


class StableDiffusionAttendAndExcitePipeline(StableDiffusionBase):
    """Pictures from a prompt, of which named words get a place in the picture each (Chefer et al. 2023, 2301.13826).

    Example:
        >>> from langevin import StableDiffusionAttendAndExcitePipeline
        >>> pipe = StableDiffusionAttendAndExcitePipeline.from_pretrained("langevin/shapes")
        >>> pipe.get_indices("a red circle and a blue star")
        {0: '<|startoftext|>', 1: 'a</w>', 2: 'red</w>', 3: 'circle</w>', 4: 'and</w>', 5: 'a</w>', …}
        >>> call = dict(token_indices=[3, 7], attn_res=(8, 8), num_inference_steps=20, seed=7)
        >>> image = pipe("a red circle and a blue star", **call).images[0]
    """

    _scheduler_needs: Mapping[str, Any] = {}

    def get_indices(self, prompt: str, prompt_weighting: str = "compel") -> dict[int, str]:
        """The prompt's tokens by their place, beginning and end included, for ``token_indices``.

        Signs of weight are read as the call reads them, and are no tokens; of a prompt longer than the encoder's window
        the marks between the windows count too.

        Raises:
            ValueError: the prompt is put together from several texts (``.blend()``, ``.and()``).
        """
        parse, arithmetic = grammar(prompt_weighting)
        parts = parse(prompt).parts
        if len(parts) != 1 or not isinstance(parts[0], Text):
            raise ValueError(
                f"{prompt!r} is put together from several texts; the places of its tokens are not one list"
            )
        encoder = PromptEncoder(self.tokenizer, self.text_encoder)
        chunks = chunk_text(encoder, parts[0], arithmetic.part, words=arithmetic.words)
        padding = encoder.room - len(chunks.tokens[-1])
        ids = chunks.ids().flatten().tolist()
        return dict(enumerate(encoder.pieces(ids[: len(ids) - padding])))

    @takes(AttendAndExciteGiven)
    def __call__(self, given: AttendAndExciteGiven) -> Any:
        """Make pictures."""
        attn_res = given.attn_res
        if attn_res is None:
            side = 4 * self.vae_scale_factor
            rows, columns = self.size(given.height, given.width)
            attn_res = math.ceil(columns / side), math.ceil(rows / side)
        guider = AttendAndExcite(
            given.token_indices or (),
            given.max_iter_to_alter,
            given.thresholds,
            given.scale_factor,
            attn_res,
            given.scaled_input,
        )
        return self.generate(given, [guider])
