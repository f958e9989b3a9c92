"""Videos from texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from langevin.checks import Count
from langevin.guiders.frames import FrameNoise
from langevin.pipelines.given import takes
from langevin.pipelines.video.base import LAST, VideoGiven, VideoPipeline


@dataclass(frozen=True, kw_only=True)
class TextToVideoGiven(VideoGiven):
    """Arguments of :class:`TextToVideoSDPipeline`.

    Args:
        num_frames: how long a video is; at 8 frames a second 16 are two seconds.
        guidance_scale: how strictly to follow the prompt; 1 is off. None: what the checkpoint names, else 9.
    """

    num_frames: Count = field(default=16, kw_only=False)

    positional = f"prompt height width num_frames num_inference_steps guidance_scale {LAST}"


class TextToVideoSDPipeline(VideoPipeline):
    """Videos from texts, with a UNet that looks along time (ModelScope: Wang et al. 2023, 2308.06571).

    All of Stable Diffusion's prompts, seeds, callbacks and guiders are there; guiders that look at one picture's places
    (control networks, attend-and-excite, …) say that they cannot work on videos.

    Example:
        >>> from langevin import TextToVideoSDPipeline
        >>> pipe = TextToVideoSDPipeline.from_pretrained("damo-vilab/text-to-video-ms-1.7b")
        >>> video = pipe("a panda eating bamboo", num_frames=24, output_type="pil", seed=7).frames[0]
        >>> video.save("panda.gif")
    """

    _guidance_scale = 9.0

    @takes(TextToVideoGiven)
    def __call__(self, given: TextToVideoGiven) -> Any:
        """Make videos."""
        return self.generate(given, [FrameNoise()], (given.num_frames, *self.size(given.height, given.width)))
