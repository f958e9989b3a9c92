"""Fresh noise of a video, frame after frame."""

from __future__ import annotations

from dataclasses import dataclass

from langevin.guiders.base import Guider, Setup


@dataclass
class FrameNoise(Guider):
    """Draw what solvers add on the way frame after frame, as the reference does, whose solvers see frames as pictures.

    Args:
        begin_too: so is the noise that the run begins with; False draws that one channel by channel.
    """

    begin_too: bool = False

    def prepare(self, setup: Setup) -> None:
        if not self.begin_too:
            setup.first_noise()
        setup.noise = setup.noise.by_frame()
