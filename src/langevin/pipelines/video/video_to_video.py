"""Videos from videos and texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from langevin.checks import Share
from langevin.guiders.frames import FrameNoise
from langevin.guiders.image_start import ImageStart
from langevin.media.images import pictures
from langevin.media.video import listed_videos
from langevin.pipelines.given import takes
from langevin.pipelines.video.base import LAST, VideoGiven, VideoPipeline


@dataclass(frozen=True, kw_only=True)
class VideoToVideoGiven(VideoGiven):
    """Arguments of :class:`VideoToVideoSDPipeline`.

    Args:
        video: the frames: a list of PIL images, arrays or tensors, a :class:`langevin.Video`, an array ``(frames,
            height, width, channels)`` or a tensor ``(frames, channels, height, width)``; or one such thing per prompt
            in a list, or with one more axis in front. Or latents, ``(videos, channels, frames, h, w)``.
        strength: how far to go from it, 0 to 1: the share of the steps that are done.
        height, width: pixels of the result, to which the frames are brought; their own if None. Of their own size, what
            hangs over the last multiple of ``vae_scale_factor`` at the right and below is cut off.
        num_inference_steps: of a whole run; ``strength`` of them are done.
        guidance_scale: how strictly to follow the prompt; 1 is off. None: what the checkpoint names, else 15.
    """

    video: Any = field(default=None, kw_only=False)
    strength: Share = field(default=0.6, kw_only=False)

    positional = f"prompt video strength num_inference_steps guidance_scale {LAST}"


class VideoToVideoSDPipeline(VideoPipeline):
    """Videos from a video and a text: larger ones, or others of the same movement (SDEdit: Meng et al. 2022,
    2108.01073, with the network of Wang et al. 2023, 2308.06571).

    Example:
        >>> from langevin import VideoToVideoSDPipeline
        >>> pipe = VideoToVideoSDPipeline.from_pretrained("cerspense/zeroscope_v2_XL")
        >>> large = [frame.resize((1024, 576)) for frame in video]
        >>> better = pipe("a panda eating bamboo", video=large, strength=0.6, output_type="pil", seed=7).frames[0]
    """

    _guidance_scale = 15.0

    @takes(VideoToVideoGiven)
    def __call__(self, given: VideoToVideoGiven) -> Any:
        """Make videos."""
        start = self.frames(given.video, given.height, given.width)
        sides = self.size_of(start)
        guiders = [ImageStart(start, given.strength), FrameNoise(begin_too=True)]
        return self.generate(given, guiders[::-1], (start.shape[2], *sides))

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        several = isinstance(given.video, (list, tuple)) and all(isinstance(one, (list, tuple)) for one in given.video)
        return {"video": given.pair_images} if several else {}

    def frames(self, video: Any, height: int | None = None, width: int | None = None) -> Tensor:
        """Videos that a caller gave, ``(n, 3, frames, height, width)`` in [-1, 1]; latents pass as they are.

        Raises:
            ValueError: they are no videos, or not all of one length and size.
        """
        videos = listed_videos(video, self.image_processor.config.vae_latent_channels)
        if isinstance(videos, Tensor):
            return videos
        each = [self._in_form(one, height, width).transpose(0, 1) for one in videos]
        shapes = sorted({tuple(one.shape[1:]) for one in each})
        if len(shapes) > 1:
            raise ValueError(f"the videos have {shapes} (frames, height, width); all must have one length and size")
        return torch.stack(each)

    def _in_form(self, video: Any, height: int | None, width: int | None) -> Tensor:
        """One video's frames, ``(frames, 3, height, width)``."""
        pixels, factor = self.video_processor.preprocess(pictures(video, "video")), self.vae_scale_factor
        cut = tuple(side // factor * factor for side in pixels.shape[-2:])
        if (height or cut[0], width or cut[1]) != cut:
            return self.pixels(video, height, width)
        return pixels[..., : cut[0], : cut[1]]
