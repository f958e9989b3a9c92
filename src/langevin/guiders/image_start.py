"""Image to image: begin at a picture that is noised part of the way (SDEdit: Meng et al. 2022, 2108.01073)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from langevin.guiders.base import Guider, Setup


@dataclass
class ImageStart(Guider):
    """Start from pictures instead of noise, and leave out the steps before.

    Args:
        image: ``(n, 3, height, width)`` in [-1, 1], of the size of the pictures that are made; or latents, which are
            told by their number of channels. n is 1, or divides the batch.
        strength: the share of the run that is kept, 0 to 1. 0 gives the picture as the autoencoder sees it; 1 noises it
            as far as the run begins.

    Attributes:
        clean: of the copy that serves a call: the pictures as x without noise.

    Example:
        >>> pipe("a blue circle", guiders=[ImageStart(pixels, strength=0.6)])
    """

    image: Tensor
    strength: float = 0.8

    def prepare(self, setup: Setup) -> None:
        setup.start_at(self.strength)
        setup.check_size(self.image)
        self.clean = setup.encode(self.image)
        noised = setup.start < len(setup.run)
        setup.x = setup.run.add_noise(self.clean, setup.first_noise(), setup.start) if noised else self.clean
