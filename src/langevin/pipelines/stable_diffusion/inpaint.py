"""Inpainting with Stable Diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor

from langevin.checks import Range, Share
from langevin.guiders.base import Guider, Setup
from langevin.guiders.inpaint import Inpaint
from langevin.media.images import Picture, VaeImageProcessor, masks
from langevin.media.load import opened
from langevin.pipelines.callbacks import View, guided
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import LatentPipeline, StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, TextGiven, middle
from langevin.randomness import Noise


@dataclass(frozen=True, kw_only=True)
class InpaintGiven(TextGiven):
    """Arguments of :class:`StableDiffusionInpaintPipeline`.

    Args:
        image: PIL, numpy or tensor in [0, 1], or a list of them; or latents. It is resized to the result's size.
        mask_image: what is white, from 0.5 up, is made anew. PIL, numpy ``([n, ]height, width[, 1])`` or tensor
            ``([n, ][1, ]height, width)`` in [0, 1], or a list of them.
        masked_image_latents: of the picture without what is masked, ``(n, channels, height / factor, width /
            factor)``, where they are known already.
        height, width: pixels of the result; the model's own size if None.
        padding_mask_crop: make only the mask's surroundings, so many pixels beyond it on each side, and lay the
            result over the picture, whose size it then has. One PIL image and one PIL mask of its size.
        strength: how far to go from the picture, 0 to 1: the share of the steps that are done. 1 does not look at
            what is under the mask, 0 gives the picture as the autoencoder sees it.
        num_inference_steps: of a whole run; ``strength`` of them are done.
        keep_outside: leave every pixel outside the mask as it was; the autoencoder changes those a little.
    """

    image: Any = field(default=None, kw_only=False)
    mask_image: Any = field(default=None, kw_only=False)
    masked_image_latents: Tensor | None = field(default=None, kw_only=False)
    padding_mask_crop: Annotated[int, Range(0)] | None = None
    strength: Share = 1.0
    keep_outside: bool = False

    positional = (
        "prompt image mask_image masked_image_latents height width padding_mask_crop strength num_inference_steps "
        f"timesteps sigmas {middle()} cross_attention_kwargs clip_skip {CALLBACKS}"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_image is None:
            raise ValueError(
                "mask_image is missing; give a PIL image, an array or a tensor in [0, 1], or a list of them"
            )
        if self.padding_mask_crop is not None:
            self._check_crop()

    def _check_crop(self) -> None:
        """Raises ValueError unless a crop can be laid back over the picture."""
        image, mask = self.image, self.mask_image
        for name, value in (("image", image), ("mask_image", mask)):
            if not isinstance(value, Image.Image):
                raise ValueError(f"{name} is a {type(value).__name__}; padding_mask_crop needs a PIL image")
        image, mask = opened(image), opened(mask, "mask_image")
        if image.size != mask.size:
            raise ValueError(
                f"image is {image.width} x {image.height}, mask_image {mask.width} x {mask.height}; "
                "padding_mask_crop needs the same size"
            )
        if self.output_type != "pil":
            raise ValueError(
                f"output_type is {self.output_type!r}; padding_mask_crop gives PIL images, output_type='pil'"
            )


class PerBranch(View):
    """A tensor as the reference shows it: repeated for both branches while there is guidance."""

    def show(self, setup: Setup, tensor: Tensor | None) -> Tensor | None:
        return torch.cat([tensor, tensor]) if tensor is not None and guided(setup) else tensor

    def take(self, setup: Setup, value: Tensor) -> Tensor:
        batch = setup.shape[0]
        return value[-batch:].to(setup.device, setup.dtype).expand(batch, -1, -1, -1)


MASK_VIEWS = {"mask": PerBranch(), "masked_image_latents": PerBranch()}


class InpaintBase(LatentPipeline):
    """Makes anew what a mask covers."""

    @cached_property
    def mask_processor(self) -> VaeImageProcessor:
        """Masks to tensors of 0 and 1; ``mask_processor.blur`` softens a mask's edge before."""
        return VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    def signed(self, image: Any, height: int | None = None, width: int | None = None) -> Tensor:
        """The same as :meth:`pixels`, for pipelines that are given tensors in [-1, 1]."""
        if not isinstance(image, Tensor):
            return self.pixels(image, height, width)
        batch = image if image.ndim == 4 else image[None]
        if batch.ndim != 4 or (batch.shape[1] == 3 and batch.abs().max() > 1):
            given = f"{tuple(image.shape)} in [{float(image.min()):g}, {float(image.max()):g}]"
            raise ValueError(f"image is a tensor {given}; (n, 3, height, width) in [-1, 1] is needed here")
        processor = self.image_processor
        latents = batch.shape[1] != 3
        return batch if latents else processor.resize(batch, *processor.get_default_height_width(batch, height, width))

    def inpaint(self, given: InpaintGiven, parts: Sequence[Guider], size: tuple[int, int]) -> Any:
        """Make pictures of this height and width, with further ``parts``."""
        height, width = size
        crop: dict[str, Any] = {}
        if given.padding_mask_crop is not None:
            (mask,) = masks([given.mask_image])
            box = self.mask_processor.get_crop_region(mask, width, height, pad=given.padding_mask_crop)
            crop = {"crops_coords": box, "resize_mode": "fill"}
        guider = InpaintAsPublished(
            self.pixels(given.image, height, width, **crop),
            self.mask_processor.preprocess(masks(given.mask_image), height=height, width=width, **crop),
            given.strength,
            given.masked_image_latents,
            given.keep_outside,
        )
        guider.shared_draws = given.generator is not None
        guider.show_masked = given.callback_on_step_end is not None
        if crop:  # all that knows places is cut alike
            frame = crop["crops_coords"], opened(given.image).size
            lists = {name: [one.within(*frame) for one in getattr(given, name)] for name in ("control", "guiders")}
            given = given.changed(**lists)
            parts = [part.within(*frame) for part in parts]
        made = self.generate(given, [guider, *parts], size)
        if crop:
            made.images = [self._laid_over(given, image, crop["crops_coords"]) for image in made.images]
        return made

    def _laid_over(self, given: InpaintGiven, made: Picture, box: tuple[int, int, int, int]) -> Picture:
        """What was made of a box, in the whole picture."""
        (mask,) = masks([given.mask_image])
        whole = self.image_processor.apply_overlay(mask, opened(given.image), made, box)
        return Picture(whole, made.settings)


