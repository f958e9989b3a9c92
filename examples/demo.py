"""Pictures from prompts with the model in the box: PNG files that carry their settings, and a contact sheet."""

from __future__ import annotations

import argparse
from pathlib import Path

from langevin import DiffusionPipeline
from langevin.media.images import contact_sheet
from langevin.zoo.reader import matches, read
from langevin.zoo.world import parse

PROMPTS = [
    "a red circle",
    "a small green star on a black background",
    "a large yellow triangle on a gray background",
    "a purple ring in the top left corner",
    "a red circle left of a blue square",
    "a blue square to the right of a red circle",
    "a yellow star above a purple triangle",
    "a green cross below an orange ring on a white background",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()

    pipe = DiffusionPipeline.from_pretrained("langevin/shapes")
    seeds = [arguments.seed] * len(PROMPTS)
    images = pipe(PROMPTS, num_inference_steps=arguments.steps, seed=seeds).images

    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"The reader checks each picture against its prompt; files are in {arguments.out.resolve()}")
    for prompt, image in zip(PROMPTS, images, strict=True):
        name = prompt.replace(" ", "-") + ".png"
        image.save(arguments.out / name)
        print(f"  {'as asked' if matches(read(image), parse(prompt)) else 'NOT as asked'}  {name}")
    sheet = arguments.out / "contact-sheet.png"
    contact_sheet([image.resize((192, 192), resample=0) for image in images], PROMPTS, columns=4).save(sheet)
    print(f"All of them on one sheet: {sheet.resolve()}")


if __name__ == "__main__":
    main()
