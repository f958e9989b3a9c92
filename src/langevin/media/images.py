"""The door to this room: everything about still pictures under one name."""

from langevin.media.checks import masks, pictures
from langevin.media.convert import (
    denormalize,
    normalize,
    numpy_to_pil,
    numpy_to_pt,
    pil_to_numpy,
    pt_to_numpy,
    pt_to_pil,
    to_pictures,
    to_tensor,
    to_uint8,
)
from langevin.media.framing import framed
from langevin.media.grids import contact_sheet, make_image_grid
from langevin.media.load import WrongPicture, load_image, to_8_bit, to_rgb
from langevin.media.picture import Picture
from langevin.media.processor import VaeImageProcessor

__all__ = [
    "Picture",
    "VaeImageProcessor",
    "WrongPicture",
    "contact_sheet",
    "denormalize",
    "framed",
    "load_image",
    "make_image_grid",
    "masks",
    "normalize",
    "numpy_to_pil",
    "numpy_to_pt",
    "pictures",
    "pil_to_numpy",
    "pt_to_numpy",
    "pt_to_pil",
    "to_8_bit",
    "to_pictures",
    "to_rgb",
    "to_tensor",
    "to_uint8",
]
