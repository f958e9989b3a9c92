"""Text to image with Stable Diffusion, pushed along directions that texts name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from langevin.checks import Range, Share
from langevin.guiders.semantic import SemanticGuidance, Steps
from langevin.outputs import SemanticStableDiffusionPipelineOutput
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.text_to_image import TextToImageGiven


@dataclass(frozen=True, kw_only=True)
class SemanticGiven(TextToImageGiven):
    """Arguments of :class:`SemanticStableDiffusionPipeline`.

    Args:
        editing_prompt: a text for each edit, or one alone.
        editing_prompt_embeddings: embeddings in their place, ``(edits, tokens, dim)``.
        reverse_editing_direction: away from what an edit names instead of towards it.
        edit_guidance_scale: how strongly to go there.
        edit_warmup_steps, edit_cooldown_steps: how many network calls leave the picture alone at first, and from which
            on they do again; None is never.
        edit_threshold: the share of places that an edit leaves alone, 0 to 1.
        edit_momentum_scale, edit_mom_beta: how much of the last changes is added again, and how long it is remembered.
        edit_weights: how much each edit counts.
        sem_guidance: what to add at each network call, ready made: that of another call's output.
    """

    editing_prompt: str | Sequence[str] | None = None
    editing_prompt_embeddings: Tensor | None = None
    reverse_editing_direction: bool | Sequence[bool] = False
    edit_guidance_scale: float | Sequence[float] = 5
    edit_warmup_steps: Steps | Sequence[Steps] = 10
    edit_cooldown_steps: Steps | Sequence[Steps] | None = None
    edit_threshold: Share | Sequence[Share] = 0.9
    edit_momentum_scale: Annotated[float, Range(0)] = 0.1
    edit_mom_beta: Share = 0.4
    edit_weights: Sequence[float] | None = None
    sem_guidance: Sequence[Tensor | None] | None = None

    positional = (
        "prompt height width num_inference_steps guidance_scale negative_prompt num_images_per_prompt eta generator "
        "latents output_type return_dict callback callback_steps editing_prompt editing_prompt_embeddings "
        "reverse_editing_direction edit_guidance_scale edit_warmup_steps edit_cooldown_steps edit_threshold "
        "edit_momentum_scale edit_mom_beta edit_weights sem_guidance"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.guider  # noqa: B018  what it refuses is refused before anything is done

    @property
    def guider(self) -> SemanticGuidance:
        return SemanticGuidance(
            self.editing_prompt,
            self.reverse_editing_direction,
            self.edit_guidance_scale,
            self.edit_warmup_steps,
            self.edit_cooldown_steps,
            self.edit_threshold,
            self.edit_momentum_scale,
            self.edit_mom_beta,
            self.edit_weights,
            self.editing_prompt_embeddings,
            self.sem_guidance,
        )


class SemanticStableDiffusionPipeline(StableDiffusionBase):
    """Text to image with semantic guidance (SEGA: Brack et al. 2023, 2301.12247).

    Example:
        >>> from langevin import SemanticStableDiffusionPipeline
        >>> pipe = SemanticStableDiffusionPipeline.from_pretrained("langevin/shapes")
        >>> call = dict(editing_prompt="blue", edit_warmup_steps=2, edit_threshold=0.8, num_inference_steps=20, seed=7)
        >>> image = pipe("a red circle", **call).images[0]
    """

    _scheduler_needs: Mapping[str, Any] = {}

    @takes(SemanticGiven)
    def __call__(self, given: SemanticGiven) -> SemanticStableDiffusionPipelineOutput:
        """Make pictures."""
        return self.generate(given, [given.guider])

    def hand_out(self, call: Any, pixels: Tensor) -> Any:
        made = super().hand_out(call, pixels)
        edits = next(g for g in call.setup.guiders if isinstance(g, SemanticGuidance))
        return SemanticStableDiffusionPipelineOutput(
            made.images, made.nsfw_content_detected, edits.added or None, edits.masks or None
        )
