"""``VaeImageProcessor``: pictures into what a VAE encodes, and back. Names and numbers are diffusers'."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from langevin.media import convert
from langevin.media.checks import (
    all_latents,
    batch_of,
    joined,
    listed,
    masks,
    three_channels,
    to_rgb_mode,
    zeros_and_ones,
)
from langevin.media.crops import check_box, crop_to_box
from langevin.media.crops import inside as scaled_inside
from langevin.media.load import opened, whole_numbers

# The names that the config's ``resample`` may have.
_FILTERS = {
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


def _widen(start: int, end: int, wanted: int, limit: int) -> tuple[int, int]:
    """Lengthen an interval evenly to ``wanted``, moved (and at last cut) to lie within [0, limit)."""
    extra = wanted - (end - start)
    start, end = start - extra // 2, end + extra - extra // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


@dataclass
class ProcessorConfig:
    """What a :class:`VaeImageProcessor` was told; see there."""

    do_resize: bool
    vae_scale_factor: int
    vae_latent_channels: int
    resample: str
    reducing_gap: float | None
    do_normalize: bool
    do_binarize: bool
    do_convert_rgb: bool
    do_convert_grayscale: bool


class VaeImageProcessor:
    """Pictures into tensors for the network (``preprocess``) and back (``postprocess``).

    Args:
        do_resize: bring the size to ``height`` and ``width``, rounded down to multiples of the next.
        vae_scale_factor: how many pixels one latent spans.
        vae_latent_channels: a tensor with this many channels is taken for latents and passed through.
        resample: PIL filter: "lanczos", "bicubic", "bilinear" or "nearest". Tensors always go by "nearest".
        reducing_gap: PIL's option of that name.
        do_normalize: map [0, 1] to [-1, 1], once.
        do_binarize: make every value 0 or 1, from 0.5 up 1.
        do_convert_rgb, do_convert_grayscale: convert PIL images; not both.
    """

    config_name = "config.json"

    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,  # pixels that one latent spans, each way
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        reducing_gap: float | None = None,
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ) -> None:
        if do_convert_rgb and do_convert_grayscale:
            raise ValueError("do_convert_rgb and do_convert_grayscale exclude each other; choose one")
        if resample not in _FILTERS:
            raise ValueError(f"resample is {resample!r}, it must be one of: {', '.join(_FILTERS)}")
        self.config = ProcessorConfig(
            do_resize,
            vae_scale_factor,
            vae_latent_channels,
            resample,
            reducing_gap,
            do_normalize,
            do_binarize,
            do_convert_rgb,
            do_convert_grayscale,
        )

    numpy_to_pil = staticmethod(convert.numpy_to_pil)
    pil_to_numpy = staticmethod(convert.pil_to_numpy)
    numpy_to_pt = staticmethod(convert.numpy_to_pt)
    pt_to_numpy = staticmethod(convert.pt_to_numpy)
    normalize = staticmethod(convert.normalize)
    denormalize = staticmethod(convert.denormalize)

    @staticmethod
    def convert_to_rgb(image: Image.Image) -> Image.Image:
        return image.convert("RGB")

    @staticmethod
    def convert_to_grayscale(image: Image.Image) -> Image.Image:
        return image.convert("L")

    @staticmethod
    def binarize(images):
        """Values from 0.5 up become 1, others 0; for arrays and tensors."""
        high = images >= 0.5
        return high.to(images.dtype) if isinstance(images, torch.Tensor) else high.astype(images.dtype)

    @staticmethod
    def blur(image: Image.Image, blur_factor: int = 4) -> Image.Image:
        """Gaussian blur with a radius of ``blur_factor`` pixels."""
        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    def get_default_height_width(
        self,
        image: Image.Image | np.ndarray | torch.Tensor,
        height: int | None = None,
        width: int | None = None,
    ) -> tuple[int, int]:
        """(height, width), the picture's own where None, rounded down to multiples of ``vae_scale_factor``.

        Arrays are (batch, height, width[, channels]), tensors (batch, channels, height, width).
        """
        if isinstance(image, Image.Image):
            own_height, own_width = image.height, image.width
        else:
            own_height, own_width = image.shape[2:4] if isinstance(image, torch.Tensor) else image.shape[1:3]
        for name, side in (("height", height), ("width", width)):
            if side is not None and not isinstance(side, numbers.Integral):
                raise ValueError(f"{name} is {side!r}; a whole number of pixels is needed")
        height, width = int(height or own_height), int(width or own_width)
        factor = self.config.vae_scale_factor
        if min(height, width) < factor:
            raise ValueError(
                f"{height} x {width} (height x width) is too small: this model needs at least {factor} x {factor}"
            )
        return height // factor * factor, width // factor * factor

    def resize(
        self,
        image: Image.Image | np.ndarray | torch.Tensor,
        height: int,
        width: int,
        resize_mode: str = "default",
    ) -> Any:
        """To ``height`` x ``width``; the kind of ``image`` stays. Arrays and tensors go by "nearest".

        Modes, for PIL images: "default" stretches; "fill" fits the whole picture in and continues its edges;
        "crop" covers the whole size and cuts off what hangs over.
        """
        if resize_mode not in ("default", "fill", "crop"):
            raise ValueError(f"resize_mode is {resize_mode!r}, it must be default, fill or crop")
        if isinstance(image, Image.Image):
            if resize_mode != "default":
                return self._place(image, width, height, inside=resize_mode == "fill")
            resample = _FILTERS[self.config.resample]
            return image.resize((width, height), resample, reducing_gap=self.config.reducing_gap)
        if resize_mode != "default":
            raise ValueError(f"resize_mode={resize_mode!r} is for PIL images, not {type(image).__name__}")
        if isinstance(image, torch.Tensor):
            return torch.nn.functional.interpolate(image, size=(height, width))
        tensor = torch.nn.functional.interpolate(convert.numpy_to_pt(image), size=(height, width))
        return tensor.permute(0, 2, 3, 1).numpy()

    @staticmethod
    def _place(image: Image.Image, width: int, height: int, inside: bool) -> Image.Image:
        """Scaled with its proportions and centred; bars as wide as the first one continue its edges."""
        size = scaled_inside(image.size, (width, height), cover=not inside)
        scaled = image.resize(size, Image.Resampling.LANCZOS)
        left, top = width // 2 - size[0] // 2, height // 2 - size[1] // 2
        placed = Image.new("RGB", (width, height))
        placed.paste(scaled, (left, top))
        # A box of no height or width samples the picture at its very edge.
        if inside and top > 0:
            for edge, start in ((0, 0), (size[1], top + size[1])):
                placed.paste(scaled.resize((width, top), box=(0, edge, size[0], edge)), (0, start))
        elif inside and left > 0:
            for edge, start in ((0, 0), (size[0], left + size[0])):
                placed.paste(scaled.resize((left, height), box=(edge, 0, edge, size[1])), (start, 0))
        return placed

    @staticmethod
    def get_crop_region(mask_image: Image.Image, width: int, height: int, pad: int = 0) -> tuple[int, int, int, int]:
        """The box (left, top, right, bottom) around what is not black in the mask, shaped as width:height.

        ``pad`` pixels are added on each side first; then the shorter direction is widened as far as the mask
        reaches. An all-black mask gives the whole picture.
        """
        (mask,) = masks([mask_image])
        left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
        left, top = max(left - pad, 0), max(top - pad, 0)
        right, bottom = min(right + pad, mask.width), min(bottom + pad, mask.height)
        if (right - left) * height > width * (bottom - top):
            wanted = int((right - left) / (width / height))
            top, bottom = _widen(top, bottom, wanted, mask.height)
        else:
            wanted = int((bottom - top) * (width / height))
            left, right = _widen(left, right, wanted, mask.width)
        return left, top, right, bottom

    def apply_overlay(
        self,
        mask: Image.Image,
        init_image: Image.Image,
        image: Image.Image,
        crop_coords: tuple[int, int, int, int] | None = None,
    ) -> Image.Image:
        """Lay ``init_image`` back over ``image`` where ``mask`` is black; grey mixes the two.

        With ``crop_coords``, ``image`` is what was made of that box of ``init_image``.
        """
        init_image = whole_numbers(opened(init_image, "init_image"))
        (mask,) = masks([mask], "mask")
        # Premultiplied by its own alpha ("RGBa"), so that half-covered pixels mix as colours of light.
        kept = Image.new("RGBa", init_image.size)
        original = init_image.convert("RGBA").convert("RGBa")
        kept.paste(original, mask=ImageOps.invert(mask))
        if crop_coords is not None:
            left, top, right, bottom = crop_coords
            whole = Image.new("RGBA", init_image.size)
            whole.paste(self.resize(image, bottom - top, right - left, "crop"), (left, top))
            image = whole.convert("RGB")
        return Image.alpha_composite(image.convert("RGBA"), kept.convert("RGBA")).convert("RGB")

    def preprocess(
        self,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: tuple[int, int, int, int] | None = None,
    ) -> torch.Tensor:
        """One picture, a batch, or a list of pictures -> (batch, channels, height, width).

        Takes PIL images of any mode; arrays ([batch, ]height, width, channels); tensors ([batch, ]channels, height,
        width); see :mod:`langevin.media.checks`. Arrays and tensors are in [0, 1] (or uint8, uint16, booleans).
        ``crops_coords`` is a box (left, top, right, bottom) cut out of each first. A float tensor with
        ``vae_latent_channels`` channels is passed through as latents. What has negative values is taken to be in
        [-1, 1] already, with a warning. Arrays and tensors of four channels lose their alpha.

        With ``do_convert_grayscale`` arrays and tensors may be stacks ([batch, ]height, width), and integers that are
        all 0 or 1 count as 0 and 1; their colours, if they have any, stay (:func:`langevin.media.checks.masks` makes
        them grey).

        Raises ValueError, one line, for everything else: other kinds, mixed kinds, sizes or ranges, damaged pictures,
        and pictures smaller than ``vae_scale_factor``.
        """
        images = listed(image)
        box = None if crops_coords is None else check_box(crops_coords)
        if isinstance(images[0], Image.Image):
            batch = self._from_pil(images, height, width, resize_mode, box)
        else:
            batch, latents = self._to_batch(images)
            if latents:
                return batch
            batch = batch if box is None else crop_to_box(batch, box)
            if self.config.do_resize:
                batch = self.resize(batch, *self.get_default_height_width(batch, height, width), resize_mode)

        signed = self.config.do_normalize
        low = float(batch.min())
        if low < 0:
            warnings.warn(
                f"the pictures go from {low:g} to {float(batch.max()):g} and were taken to be "
                "in [-1, 1] already; pass them in [0, 1]",
                FutureWarning,
                stacklevel=2,
            )
            signed = False
        if signed:
            batch = convert.normalize(batch)
        return self.binarize(batch) if self.config.do_binarize else batch

    def _from_pil(self, images: Sequence[Image.Image], height, width, resize_mode, box) -> torch.Tensor:
        images = [opened(image) for image in images]
        if len({image.mode for image in images}) > 1 or images[0].mode == "LA":
            images = [to_rgb_mode(image) for image in images]
        if self.config.do_convert_grayscale:
            images = [zeros_and_ones(image) for image in images]
        if box is not None:
            images = [image.crop(box) for image in images]
        if self.config.do_resize:
            size = self.get_default_height_width(images[0], height, width)
            images = [self.resize(image, *size, resize_mode) for image in images]
        if self.config.do_convert_rgb:
            images = [image.convert("RGB") for image in images]
        elif self.config.do_convert_grayscale:
            images = [image.convert("L") for image in images]
        batch = convert.numpy_to_pt(convert.pil_to_numpy(images))
        return batch.clamp(0, 1) if images[0].mode == "F" else batch  # Lanczos goes beyond the range of floats

    def _to_batch(self, images: Sequence[np.ndarray] | Sequence[torch.Tensor]) -> tuple[torch.Tensor, bool]:
        """Arrays or tensors -> one (batch, 1 or 3 channels, height, width), or latents; and whether it is those."""
        channels, grey, alone = self.config.vae_latent_channels, self.config.do_convert_grayscale, len(images) == 1
        batches = [batch_of(one, latent_channels=channels, signed=True, grey=grey, alone=alone) for one in images]
        if all_latents(images, batches, channels):
            return joined(batches), True
        if self.config.do_convert_rgb or any(batch.shape[1] == 4 for batch in batches):
            batches = [three_channels(batch) for batch in batches]
        return joined(batches), False

    def postprocess(
        self, image: torch.Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> Any:
        """(batch, channels, height, width) as the VAE gives it -> what the user asked for.

        ``output_type``: "pil" a list of images; "np" (batch, height, width, channels) in [0, 1]; "pt" a
        tensor in [0, 1]; "latent" the tensor as it is. ``do_denormalize`` says for each picture whether it
        is in [-1, 1]; by default all are if ``do_normalize``.
        """
        if not isinstance(image, torch.Tensor):
            raise ValueError(f"postprocess takes a tensor, not {type(image).__name__}")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}, it must be pil, np, pt or latent")
        if output_type == "latent":
            return image
        signed = [self.config.do_normalize] * len(image) if do_denormalize is None else list(do_denormalize)
        if len(signed) != len(image):
            raise ValueError(f"{len(image)} pictures, but do_denormalize has {len(signed)} entries")
        if all(signed):
            image = convert.denormalize(image)
        elif any(signed):
            image = torch.stack([convert.denormalize(one) if s else one for one, s in zip(image, signed, strict=True)])
        if output_type == "pt":
            return image
        array = convert.pt_to_numpy(image)
        return array if output_type == "np" else convert.numpy_to_pil(array)
