"""What weights in a prompt do to pictures of the model in the box, as its reader sees them.

    python benchmarks/prompt_weights.py [--seeds 48]

For each prompt, with W replaced by a weight, the share of pictures (20 steps) that show what is named in the table's
head. Prints the Markdown table of docs/prompts.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import langevin
from langevin.zoo.reader import Reading, read

WEIGHTS = (0.0, 0.4, 0.7, 1.0, 1.3, 1.6)


def shows(colour: str | None, shape: str | None) -> Callable[[Reading], bool]:
    return lambda reading: any(
        colour in (None, thing.colour) and shape in (None, thing.shape) for thing in reading.things
    )


CASES = [
    ("a red circle and (a blue square)W", "a blue thing", shows("blue", None)),
    ("a red circle and (a blue square)W", "a red thing", shows("red", None)),
    ("(a red circle)W and a blue square", "a red thing", shows("red", None)),
    ("(a red circle)W and a blue square", "a blue thing", shows("blue", None)),
    ('("a red circle", "a green square").blend(1, W)', "something green", shows("green", None)),
    ('("a red circle", "a green square").blend(1, W)', "a circle", shows(None, "circle")),
]


def share(pipe: Any, prompt: str, test: Callable[[Reading], bool], seeds: int) -> float:
    pictures = [
        picture
        for first in range(0, seeds, 24)
        for picture in pipe(
            prompt, num_inference_steps=20, seed=first, num_images_per_prompt=min(24, seeds - first)
        ).images
    ]
    return sum(test(read(picture)) for picture in pictures) / seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=48)
    arguments = parser.parse_args()
    pipe = langevin.DiffusionPipeline.from_pretrained("langevin/shapes")
    pipe.set_progress_bar_config(disable=True)
    print("| prompt | pictures with | " + " | ".join(f"W = {weight:g}" for weight in WEIGHTS) + " |")
    print("|---|---|" + "---|" * len(WEIGHTS))
    for prompt, name, test in CASES:
        shares = [share(pipe, prompt.replace("W", f"{weight:g}"), test, arguments.seeds) for weight in WEIGHTS]
        print(f"| `{prompt}` | {name} | " + " | ".join(f"{100 * part:.0f} %" for part in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
