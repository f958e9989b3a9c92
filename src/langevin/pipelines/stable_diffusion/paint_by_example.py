"""What a mask covers is made anew after an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from langevin.guiders.base import Setup
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.given import FamilyGiven
from langevin.pipelines.stable_diffusion.inpaint import (
    MASK_VIEWS,
    InpaintAsPublished,
    InpaintBase,
    StableDiffusionInpaintPipeline,
)
from langevin.prompts.readers.base import Reading
from langevin.prompts.readers.example import ExampleReader


@dataclass(frozen=True, kw_only=True)
class PaintByExampleGiven(FamilyGiven):
    """Arguments of :class:`PaintByExamplePipeline`.

    Args:
        example_image: what to put under the mask: PIL, numpy in [0, 1], a tensor as the feature extractor leaves it,
            or a list of them: one for all, or one for each ``image``.
        image: PIL, numpy in [0, 1], or a tensor in [-1, 1] ``([n, ]3, height, width)``, or a list of them. The result
            has its size, unless ``height`` and ``width`` say another.
        mask_image: what is white, above 0.5, is made anew. PIL, numpy ``([n, ]height, width[, 1])`` or tensor
            ``([n, ][1, ]height, width)`` in [0, 1], or a list of them.
        guidance_scale: how strictly to follow the example; 1 is off. None: what the checkpoint names, else 5.
        negative_prompt: there is nothing that reads texts here; None is taken.
        num_images_per_prompt: pictures of each example.
    """

    example_image: Any = field(default=None, kw_only=False)
    image: Any = field(default=None, kw_only=False)
    mask_image: Any = field(default=None, kw_only=False)
    negative_prompt: None = None

    positional = (
        "example_image image mask_image height width num_inference_steps guidance_scale negative_prompt "
        "num_images_per_prompt eta generator latents output_type return_dict callback callback_steps"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negative_prompt is not None:
            raise ValueError("negative_prompt was given, and this pipeline reads no texts; leave it out")
        for name in ("example_image", "mask_image"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing; give a PIL image, an array or a tensor, or a list of them")


class InpaintByExample(InpaintAsPublished):
    """Inpainting for a network that is shown the masked picture first, and then where the picture is kept."""

    def prepare(self, setup: Setup) -> None:
        super().prepare(setup)
        channels = {**setup.told.get("channels", {})}
        if "mask" in channels:
            kept = 1 - channels.pop("mask")
            setup.told["channels"] = {**channels, "mask": kept}


class PaintByExamplePipeline(InpaintBase):
    """Put what an example shows where a mask is (Paint by Example: Yang et al. 2023, 2211.13227).

    Example:
        >>> from langevin import PaintByExamplePipeline
        >>> pipe = PaintByExamplePipeline.from_pretrained("Fantasy-Studio/Paint-by-Example")
        >>> image = pipe(example, picture, mask, num_inference_steps=20, seed=7).images[0]
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["safety_checker"]
    _exclude_from_cpu_offload = ["image_encoder", "safety_checker"]
    _callback_tensor_inputs = StableDiffusionInpaintPipeline._callback_tensor_inputs
    _callback_views = MASK_VIEWS
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here

    @takes_parts
    def __init__(
        self,
        vae: Any,
        image_encoder: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        requires_safety_checker: bool = False,
    ) -> None:
        """``image_encoder``: a :class:`~langevin.PaintByExampleImageEncoder`."""

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {**super().spread_arguments(given), "example_image": True}

    @takes(PaintByExampleGiven)
    def __call__(self, given: PaintByExampleGiven) -> Any:
        """Make pictures."""
        if given.guidance_scale is None:
            given = given.changed(guidance_scale=self.call_default("guidance_scale", 5.0))
        pixels = self.signed(given.image, given.height, given.width)
        height, width = size = self.size_of(pixels)
        kept, mask = isinstance(given.mask_image, Tensor), given.mask_image
        mask = self.mask_processor.preprocess(1 - mask if kept else mask, height=height, width=width)
        guider = InpaintByExample(pixels, 1 - mask if kept else mask)
        guider.shared_draws = given.generator is not None
        return self.generate(given, [guider], size)

    def read(self, given: Any, steps: int) -> Reading:
        reader = ExampleReader(
            self.image_encoder, self.feature_extractor, device=self._execution_device, dtype=self.unet.dtype
        )
        example = given.example_image
        shown = reader.pixels(example, prepared=True if isinstance(example, Tensor) else None)
        several = isinstance(given.image, (list, tuple)) or getattr(given.image, "ndim", 3) == 4
        if len(shown) == 1 and several:
            shown = shown.expand(len(given.image), -1, -1, -1)
        return reader.read(
            shown, pictures=given.num_images_per_prompt, with_negative=self.has_negative(given), prepared=True
        )
