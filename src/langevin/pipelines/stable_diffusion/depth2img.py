"""Image to image that keeps depth, with Stable Diffusion 2's depth model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from langevin.guiders.depth import DepthChannel
from langevin.guiders.image_start import ImageStart
from langevin.media.load import opened
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, middle
from langevin.pipelines.stable_diffusion.img2img import ImageToImageGiven
from langevin.pipelines.stable_diffusion.inpaint import PerBranch
from langevin.prompts.readers.vision import VisionReader


@dataclass(frozen=True, kw_only=True)
class DepthGiven(ImageToImageGiven):
    """Arguments of :class:`StableDiffusionDepth2ImgPipeline`.

    Args:
        image: PIL, numpy or tensor in [0, 1], or a list of them; or latents, which need a ``depth_map``. The result
            has its size, unless ``height`` and ``width`` say another.
        depth_map: how near things are, ``(n, height, width)`` of any size and scale, larger is nearer; or a grey
            PIL image, of which 8 bits count, or a list of them. None: the pipeline's ``depth_estimator`` looks at
            ``image``.
    """

    depth_map: Any = field(default=None, kw_only=False)

    positional = (
        "prompt image depth_map strength num_inference_steps "
        f"{middle(without='latents ip_adapter_image ip_adapter_image_embeds')} cross_attention_kwargs clip_skip "
        f"{CALLBACKS}"
    )


class StableDiffusionDepth2ImgPipeline(StableDiffusionBase):
    """Pictures from a picture, its depth and a prompt (Rombach et al. 2022, 2112.10752; depth by DPT: Ranftl,
    Bochkovskiy & Koltun 2021, 2103.13413).

    Arrays and tensors are shown to the depth estimator as they are; the reference shows it tensors almost black.

    Example:
        >>> from langevin import StableDiffusionDepth2ImgPipeline
        >>> pipe = StableDiffusionDepth2ImgPipeline.from_pretrained("stabilityai/stable-diffusion-2-depth")
        >>> image = pipe("two tigers", image=picture, strength=0.7, num_inference_steps=20, seed=7).images[0]
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: list[str] = []
    _exclude_from_cpu_offload: list[str] = []
    _callback_tensor_inputs = [*StableDiffusionBase._callback_tensor_inputs, "depth_mask"]
    _callback_views = {"depth_mask": PerBranch()}
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here

    @takes_parts
    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        depth_estimator: Any,
        feature_extractor: Any,
    ) -> None:
        """``depth_estimator`` is a ``DPTForDepthEstimation`` of transformers, ``feature_extractor`` its image
        processor. Both may be None where every call brings its ``depth_map``.
        """

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {"image": given.pair_images, "depth_map": given.pair_images}

    def output(self, images: Any, flagged: list[bool] | None = None) -> Any:
        return ImagePipelineOutput(images)

    @takes(DepthGiven)
    def __call__(self, given: DepthGiven) -> Any:
        """Make pictures.

        Raises:
            ValueError: for arguments that do not fit together, in one line; among them, no depth map and no estimator.
        """
        pixels = self.pixels(given.image, given.height, given.width)
        depth = self.estimate(given.image, pixels) if given.depth_map is None else depth_tensor(given.depth_map)
        return self.generate(given, [DepthChannel(depth), ImageStart(pixels, given.strength)], self.size_of(pixels))

    def estimate(self, image: Any, pixels: Tensor) -> Tensor:
        """How near things are in pictures that a caller gave, ``(n, height, width)``, as the depth estimator sees it.

        Args:
            image: the pictures.
            pixels: the same as :meth:`pixels` has them.
        """
        if pixels.shape[1] != 3:
            raise ValueError("image is latents, whose depth cannot be seen; give a depth_map, or pixels as image")
        if self.depth_estimator is None or self.feature_extractor is None:
            raise ValueError("this pipeline has no depth_estimator with a feature_extractor; give a depth_map")
        dtype, device = self.depth_estimator.dtype, self._execution_device
        shown = VisionReader(None, self.feature_extractor).pixels(image, prepared=False).to(device, dtype)
        # batch norm layers of the hybrid model are not for half precision
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return self.depth_estimator(shown).predicted_depth


def depth_tensor(depth: Any) -> Tensor:
    """A depth map as a caller gave it, ``(n, height, width)``.

    Raises:
        ValueError: it is of another kind.
    """
    if isinstance(depth, (list, tuple)) and depth:
        return torch.cat([depth_tensor(one) for one in depth])
    if isinstance(depth, Image.Image):
        depth = opened(depth, "depth_map", quiet=True)
        depth = depth if depth.mode == "F" else depth.convert("L")
        depth = torch.from_numpy(np.asarray(depth, dtype=np.float32))
    if isinstance(depth, np.ndarray):
        depth = torch.from_numpy(depth).float()
    if not isinstance(depth, Tensor) or not 2 <= depth.ndim <= 4 or (depth.ndim == 4 and depth.shape[1] != 1):
        given = f"{type(depth).__name__} {tuple(getattr(depth, 'shape', ()))}".removesuffix(" ()")
        raise ValueError(f"depth_map is a {given}; (n, height, width), a greyscale PIL image, or a list of them")
    return depth.reshape(-1, *depth.shape[-2:])
