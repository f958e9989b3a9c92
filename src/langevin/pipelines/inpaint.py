"""Inpainting with Stable Diffusion."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from langevin.guiders.inpaint import Inpaint
from langevin.media.images import Picture, VaeImageProcessor
from langevin.pipelines.stable_diffusion import StableDiffusionPipeline
from langevin.pipelines.stable_diffusion_base import StableDiffusionBase, StableDiffusionPipelineOutput
from langevin.signatures import also_takes


class StableDiffusionInpaintPipeline(StableDiffusionBase):
    """Make anew what a mask covers, with a network made for it (9 input channels) or any other (4).

    Example:
        >>> from langevin import StableDiffusionInpaintPipeline
        >>> pipe = StableDiffusionInpaintPipeline.from_pretrained("langevin/shapes-inpainting")
        >>> image = pipe("a blue circle", image=picture, mask_image=mask, num_inference_steps=20, seed=7).images[0]
    """

    _callback_tensor_inputs = [*StableDiffusionBase._callback_tensor_inputs, "mask", "masked_image_latents"]
    _scheduler_needs = {"steps_offset": 1, "skip_prk_steps": True}

    @cached_property
    def mask_processor(self) -> VaeImageProcessor:
        """Masks to tensors of 0 and 1; ``mask_processor.blur`` softens a mask's edge before."""
        return VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    @torch.no_grad()
    @also_takes(StableDiffusionPipeline.__call__)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        *,
        keep_outside: bool = False,
        **common: Any,
    ) -> Any:
        """Make pictures.

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

        The other arguments are those of :class:`~langevin.StableDiffusionPipeline`.
        """
        height, width = self._size(height, width)
        arguments = {
            **common,
            "prompt": prompt,
            "image": image,
            "mask_image": mask_image,
            "masked_image_latents": masked_image_latents,
            "height": height,
            "width": width,
            "padding_mask_crop": padding_mask_crop,
            "strength": strength,
            "num_inference_steps": num_inference_steps,
            "keep_outside": keep_outside,
            "return_dict": True,
        }
        if mask_image is None:
            raise ValueError(
                "mask_image is missing; give a PIL image, an array or a tensor in [0, 1], or a list of them"
            )
        crop: dict[str, Any] = {}
        if padding_mask_crop is not None:
            self._check_crop(image, mask_image, padding_mask_crop, common["output_type"])
            box = self.mask_processor.get_crop_region(mask_image, width, height, pad=padding_mask_crop)
            crop = {"crops_coords": box, "resize_mode": "fill"}
        guider = Inpaint(
            self._pixels(image, height, width, **crop),
            self.mask_processor.preprocess(mask_image, height=height, width=width, **crop),
            strength,
            masked_image_latents,
            keep_outside,
            # the reference lets a list of generators draw less than they need to make each picture again alone
            shared_draws=common["generator"] is not None,
            show_masked=common["callback_on_step_end"] is not None,
        )
        output = self._generate(arguments, [guider])
        images, flagged = output.images, output.nsfw_content_detected
        if crop:
            images = [
                Picture(self.image_processor.apply_overlay(mask_image, image, made, box), made.settings)
                for made in images
            ]
        whole = common["return_dict"]
        return StableDiffusionPipelineOutput(images, flagged) if whole else (images, flagged)

    @staticmethod
    def _check_crop(image: Any, mask: Any, padding: Any, output_type: str) -> None:
        """Raises ValueError unless a crop can be laid back over the picture."""
        for name, value in (("image", image), ("mask_image", mask)):
            if not isinstance(value, Image.Image):
                raise ValueError(f"{name} is a {type(value).__name__}; padding_mask_crop needs a PIL image")
        if image.size != mask.size:
            raise ValueError(
                f"image is {image.width} x {image.height}, mask_image {mask.width} x {mask.height}; "
                "padding_mask_crop needs the same size"
            )
        if output_type != "pil":
            raise ValueError(f"output_type is {output_type!r}; padding_mask_crop gives PIL images, output_type='pil'")
        if not isinstance(padding, int) or padding < 0:
            raise ValueError(f"padding_mask_crop is {padding!r}; it is a number of pixels, at least 0")
