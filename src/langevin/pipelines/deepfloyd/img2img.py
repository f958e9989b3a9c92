"""Image to image with DeepFloyd IF: a small picture first, then the same larger, from the original once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from langevin.checks import Count, Share
from langevin.guiders.base import Guider
from langevin.guiders.image_start import ImageStart
from langevin.pipelines.deepfloyd.base import IFBase
from langevin.pipelines.deepfloyd.given import LARGE_END, MIDDLE, SMALL_END, IFGiven
from langevin.pipelines.deepfloyd.pictures import fitting, signed
from langevin.pipelines.deepfloyd.super_resolution import IFLargeBase, IFLargeGiven
from langevin.pipelines.given import takes


@dataclass(frozen=True, kw_only=True)
class IFImageToImageGiven(IFGiven):
    """Arguments of :class:`IFImg2ImgPipeline`.

    Args:
        image: PIL, brought to the model's size in its shorter side (or to ``height`` and ``width``); or arrays and
            tensors in [-1, 1]; or a list of them.
        strength: how far to go from it, 0 to 1: the share of the steps that are done.
        num_inference_steps: of a whole run; ``strength`` of them are done.
    """

    image: Any = field(default=None, kw_only=False)
    strength: Share = 0.7
    num_inference_steps: Count = 80

    positional = f"prompt image strength {MIDDLE} {SMALL_END}"


@dataclass(frozen=True, kw_only=True)
class IFFromOriginalGiven(IFLargeGiven):
    """What IF's pipelines take that make a picture larger towards an original.

    Args:
        original_image: the picture that the small one was made from; for its forms and size see the first stage.
        strength: how far to go from the original, 0 to 1: the share of the steps that are done.
        num_inference_steps: of a whole run; ``strength`` of them are done.
    """

    original_image: Any = None
    strength: Share = 0.8


@dataclass(frozen=True, kw_only=True)
class IFImageToImageLargeGiven(IFFromOriginalGiven):
    """Arguments of :class:`IFImg2ImgSuperResolutionPipeline`."""

    positional = f"image original_image strength prompt {MIDDLE} {LARGE_END}"


class IFImg2ImgPipeline(IFBase):
    """Small pictures from a picture and a text (SDEdit: Meng et al. 2022, 2108.01073).

    Example:
        >>> from langevin import IFImg2ImgPipeline
        >>> pipe = IFImg2ImgPipeline.from_pretrained("DeepFloyd/IF-I-XL-v1.0")
        >>> image = pipe("a fantasy landscape", image=picture, strength=0.7, seed=7).images[0]
    """

    _usual_guidance = 10.0

    @takes(IFImageToImageGiven)
    def __call__(self, given: IFImageToImageGiven) -> Any:
        """Make pictures."""
        return self.make(given)

    def prepared(self, given: Any) -> tuple[list[Guider], Sequence[int] | None]:
        pixels = original(self, given.image, "image", given)
        return [ImageStart(pixels, given.strength)], pixels.shape[-2:]


class IFImg2ImgSuperResolutionPipeline(IFLargeBase):
    """What :class:`IFImg2ImgPipeline` made, larger: begun from the original, with the small picture shown beside.

    Example:
        >>> from langevin import IFImg2ImgSuperResolutionPipeline
        >>> pipe = IFImg2ImgSuperResolutionPipeline.from_pretrained("DeepFloyd/IF-II-L-v1.0")
        >>> image = pipe(small, picture, prompt="a fantasy landscape", seed=7).images[0]
    """

    @takes(IFImageToImageLargeGiven)
    def __call__(self, given: IFImageToImageLargeGiven) -> Any:
        """Make pictures larger."""
        return self.make(given)

    def prepared(self, given: Any) -> tuple[list[Guider], Sequence[int] | None]:
        pixels = original(self, given.original_image, "original_image", given)
        return [ImageStart(pixels, given.strength), self.shown(given)], pixels.shape[-2:]


def original(pipe: IFBase, image: Any, name: str, given: IFGiven) -> Tensor:
    """The picture to begin with, in the size of those to be made."""
    return signed(image, name, fitting(pipe.unet.config.sample_size, given.height, given.width))
