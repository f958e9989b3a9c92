"""DeepFloyd IF's first stage: small pictures from a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langevin.pipelines.deepfloyd.base import IFBase
from langevin.pipelines.deepfloyd.given import END, MIDDLE, IFGiven
from langevin.pipelines.given import takes


@dataclass(frozen=True, kw_only=True)
class IFTextToImageGiven(IFGiven):
    """Arguments of :class:`IFPipeline`."""

    positional = f"prompt {MIDDLE} height width {END} clean_caption cross_attention_kwargs"


class IFPipeline(IFBase):
    """Pictures of 64 x 64 pixels from a text, made as pixels (Saharia et al. 2022, "Imagen", 2205.11487; the networks
    published as DeepFloyd IF). :class:`~langevin.IFSuperResolutionPipeline` makes them larger, and
    :class:`~langevin.IFCascade` does all of it in one call.

    Example:
        >>> from langevin import IFPipeline
        >>> pipe = IFPipeline.from_pretrained("DeepFloyd/IF-I-XL-v1.0", variant="fp16", torch_dtype="float16")
        >>> image = pipe("a photo of a corgi", seed=7).images[0]
    """

    _usual_guidance = 7.0

    @takes(IFTextToImageGiven)
    def __call__(self, given: IFTextToImageGiven) -> Any:
        """Make pictures."""
        return self.make(given)
