"""Versatile Diffusion with all its flows that make pictures: Xu, Wang, Zhang, Wang & Shi 2022 (2211.08332)."""

from __future__ import annotations

from typing import Any, TypeVar

from langevin.pipelines.given import takes
from langevin.pipelines.versatile.base import AllParts, VersatileBase
from langevin.pipelines.versatile.dual_guided import VersatileDiffusionDualGuidedPipeline, VersatileDualGiven
from langevin.pipelines.versatile.image_variation import (
    VersatileDiffusionImageVariationPipeline,
    VersatileVariationGiven,
)
from langevin.pipelines.versatile.text_to_image import VersatileDiffusionTextToImagePipeline, VersatileTextGiven

Flow = TypeVar("Flow", bound=VersatileBase)


class VersatileDiffusionPipeline(AllParts):
    """Versatile Diffusion (Xu, Wang, Zhang, Wang & Shi 2022, 2211.08332): one model that makes pictures from a text,
    from a picture, or from both. The three share all parts, and none changes them.

    Example:
        >>> from langevin import VersatileDiffusionPipeline
        >>> pipe = VersatileDiffusionPipeline.from_pretrained("shi-labs/versatile-diffusion")
        >>> image = pipe.text_to_image("an astronaut riding a horse on mars", seed=7).images[0]
        >>> images = pipe.image_variation(image, num_images_per_prompt=3, seed=8).images
        >>> image = pipe.dual_guided("a red car in the sun", image, text_to_image_strength=0.75, seed=9).images[0]
    """

    def flow(self, kind: type[Flow]) -> Flow:
        """One of the flows as a pipeline over the same parts, which also rest and run where this one's do."""
        made = kind.from_pipe(self)
        made.__dict__.update({n: self.__dict__[n] for n in ("_hooks", "_offload_device") if n in self.__dict__})
        made.__dict__["call_begins"] = self.call_begins  # so that this pipeline can stop its calls
        return made

    @takes(VersatileVariationGiven)
    def image_variation(self, given: VersatileVariationGiven) -> Any:
        """Make variations of a picture: :class:`VersatileDiffusionImageVariationPipeline`.

        Raises:
            ValueError: for arguments that do not fit together, in one line that says what is allowed.
        """
        return self.flow(VersatileDiffusionImageVariationPipeline).generate(given)

    @takes(VersatileTextGiven)
    def text_to_image(self, given: VersatileTextGiven) -> Any:
        """Make pictures from texts: :class:`VersatileDiffusionTextToImagePipeline`.

        Raises:
            ValueError: for arguments that do not fit together, in one line that says what is allowed.
        """
        return self.flow(VersatileDiffusionTextToImagePipeline).generate(given)

    #: ``pipe("a cat")`` is text to image; the reference's has only the methods
    __call__ = text_to_image

    @takes(VersatileDualGiven)
    def dual_guided(self, given: VersatileDualGiven) -> Any:
        """Make pictures from a text and a picture at once: :class:`VersatileDiffusionDualGuidedPipeline`.

        Raises:
            ValueError: for arguments that do not fit together, in one line that says what is allowed.
        """
        return self.flow(VersatileDiffusionDualGuidedPipeline).generate(given)
