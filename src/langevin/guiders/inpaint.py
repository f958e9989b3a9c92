"""Inpainting: make anew what a mask covers, and keep the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import interpolate

from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step


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
        image: ``(n, 3, height, width)`` in [-1, 1], of the size of the pictures that are made, or of videos ``(n, 3,
            frames, height, width)``; or latents, which are told by their number of channels. n is 1, or divides the
            batch. Or sounds ``(n, channels, samples)``, as long as x is.
        mask: ``(m, 1, height, width)`` in [0, 1]: 1 is made anew, 0 is kept, values between mix (for a network made
            for inpainting, the picture is hidden from 0.5 up). Its size may be another, such as that of the latents.
            Of a video it holds for all frames; of sounds it is ``(m, 1, samples)``.
        strength: the share of the run that is kept, 0 to 1. 1 begins with noise alone, less with the noised picture;
            0 gives the picture as the autoencoder sees it. Latents that the caller gave are begun with as they are.
        masked_latents: latents of the masked picture, or other pixels to take them from; by default they are made of
            image and mask. Needed where ``image`` is latents and the network is made for inpainting.
        keep_outside: lay the picture's own pixels over everything outside the mask at the end, since the autoencoder
            changes those too.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask.ndim != (3 if self.image.ndim == 3 else 4) or self.mask.shape[1] != 1 or not self.mask.numel():
            places = "samples" if self.image.ndim == 3 else "height, width"
            raise ValueError(f"mask is {tuple(self.mask.shape)}; (masks, 1, {places}) is needed")
        low, high = (float(edge) for edge in self.mask.float().aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"mask goes from {low:g} to {high:g}; it must be in 0..1: 1 is made anew, 0 is kept")

    def prepare(self, setup: Setup) -> None:
        setup.start_at(self.strength)
        setup.check_size(self.image)
        if self.keep_outside and setup.is_latents(self.image):
            raise ValueError("keep_outside needs the picture's pixels, but image is latents; give pixels")
        self._joined = getattr(setup.network, "config", {}).get("in_channels") == 2 * setup.codec.channels + 1
        self._begin(setup)
        mask = setup.rows(self._mask_over(setup.shape)).to(setup.device, setup.dtype)
        masked = self.masked(setup, self._joined)
        if self._joined:
            if masked is None:
                raise ValueError(
                    "image is latents, which cannot be masked; give masked_latents too, or pixels as image"
                )
            setup.told.put("channels", "mask", mask)
            setup.told.put("channels", "masked_image_latents", masked)
            return
        self._tensors = setup.tensors
        self._tensors |= {"mask": mask} | ({} if masked is None else {"masked_image_latents": masked})

    def encoded(self, setup: Setup, pixels: Tensor) -> Tensor:
        """Latents of a picture, one row per row of x."""
        return setup.encode(pixels)

    def masked(self, setup: Setup, needed: bool) -> Tensor | None:
        """Latents of the masked picture, one row per row of x; None where they are not needed or cannot be had."""
        masked = self.masked_latents
        if masked is None:
            if not needed or setup.is_latents(self.image):
                return None
            masked = self.image * (self._mask_over(self.image.shape) < 0.5)
        setup.check_size(masked)
        return self.encoded(setup, masked)

    def after(self, x: Tensor, step: Step) -> Tensor:
        if self._joined:
            return x
        following = step.index + 1
        kept = self._clean  # at the end: the last level of some configs is not quite clean
        if following < len(step.run):
            kept = step.run.add_noise(self._clean, self._noise, following)
        return kept.lerp(x, self._tensors["mask"])

    def finish(self, pixels: Tensor, setup: Setup) -> Tensor:
        if not self.keep_outside:
            return pixels
        image, mask = (
            setup.rows(one).to(pixels.device, pixels.dtype)
            for one in (_fitting(self.image, pixels.shape[2:]), self._mask_over(pixels.shape))
        )
        return image.lerp(pixels, mask)

    def _mask_over(self, shape: Sequence[int]) -> Tensor:
        """The mask for what has this shape, ``(m, 1, height, width)``, or ``(m, 1, 1, height, width)`` for videos."""
        if len(shape) == 5:
            return _resized(self.mask, shape[-2:])[:, :, None]
        return _fitting(self.mask, shape[2:])

    def _begin(self, setup: Setup) -> None:
        """Choose x. Draws as the reference does, in its order: the picture's latents, where it needs them; noise."""
        ends = setup.start >= len(setup.run)
        from_noise = not ends and (self.strength == 1 or setup.latents is not None)
        if not (self._joined and from_noise):
            self._clean = self.encoded(setup, self.image)
        self._noise = setup.first_noise()
        if from_noise:
            setup.x = setup.begin()
        elif ends:
            setup.x = self._clean
        else:
            setup.x = setup.run.add_noise(self._clean, self._noise, setup.start)


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """To another height and width by the nearest pixel, as the reference does."""
    return images if images.shape[2:] == tuple(size) else interpolate(images.float(), size=tuple(size))


def _fitting(images: Tensor, size: Sequence[int]) -> Tensor:
    """To the size of what was decoded: sounds are cut back to the length that was asked for."""
    return images[..., : size[0]] if images.ndim == 3 else _resized(images, size)
