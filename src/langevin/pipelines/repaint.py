"""Inpainting with a network that makes pictures and knows nothing of inpainting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from langevin.checks import Count, Share
from langevin.media.images import VaeImageProcessor, masks, pictures
from langevin.pipelines.given import Given, takes
from langevin.pipelines.unconditional import UnconditionalPipeline


@dataclass(frozen=True, kw_only=True)
class RePaintGiven(Given):
    """Arguments of :class:`RePaintPipeline`.

    Args:
        image: the picture: PIL, numpy or tensor in [0, 1], or a list of them; floats below 0 count as [-1, 1]. Its
            sides are rounded down to multiples of 8. As many pictures are made.
        mask_image: what is white, from 0.5 up, is *kept*, and what is black is made anew; of one picture, or one each.
            Tensors and arrays may have values between, which mix.
        num_inference_steps: levels between noise and picture; the network is asked more often, since the run goes back.
        eta: 0 for DDIM's steps, 1 for DDPM's.
        jump_length, jump_n_sample: how many levels the run goes back up, and how often it passes there.
        as_published: let the way up lead to the level that the network is told next; False is as the reference does.
            See :class:`langevin.RePaintScheduler`.
    """

    image: Any = field(default=None, kw_only=False)
    mask_image: Any = field(default=None, kw_only=False)
    num_inference_steps: Count = 250
    eta: Share = 0.0
    jump_length: Count = 10
    jump_n_sample: Count = 10
    as_published: bool = False

    positional = "image mask_image num_inference_steps eta jump_length jump_n_sample generator output_type return_dict"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image", "mask_image"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing; give a PIL image, an array or a tensor, or a list of them")


class RePaintPipeline(UnconditionalPipeline):
    """Makes anew what a mask leaves of a picture, with an unconditional network (RePaint: Lugmayr et al. 2022,
    2201.09865); any scheduler it is given is turned into its own.

    Example:
        >>> from langevin import RePaintPipeline
        >>> pipe = RePaintPipeline.from_pretrained("langevin/shapes-unconditional")
        >>> image = pipe(picture, mask, num_inference_steps=50, seed=7).images[0]
    """

    def __init__(self, unet: Any, scheduler: Any) -> None:
        from langevin.schedulers.timesteps.repaint import RePaintScheduler

        super().__init__(unet, RePaintScheduler.from_config(scheduler.config))

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {"image": True, "mask_image": True}

    @takes(RePaintGiven)
    def __call__(self, given: RePaintGiven) -> Any:
        """Make pictures."""
        original = VaeImageProcessor().preprocess(pictures(given.image))
        mask = self._mask(given.mask_image, original).to(self._execution_device, self.unet.dtype)
        return self.generate(
            given,
            len(original),
            original.shape[2:],
            original=original.to(mask),
            mask=mask,
            eta=given.eta,
            jump_length=given.jump_length,
            jump_n_sample=given.jump_n_sample,
            as_published=given.as_published,
        )

    def _mask(self, mask_image: Any, original: Tensor) -> Tensor:
        """``(1 or pictures, 1, height, width)`` in [0, 1]."""
        given = masks(mask_image)
        binary = isinstance(given, list)
        processor = VaeImageProcessor(do_normalize=False, do_binarize=binary, do_convert_grayscale=True)
        height, width = original.shape[2:]
        mask = processor.preprocess(given, height=height, width=width)
        if len(mask) not in (1, len(original)):
            raise ValueError(f"{len(mask)} masks for {len(original)} pictures; give one, or one each")
        return mask
