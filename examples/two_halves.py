"""A guider of one's own: one prompt for the left half of the picture, another for the right.

python examples/two_halves.py --out halves.png
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from langevin import DiffusionPipeline, Guider, make_image_grid


@dataclass
class Halves(Guider):
    """The left half follows one prompt, the right half another."""

    left: str
    right: str
    scale: float = 2.0

    def prepare(self, setup):
        setup.branches["left"] = setup.encode_text(self.left)
        setup.branches["right"] = setup.encode_text(self.right)

    def needs(self, step):
        return ("left", "right")

    def combine(self, prediction, predictions, x, step):
        middle = x.shape[-1] // 2
        halves = torch.cat([predictions["left"][..., :middle], predictions["right"][..., middle:]], dim=-1)
        return prediction + self.scale * (halves - predictions["positive"])


def main(out: Path = Path("halves.png"), seed: int = 1) -> None:
    """Four pictures; none of their prompts names both things."""
    pipe = DiffusionPipeline.from_pretrained("langevin/shapes")
    pairs = [("red circle", "blue star"), ("purple ring", "green cross"), ("pink square", "orange triangle")]
    pictures = []
    for left, right in pairs:
        for ground in ("black", "white"):
            halves = Halves(f"a {left} on the left on {ground}", f"a {right} on the right on {ground}")
            pictures += pipe("", num_inference_steps=20, seed=seed, guiders=[halves]).images
    make_image_grid(pictures, rows=1, cols=len(pictures)).save(out)


if __name__ == "__main__":
    typer.run(main)
