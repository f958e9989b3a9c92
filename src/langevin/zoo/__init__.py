"""The trained models in the box, and how each was made.

``langevin/shapes`` and ``langevin/shapes-unconditional`` paint a made-up world of coloured shapes
(``world.py``); its sisters repaint a part, follow instructions (``edits.py``) and fill outlines (``outlines.py``); a
CLIP knows which captions fit (``scoring.py``). ``reader.py`` says what a picture of that world shows.
``python -m langevin.zoo.train`` makes the models again.
"""

from __future__ import annotations

from pathlib import Path

MODELS = {
    "langevin/shapes": "text to image, 64x64: coloured shapes from captions (Stable Diffusion's layout)",
    "langevin/shapes-unconditional": "unconditional, pixels: coloured shapes (DDPM)",
    "langevin/shapes-inpainting": "inpainting, 64x64: paints a masked part anew from a caption",
    "langevin/shapes-instruct": "editing, 64x64: changes a picture as an instruction says (InstructPix2Pix)",
    "langevin/shapes-attention": "text to image, 64x64: reads words through cross-attention alone, as SD 1 does",
    "langevin/shapes-outline": "ControlNet for langevin/shapes: fills outlines",
    "langevin/shapes-clip": "says how well a text fits a picture (CLIP)",
}
"""Name of each model in the box, and what it does in one line."""

_WEIGHTS = Path(__file__).parent / "weights"


def names() -> tuple[str, ...]:
    """The names of the models in the box."""
    return tuple(MODELS)


def path(name: str) -> Path:
    """The folder of a model in the box.

    Raises:
        KeyError: there is no such model.
    """
    if name not in MODELS:
        raise KeyError(f"no model {name!r} in the box; there are: {', '.join(MODELS)}")
    return _WEIGHTS / name.removeprefix("langevin/")
