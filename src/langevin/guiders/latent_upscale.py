"""A picture's latents, made larger, beside x: the latent upscaler of Crowson et al. 2023."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step


@dataclass
class EnlargedLatents(Guider):
    """Shows the network a picture's latents, each repeated to twice the height and width, in input channels of their
    own beside x, and tells it the noise level σ.

    The autoencoder's draw comes before the noise that the run begins with.

    Args:
        image: ``(n, 3, height, width)`` in [-1, 1]; or latents, which are told by their number of channels. n is 1, or
            divides the batch.

    Raises:
        ValueError: when the call begins, x is not twice as high and wide as the picture's latents.
    """

    pictures_only = True

    image: Tensor

    def prepare(self, setup: Setup) -> None:
        height, width = setup.picture_places("EnlargedLatents")
        latents = setup.encode(self.image)
        if tuple(latents.shape[2:]) != (height / 2, width / 2):
            given = " x ".join(map(str, latents.shape[2:]))
            raise ValueError(f"the picture has {given} latents, and x {height} x {width}; twice as many are needed")
        setup.told.put("channels", "image_latents", interpolate(latents, scale_factor=2, mode="nearest"))
        setup.inputs.append(_tell_sigma)


def _tell_sigma(x: Tensor, step: Step, names: Sequence[str], told: dict[str, Any]) -> dict[str, Any]:
    alpha, sigma = step.run.levels[step.index]
    return {**told, "sigma": sigma / alpha}
