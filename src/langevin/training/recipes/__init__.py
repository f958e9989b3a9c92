"""One file per kind of training. :data:`RECIPES` finds them by name, without importing any."""

from __future__ import annotations

from importlib import import_module
from typing import Any

RECIPES = {
    "unconditional": "Unconditional",
    "text_to_image": "TextToImage",
    "lora": "Lora",
    "dreambooth": "DreamBooth",
    "textual_inversion": "TextualInversion",
    "custom_diffusion": "CustomDiffusion",
    "controlnet": "ControlNet",
    "instruct_pix2pix": "InstructPix2Pix",
}
"""From a recipe's name, which is its file's, to its class."""


def recipe_class(name: str) -> Any:
    """The class of a recipe by its name, with - or _."""
    name = name.replace("-", "_")
    return getattr(import_module(f"langevin.training.recipes.{name}"), RECIPES[name])
