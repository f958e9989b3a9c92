"""Inpainting: make anew what a mask covers, and keep the rest."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from langevin.guiders.base import Conditions, Guider, Setup, Step, tell
from langevin.guiders.classifier_free import ClassifierFreeGuidance


@dataclass
class Inpaint(Guider):
    """Make anew what a mask covers, and keep the rest of a picture.

    A network made for it takes the mask and the masked picture's latents as further channels (Rombach et al. 2022,
    2112.10752, section 4.5): it has latents + 1 + latents of them, 9 for Stable Diffusion. With any other network,
    what lies outside the mask is replaced after every step: by the picture, noised to the level of the next network
    call with the noise that the run began with, and by the clean picture at the end (Lugmayr et al. 2022, 2201.09865,
    equation 8, with one noise for all steps).

    Callbacks may see and replace the tensors "mask" and "masked_image_latents".

    Args:
        image: ``(n, 3, height, width)`` in [-1, 1], of the size of the pictures that are made; or latents, which are
            told by their number of channels. n is 1, or divides the batch.
        mask: ``(m, 1, height, width)`` in [0, 1]: 1 is made anew, 0 is kept, values between mix (for a network made
            for inpainting, the picture is hidden from 0.5 up). Its size may be another, such as that of the latents.
        strength: the share of the run that is kept, 0 to 1. 1 begins with noise alone, less with the noised picture;
            0 gives the picture as the autoencoder sees it. Latents that the caller gave are begun with as they are.
        masked_latents: latents of the masked picture, or other pixels to take them from; by default they are made of
            image and mask. Needed where ``image`` is latents and the network is made for inpainting.
        keep_outside: lay the picture's own pixels over everything outside the mask at the end, since the autoencoder
            changes those too.
        shared_draws: see :meth:`~langevin.Setup.encode`.
        show_masked: make the masked picture's latents for callbacks even where the network does not take them.

    Raises:
        ValueError: for shapes and ranges that do not fit, in one line. When the call begins: for a network with another
            number of channels, or with another guider that chooses the start.

    Example:
        >>> pipe("a blue circle", guiders=[Inpaint(pixels, mask, strength=0.8)])
    """

    image: Tensor
    mask: Tensor
    strength: float = 1.0
    masked_latents: Tensor | None = None
    keep_outside: bool = False
    shared_draws: bool = False
    show_masked: bool = False

    def __post_init__(self) -> None:
        if self.mask.ndim != 4 or self.mask.shape[1] != 1:
            raise ValueError(f"mask is {tuple(self.mask.shape)}; (masks, 1, height, width) is needed")
        low, high = (float(edge) for edge in self.mask.float().aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"mask goes from {low:g} to {high:g}; it must be in 0..1: 1 is made anew, 0 is kept")

    def prepare(self, setup: Setup) -> None:
        setup.start_at(self.strength)
        setup.check_size(self.image)
        self._is_latents = self.image.shape[1] == setup.codec.channels and setup.codec.scale_factor > 1
        if self.keep_outside and self._is_latents:
            raise ValueError("keep_outside needs the picture's pixels, but image is latents; give pixels")
        self._takes = setup.network.config.in_channels
        self._joined = self._takes == 2 * setup.codec.channels + 1
        self._begin(setup)
        self._expose(setup)
        if self._joined:
            self._tell(setup.branches)

    def before(self, x: Tensor, step: Step) -> Tensor:
        if step.index == step.start:
            self._check_network(x.shape[1], step)
        if self._joined:
            self._tell(step.branches)  # callbacks may have changed the tensors, and other guiders added branches
        return x

    def after(self, x: Tensor, step: Step) -> Tensor:
        if self._joined:
            return x
        following = step.index + 1
        kept = self._clean  # at the end: the last level of some configs is not quite clean
        if following < len(step.run):
            kept = step.run.add_noise(self._clean, self._noise, following)
        return kept.lerp(x, self._tensor("mask"))

    def finish(self, pixels: Tensor, setup: Setup) -> Tensor:
        if not self.keep_outside:
            return pixels
        image, mask = (
            setup.rows(_resized(one, pixels.shape[-2:])).to(pixels.device, pixels.dtype)
            for one in (self.image, self.mask)
        )
        return image.lerp(pixels, mask)

    def _begin(self, setup: Setup) -> None:
        """Choose x. Draws as the reference does, in its order: the picture's latents, where it needs them; noise."""
        ends = setup.start >= len(setup.run)
        from_noise = not ends and (self.strength == 1 or setup.latents is not None)
        if not (self._joined and from_noise):
            self._clean = setup.encode(self.image, shared=self.shared_draws)
        self._noise = setup.first_noise()
        if from_noise:
            setup.x = self._noise * setup.run.init_noise_sigma
        elif ends:
            setup.x = self._clean
        else:
            setup.x = setup.run.add_noise(self._clean, self._noise, setup.start)

    def _expose(self, setup: Setup) -> None:
        """Put the mask, and the masked picture's latents, where callbacks find them."""
        self._tensors = setup.tensors
        self._told: list[tuple[int, int]] = []
        self._form = setup.shape[0], setup.device, setup.dtype
        tensors = {"mask": setup.rows(_resized(self.mask, setup.shape[-2:])).to(setup.device, setup.dtype)}
        masked = self.masked_latents
        if masked is None and not self._is_latents:
            if self._joined or self.show_masked:
                hidden = _resized(self.mask, self.image.shape[-2:]) >= 0.5
                masked = self.image * ~hidden
            else:  # the reference draws here what it then does not use
                noise, rows = setup.drawing(max(len(self.image), len(self.mask)), self.shared_draws)
                noise.draw((rows, *setup.shape[1:]), setup.dtype, setup.device)
        if masked is not None:
            setup.check_size(masked)
            tensors["masked_image_latents"] = setup.encode(masked, shared=self.shared_draws)
        elif self._joined:
            raise ValueError("image is latents, which cannot be masked; give masked_latents too, or pixels as image")
        # callbacks written for the reference halve these where there is guidance
        guided = any(isinstance(g, ClassifierFreeGuidance) and g.on for g in setup.guiders)
        copies = 2 if guided and "negative" in setup.branches else 1
        self._tensors |= {name: torch.cat([value] * copies) for name, value in tensors.items()}

    def _tensor(self, name: str) -> Tensor:
        """What callbacks have left of a tensor, one row per row of x."""
        batch, device, dtype = self._form
        return self._tensors[name][-batch:].to(device, dtype).expand(batch, -1, -1, -1)

    def _tell(self, branches: MutableMapping[str, Conditions]) -> None:
        """See to it that every branch has the mask and the masked picture."""
        names = ("mask", "masked_image_latents")
        tensors = [self._tensors[name] for name in names]
        told = [(id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if told != self._told:
            self._told, self._held = told, tensors  # held, so that their ids stay theirs
            self._channels = torch.cat([self._tensor(name) for name in names], dim=1)
        tell(branches, "channels", lambda name, old: self._channels)

    def _check_network(self, latents: int, step: Step) -> None:
        """Only now is it known what other guiders join to x."""
        joined = step.branches["positive"].get("channels")
        if self._takes != latents + (0 if joined is None else joined.shape[1]):
            raise ValueError(
                f"the network takes {self._takes} channels; inpainting needs one that takes {latents}, "
                f"or {2 * latents + 1} with the mask and the masked picture"
            )


def _resized(images: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """To another height and width by the nearest pixel, as the reference does."""
    return images if images.shape[-2:] == size else interpolate(images.float(), size=tuple(size))