class StableDiffusionInpaintPipeline(InpaintBase, StableDiffusionBase):
    """Make anew what a mask covers, with a network made for it (9 input channels) or any other (4).

    Example:
        >>> from langevin import StableDiffusionInpaintPipeline
        >>> pipe = StableDiffusionInpaintPipeline.from_pretrained("langevin/shapes-inpainting")
        >>> image = pipe("a blue circle", image=picture, mask_image=mask, num_inference_steps=20, seed=7).images[0]
    """

    _callback_tensor_inputs = [*StableDiffusionBase._callback_tensor_inputs, "mask", "masked_image_latents"]
    _callback_views = MASK_VIEWS
    _scheduler_needs = {"steps_offset": 1, "skip_prk_steps": True}

    @takes(InpaintGiven)
    def __call__(self, given: InpaintGiven) -> Any:
        """Make pictures."""
        return self.inpaint(given, [], self.size(given.height, given.width))


class InpaintAsPublished(Inpaint):
    """Draws as the reference's pipeline does, so that its pictures come out the same.

    Attributes:
        shared_draws: where there is a list of generators, only the first ones draw latents, one for each picture given,
            and what they drew is repeated: less than is needed to make each picture again alone.
        show_masked: make the masked picture's latents for callbacks even where the network does not take them. Without
            it, the reference draws them all the same.
    """

    shared_draws = False
    show_masked = False

    def encoded(self, setup: Setup, pixels: Tensor) -> Tensor:
        generators = setup.noise.generator
        if not self.shared_draws or not isinstance(generators, Sequence) or pixels.shape[1] == setup.codec.channels:
            return super().encoded(setup, pixels)
        drawing = Noise(generators[: len(pixels)])
        return setup.rows(setup.codec.encode(pixels.to(setup.device, setup.dtype), drawing).to(setup.dtype))

    def masked(self, setup: Setup, needed: bool) -> Tensor | None:
        masked = super().masked(setup, needed or self.show_masked)
        if masked is None and not needed and not setup.is_latents(self.image):
            generators, count = setup.noise.generator, max(len(self.image), len(self.mask))
            noise = setup.noise
            if isinstance(generators, Sequence):
                noise = Noise(generators[:count]) if self.shared_draws else noise
                count = count if self.shared_draws else setup.shape[0]
            noise.draw((count, *setup.shape[1:]), setup.dtype, setup.device)
        return masked
