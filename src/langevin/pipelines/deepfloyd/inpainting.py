"""Inpainting with DeepFloyd IF: a small picture first, then the same larger, with the original around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from langevin.checks import Count, Share
from langevin.guiders.base import Guider
from langevin.guiders.clean_surroundings import CleanSurroundings
from langevin.guiders.inpaint import Inpaint
from langevin.pipelines.deepfloyd.base import IFBase
from langevin.pipelines.deepfloyd.given import LARGE_END, MIDDLE, SMALL_END
from langevin.pipelines.deepfloyd.img2img import IFFromOriginalGiven, IFImageToImageGiven, original
from langevin.pipelines.deepfloyd.pictures import covered, fitting
from langevin.pipelines.deepfloyd.super_resolution import IFLargeBase
from langevin.pipelines.given import takes

Surroundings = Literal["clean", "noised"]


@dataclass(frozen=True, kw_only=True)
class IFInpaintingGiven(IFImageToImageGiven):
    """Arguments of :class:`IFInpaintingPipeline`.

    Args:
        mask_image: white is made anew, black is kept; from half white up it is white. PIL, array or tensor in [0, 1],
            or a list of them, of the picture's size.
        strength: how far to go from the picture under the mask, 0 to 1: the share of the steps that are done.
        surroundings: what the network sees outside the mask. "clean": the picture without noise, as in the reference,
            though it has only ever seen pictures with the same noise everywhere. "noised": the picture with the noise
            of each step; see :class:`~langevin.Inpaint`.
    """

    mask_image: Any = None
    strength: Share = 1.0
    num_inference_steps: Count = 50
    surroundings: Surroundings = "clean"

    positional = f"prompt image mask_image strength {MIDDLE} {SMALL_END}"


@dataclass(frozen=True, kw_only=True)
class IFInpaintingLargeGiven(IFFromOriginalGiven):
    """Arguments of :class:`IFInpaintingSuperResolutionPipeline`.

    Args:
        mask_image, surroundings: see :class:`IFInpaintingPipeline`.
    """

    mask_image: Any = None
    num_inference_steps: Count = 100
    noise_level: int = 0
    surroundings: Surroundings = "clean"

    positional = f"image original_image mask_image strength prompt {MIDDLE} {LARGE_END}"


class IFInpaintingPipeline(IFBase):
    """Small pictures in which what a mask covers is made anew.

    Example:
        >>> from langevin import IFInpaintingPipeline
        >>> pipe = IFInpaintingPipeline.from_pretrained("DeepFloyd/IF-I-XL-v1.0")
        >>> image = pipe("blue sunglasses", image=picture, mask_image=mask, seed=7).images[0]
    """

    _usual_guidance = 7.0

    @takes(IFInpaintingGiven)
    def __call__(self, given: IFInpaintingGiven) -> Any:
        """Make pictures."""
        return self.make(given)

    def prepared(self, given: Any) -> tuple[list[Guider], Sequence[int] | None]:
        pixels = original(self, given.image, "image", given)
        return [_masked(self, pixels, given)], pixels.shape[-2:]


class IFInpaintingSuperResolutionPipeline(IFLargeBase):
    """What :class:`IFInpaintingPipeline` made, larger: begun from the original, with the small picture shown beside.

    Example:
        >>> from langevin import IFInpaintingSuperResolutionPipeline
        >>> pipe = IFInpaintingSuperResolutionPipeline.from_pretrained("DeepFloyd/IF-II-L-v1.0")
        >>> image = pipe(small, picture, mask, prompt="blue sunglasses", seed=7).images[0]
    """

    @takes(IFInpaintingLargeGiven)
    def __call__(self, given: IFInpaintingLargeGiven) -> Any:
        """Make pictures larger."""
        return self.make(given)

    def prepared(self, given: Any) -> tuple[list[Guider], Sequence[int] | None]:
        pixels = original(self, given.original_image, "original_image", given)
        return [_masked(self, pixels, given), self.shown(given)], pixels.shape[-2:]


def _masked(pipe: IFBase, pixels: Tensor, given: Any) -> Inpaint:
    """What keeps the picture outside the mask."""
    mask = covered(given.mask_image, fitting(pipe.unet.config.sample_size, given.height, given.width))
    if mask.shape[-2:] != pixels.shape[-2:]:
        sizes = " and ".join(" x ".join(map(str, one.shape[-2:])) for one in (mask, pixels))
        raise ValueError(f"mask_image and the picture are {sizes}; give both in one size")
    kind = Inpaint if given.surroundings == "noised" else CleanSurroundings
    return kind(pixels, mask, given.strength)
