"""Panoramas with Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from langevin.checks import Count
from langevin.guiders.windows import Windows
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import CALLBACKS, Side, middle
from langevin.pipelines.stable_diffusion.text_to_image import TextToImageGiven


@dataclass(frozen=True, kw_only=True)
class PanoramaGiven(TextToImageGiven):
    """Arguments of :class:`StableDiffusionPanoramaPipeline`.

    Args:
        height, width: pixels; multiples of ``vae_scale_factor``.
        view_batch_size: how many windows go through the network at once.
        circular_padding: left and right edge meet, as on a panorama of all directions.
        window_size, window_stride: in latents; see :class:`langevin.Windows`. The network's own size
            (``unet.config.sample_size``) is best.
        window_smooth: weigh windows down towards their edges, so that no edge shows; the reference does not.
    """

    height: Side | None = field(default=512, kw_only=False)
    width: Side | None = field(default=2048, kw_only=False)
    view_batch_size: Count = 1
    circular_padding: bool = False
    window_size: Count = 64
    window_stride: Count = 8
    window_smooth: bool = False

    positional = (
        "prompt height width num_inference_steps timesteps "
        f"{middle('view_batch_size')} "
        f"cross_attention_kwargs guidance_rescale circular_padding clip_skip {CALLBACKS}"
    )


class StableDiffusionPanoramaPipeline(StableDiffusionBase):
    """Pictures larger than the network was trained on (MultiDiffusion: Bar-Tal et al. 2023, 2302.08113).

    Any scheduler will do; see :class:`langevin.Windows` for those that add noise. Each of several pictures is what it
    is when made alone, and ``guidance_rescale`` is heeded; the reference mixes the prompts of several, and passes
    over the rescale.

    Example:
        >>> from langevin import StableDiffusionPanoramaPipeline
        >>> pipe = StableDiffusionPanoramaPipeline.from_pretrained("langevin/shapes")
        >>> image = pipe("a red circle", height=64, width=256, window_size=16, window_stride=4, seed=7).images[0]
    """

    # the reference mends no old configs here; but latents must not be clipped, in windows or out
    _scheduler_needs = {"clip_sample": False}

    @takes(PanoramaGiven)
    def __call__(self, given: PanoramaGiven) -> Any:
        """Make pictures."""
        windows = Windows(
            given.window_size,
            given.window_stride,
            given.view_batch_size,
            given.circular_padding,
            given.window_smooth,
        )
        return self.generate(given, [windows])
