"""Panoramas with Stable Diffusion."""

from __future__ import annotations

from typing import Any

import torch

from langevin.guiders.windows import Windows
from langevin.pipelines.stable_diffusion import StableDiffusionPipeline
from langevin.pipelines.stable_diffusion_base import StableDiffusionBase
from langevin.signatures import also_takes


class StableDiffusionPanoramaPipeline(StableDiffusionBase):
    """Pictures larger than the network was trained on (MultiDiffusion: Bar-Tal et al. 2023, 2302.08113).

    Any scheduler will do; see :class:`langevin.Windows` for those that add noise.

    Example:
        >>> from langevin import StableDiffusionPanoramaPipeline
        >>> pipe = StableDiffusionPanoramaPipeline.from_pretrained("langevin/shapes")
        >>> image = pipe("a red circle", height=64, width=256, window_size=16, window_stride=4, seed=7).images[0]
    """

    # the reference mends no old configs here; but latents must not be clipped, in windows or out
    _scheduler_needs = {"clip_sample": False}

    @torch.no_grad()
    @also_takes(StableDiffusionPipeline.__call__)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = 512,
        width: int | None = 2048,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        guidance_scale: float | None = None,
        view_batch_size: int = 1,
        *,
        circular_padding: bool = False,
        window_size: int = 64,
        window_stride: int = 8,
        window_smooth: bool = False,
        **common: Any,
    ) -> Any:
        """Make pictures.

        Args:
            height, width: pixels; multiples of ``vae_scale_factor``.
            view_batch_size: how many windows go through the network at once.
            circular_padding: left and right edge meet, as on a panorama of all directions.
            window_size, window_stride: in latents; see :class:`langevin.Windows`. The network's own size
                (``unet.config.sample_size``) is best.
            window_smooth: weigh windows down towards their edges, so that no edge shows; the reference does not.

        The other arguments are those of :class:`~langevin.StableDiffusionPipeline`. Each of several pictures is what
        it is when made alone, and ``guidance_rescale`` is heeded; the reference mixes the prompts of several, and
        passes over the rescale.
        """
        arguments = {name: value for name, value in locals().items() if name not in ("self", "common")}
        windows = Windows(window_size, window_stride, view_batch_size, circular_padding, window_smooth)
        return self._generate({**arguments, **common}, [windows])
