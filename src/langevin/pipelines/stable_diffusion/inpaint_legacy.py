"""Inpainting with any network, as the first published pipeline did it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from langevin.checks import Share
from langevin.guiders.base import Setup
from langevin.guiders.inpaint import Inpaint
from langevin.guiders.step import Step
from langevin.media.images import VaeImageProcessor
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import TextGiven
from langevin.pipelines.stable_diffusion.inpaint import InpaintBase


@dataclass(frozen=True, kw_only=True)
class InpaintLegacyGiven(TextGiven):
    """Arguments of :class:`StableDiffusionInpaintPipelineLegacy`.

    Args:
        image: PIL, numpy in [0, 1], or a tensor in [-1, 1] ``([n, ]3, height, width)``, or a list of them. The result
            has its size, rounded down to what the model takes.
        mask_image: PIL, or numpy in [0, 1]: what is white is made anew, what is black is kept, greys mix. In a
            **tensor** ``(n, 1 or 3, height, width)`` or with the channels last it is the other way round, as in the
            reference: 1 is kept, 0 is made anew.
        strength: how far to go from the picture, 0 to 1: the share of the steps that are done.
        num_inference_steps: of a whole run; ``strength`` of them are done.
        add_predicted_noise: noise what is kept with what the network said of the negative branch, instead of with the
            noise that the run began with.
    """

    image: Any = field(default=None, kw_only=False)
    mask_image: Any = field(default=None, kw_only=False)
    strength: Share = 0.8
    add_predicted_noise: bool = False

    positional = (
        "prompt image mask_image strength num_inference_steps guidance_scale negative_prompt num_images_per_prompt "
        "add_predicted_noise eta generator prompt_embeds negative_prompt_embeds output_type return_dict callback "
        "callback_steps cross_attention_kwargs clip_skip"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_image is None:
            raise ValueError(
                "mask_image is missing; give a PIL image, an array in [0, 1], or a tensor in which 1 is kept"
            )


@dataclass
class InpaintLegacy(Inpaint):
    """Inpainting as it was before there were networks made for it.

    It differs from :class:`Inpaint` in three things: the kept part is noised to the level of the step that was just
    done, not to that of the next one; a strength of 1 still begins with the noised picture; and the noise may be what
    the network predicts (``add_predicted_noise``).
    """

    add_predicted_noise: bool = False

    def encoded(self, setup: Setup, pixels: Tensor) -> Tensor:
        prompts = setup.shape[0] // setup.pictures
        if len(pixels) == 1 and not setup.is_latents(pixels):  # each prompt draws its own
            pixels = pixels.expand(prompts, *pixels.shape[1:])
        return super().encoded(setup, pixels)

    def _begin(self, setup: Setup) -> None:
        self._clean = self.encoded(setup, self.image)
        self._noise = setup.first_noise()
        ends = setup.start >= len(setup.run)
        setup.x = self._clean if ends else setup.run.add_noise(self._clean, self._noise, setup.start)

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        if self.add_predicted_noise:
            self._noise = predictions.get("negative", predictions["positive"])
        return prediction

    def after(self, x: Tensor, step: Step) -> Tensor:
        mask = self._tensors["mask"]
        x = step.run.add_noise(self._clean, self._noise, step.index).lerp(x, mask)
        return x if step.index + 1 < len(step.run) else self._clean.lerp(x, mask)


class StableDiffusionInpaintPipelineLegacy(InpaintBase, StableDiffusionBase):
    """Make anew what a mask covers, with a network that was made for pictures from prompts.

    What is kept is blended in after every step (Lugmayr et al. 2022, 2201.09865, equation 8, with one noise for all
    steps). :class:`~langevin.StableDiffusionInpaintPipeline` is the better one; this one makes old pictures again.

    Example:
        >>> from langevin import StableDiffusionInpaintPipelineLegacy
        >>> pipe = StableDiffusionInpaintPipelineLegacy.from_pretrained("langevin/shapes")
        >>> image = pipe("a blue circle", image=picture, mask_image=mask, num_inference_steps=20, seed=7).images[0]
    """

    _optional_components = ["safety_checker", "feature_extractor"]

    @takes_parts
    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        pass

    @takes(InpaintLegacyGiven)
    def __call__(self, given: InpaintLegacyGiven) -> Any:
        """Make pictures."""
        pixels = self.signed(given.image)
        size = self.size_of(pixels)
        mask = self.mask(given.mask_image, size)
        guider = InpaintLegacy(pixels, mask, given.strength, add_predicted_noise=given.add_predicted_noise)
        return self.generate(given, [guider], size)

    def mask(self, mask: Any, size: tuple[int, int]) -> Tensor:
        """Masks, ``(n, 1, height / factor, width / factor)``: 1 is made anew.

        Raises:
            ValueError: a tensor without one or three channels.
        """
        height, width = (side // self.vae_scale_factor for side in size)
        if isinstance(mask, Tensor):
            if mask.ndim != 4 or not {1, 3} & {mask.shape[1], mask.shape[3]}:
                raise ValueError(f"mask_image is {tuple(mask.shape)}; (n, 1 or 3, height, width) is needed")
            mask = mask.movedim(3, 1) if mask.shape[3] in (1, 3) else mask
            return 1 - torch.nn.functional.interpolate(mask.mean(dim=1, keepdim=True), (height, width))
        listed = mask if isinstance(mask, (list, tuple)) else [mask]
        if all(isinstance(one, Image.Image) for one in listed):
            mask = [one.convert("L").resize((width, height), Image.Resampling.NEAREST) for one in listed]
        processor = VaeImageProcessor(vae_scale_factor=1, do_normalize=False, do_convert_grayscale=True)
        return processor.preprocess(mask, height=height, width=width)
