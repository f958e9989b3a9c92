"""Fresh noise of a video, frame after frame."""

from __future__ import annotations

from dataclasses import dataclass

from langevin.guiders.base import Guider, Setup


@dataclass
class FrameNoise(Guider):
    """Draw what solvers add on the way frame after frame, as the reference does, whose solvers see frames as pictures.

    Args:
        begin_too: so is the noise that the run begins with; False draws that one channel by channel.

    Raises:
        ValueError: when the call begins, x is no video.

    Example:
        >>> call.stage(unet, scheduler, (1, 4, 16, 32, 32), branches, [FrameNoise()], steps=20, codec=codec)
    """

    begin_too: bool = False

    def prepare(self, setup: Setup) -> None:
        if setup.codec.axes != 3:
            raise ValueError(f"FrameNoise is for videos; what is made here is {tuple(setup.shape)}")
        if not self.begin_too:
            setup.first_noise()
        setup.noise = setup.noise.by_frame()
