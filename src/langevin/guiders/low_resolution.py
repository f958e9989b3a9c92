"""Super-resolution: a small picture beside x, with a little noise that the network is told of: Ho, Saharia, Chan,
Fleet, Norouzi & Salimans 2021, "Cascaded Diffusion Models" (2106.15282), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from langevin.checks import Range
from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step


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


@dataclass
class SmallPicture(Guider):
    """Shows the network a small picture, as it is, in input channels of its own: what latent diffusion enlarges
    (Rombach et al. 2022, 2112.10752, section 4.4).

    Args:
        image: ``(n, channels, height, width)`` in [-1, 1], one pixel for each place of x. n divides the batch.
        scale_image: scale it as the scheduler scales x at each step, as the reference does. It matters to schedulers
            that count in noise levels, such as Euler's, whose first steps then show next to nothing of it. False shows
            it as it is, which is how networks are trained.

    Raises:
        ValueError: when the call begins, the picture has another size than x.

    Example:
        >>> pipe(small, guiders=[SmallPicture(pixels, scale_image=False)])
    """

    image: Tensor
    scale_image: bool = True

    def prepare(self, setup: Setup) -> None:
        places = setup.picture_places("SmallPicture")
        if tuple(self.image.shape[2:]) != places:
            raise ValueError(f"the small picture is {tuple(self.image.shape)}; x has {places[0]} x {places[1]} places")
        self._shown = setup.rows(self.image.to(setup.device, setup.dtype))
        setup.told.put("channels", "image", self._shown)

    def before(self, x: Tensor, step: Step) -> Tensor:
        if self.scale_image:
            scaled = step.run.scale_model_input(self._shown, step.index)
            if scaled is not self._shown:
                step.told.put("channels", "image", scaled)
        return x


@dataclass
class EnlargedPicture(LowResolution):
    """The same for a picture of any size, enlarged to x's by lines between its pixels, corners on corners.

    Each row of x is shown noise of its own, which is drawn after the noise that the run begins with.

    Args:
        image: ``(n, 3, height, width)`` in [-1, 1]. n is 1, or divides the batch.
        noise_level, scheduler: see :class:`LowResolution`.

    Example:
        >>> pipe("a cat", guiders=[EnlargedPicture(pixels, 250, pipe.image_noising_scheduler)])
    """

    def prepare(self, setup: Setup) -> None:
        setup.first_noise()
        image = self.image.to(setup.device, setup.dtype)
        places = setup.picture_places("EnlargedPicture")
        self.image = setup.rows(interpolate(image, places, mode="bilinear", align_corners=True))
        super().prepare(setup)
