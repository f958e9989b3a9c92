"""Super-resolution: a small picture beside x, with a little noise that the network is told of: Ho, Saharia, Chan,
Fleet, Norouzi & Salimans 2021, "Cascaded Diffusion Models" (2106.15282), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from langevin.checks import Range
from langevin.guiders.base import Guider, Setup


@dataclass
class LowResolution(Guider):
    """Shows the network a picture of x's size in input channels of its own, noised to a level that it is told.

    The noise hides what the small picture's own making left in it; a higher level leaves more to the network. It is
    drawn before the noise that the run begins with.

    Args:
        image: ``(n, 3, height, width)`` in [-1, 1], one pixel for each place of x. n is 1, or divides the batch.
        noise_level: a timestep of ``scheduler``; what the network is told as ``class_labels``.
        scheduler: whose ``add_noise`` noises the picture, such as a :class:`~langevin.DDPMScheduler`.

    Raises:
        ValueError: for another number of axes; when the call begins, the picture has another size than x.

    Example:
        >>> pipe("a cat", guiders=[LowResolution(pixels, 20, pipe.low_res_scheduler)])
    """

    pictures_only = True

    image: Tensor
    noise_level: Annotated[int, Range(0)]
    scheduler: Any

    def prepare(self, setup: Setup) -> None:
        places = setup.picture_places("LowResolution")
        if tuple(self.image.shape[2:]) != places:
            wanted = " x ".join(map(str, places))
            raise ValueError(f"the low-resolution image is {tuple(self.image.shape)}; x has {wanted} places")
        image = self.image.to(setup.device, setup.dtype)
        if setup.noise.per_picture:
            image = setup.rows(image)
        noisy = self.scheduler.add_noise(image, setup.noise(image), torch.tensor([self.noise_level]))
        setup.told.put("channels", "image", setup.rows(noisy))
        setup.told["class_labels"] = torch.full((setup.shape[0],), self.noise_level, device=setup.device)
