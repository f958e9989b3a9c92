"""Every task with the models in the box, on one sheet: what went in, and what came out.

python examples/tasks.py --out tasks.png
"""

from pathlib import Path
from typing import Any

import typer
from PIL import Image

from langevin import (
    AttendAndExcite,
    Control,
    ControlNetModel,
    DiffusionPipeline,
    SafeGuidance,
    SelfAttentionGuidance,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPanoramaPipeline,
)
from langevin.media.grids import contact_sheet
from langevin.zoo.evaluate_tasks import EXCITED, shape_tokens
from langevin.zoo.outlines import outlines
from langevin.zoo.world import Scene, Thing, render

CELL = 128
SAFEST = {"scale": 5000, "warmup_steps": 0, "threshold": 1.0, "momentum_scale": 0.5, "momentum_beta": 0.7}

LACKING = (("a red circle and a blue star", 7), ("a green square and a pink ring", 14))
"""Prompts and seeds of pictures that lack one of two things."""


def scene(*things: Thing, ground: str = "white") -> Image.Image:
    """A picture of the world of the models in the box."""
    return Image.fromarray(render([Scene(things, ground)])[0])


def main(out: Path = Path("tasks.png"), seed: int = 7, steps: int = 20) -> None:
    """Make the sheet."""
    cells: list[tuple[Image.Image, str]] = []

    def show(image: Any, text: str) -> None:
        cells.append((image, text))

    paint = DiffusionPipeline.from_pretrained("langevin/shapes")
    call = {"num_inference_steps": steps, "seed": seed}
    circle, star = Thing("circle", "red", "medium", 18, 32, 10), Thing("star", "blue", "medium", 46, 32, 10)
    pair = scene(circle, star)

    show(pair, "a picture")
    again = StableDiffusionImg2ImgPipeline.from_pipe(paint)
    text = "a green circle and a blue star on white"
    for strength in (0.3, 0.7, 1.0):
        made = again(text, image=pair, strength=strength, **call).images[0]
        show(made, f"image to image, strength {strength:g}: {text}")

    inpaint = DiffusionPipeline.from_pretrained("langevin/shapes-inpainting")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (33, 18, 60, 46))
    hole = pair.copy()
    hole.paste((128, 128, 128), (33, 18, 60, 46))
    show(hole, "a picture with a hole")
    for thing in ("a green square", "an orange ring", "a purple star"):
        text = f"a red circle and {thing} on white"
        made = inpaint(text, image=pair, mask_image=mask, keep_outside=True, **call).images[0]
        show(made, f"inpainting: {text}")

    instruct = DiffusionPipeline.from_pretrained("langevin/shapes-instruct")
    show(pair, "a picture")
    for text in ("make the circle green", "remove the star", "make the background black"):
        show(instruct(text, image=pair, **call).images[0], f"instruction: {text}")

    net = ControlNetModel.from_pretrained("langevin/shapes-outline")
    things = Thing("cross", "red", "large", 19, 27, 14), Thing("ring", "red", "medium", 47, 42, 10)
    lines = Image.fromarray(outlines([Scene(things, "white")])[0])
    show(lines, "an outline")
    for text in ("a purple cross and a green ring", "an orange cross and a blue ring on black", "a picture"):
        show(paint(text, control=[Control(net, lines)], **call).images[0], f"ControlNet: {text}")

    text = "a red star"
    show(paint(text, **call).images[0], text)
    guider = SelfAttentionGuidance(0.75)
    show(paint(text, guiders=[guider], **call).images[0], f"self-attention guidance: {text}")
    text = "a circle"
    show(paint(text, **{**call, "seed": 6}).images[0], text)
    guider = SafeGuidance("red", **SAFEST)
    show(paint(text, guiders=[guider], **{**call, "seed": 6}).images[0], f"safe guidance away from red: {text}")

    attentive = DiffusionPipeline.from_pretrained("langevin/shapes-attention")
    for text, number in LACKING:
        tokens = shape_tokens(attentive.tokenizer, text)
        plain = {**call, "seed": number}
        show(attentive(text, **plain).images[0], text)
        guider = AttendAndExcite(tokens, **EXCITED)
        show(attentive(text, guiders=[guider], **plain).images[0], f"attend and excite: {text}")

    wide = StableDiffusionPanoramaPipeline.from_pipe(paint)
    size = {"height": 64, "width": 256, "window_size": 16, "window_stride": 8, "window_smooth": True}
    size["circular_padding"] = True
    panorama = wide("a blue ring on black", **size, **call).images[0]
    sheet = contact_sheet([image for image, _ in cells], [text for _, text in cells], columns=4, cell=CELL)
    strip = contact_sheet([panorama], ["a panorama whose ends meet: a blue ring on black"], cell=4 * CELL + 24)
    whole = Image.new("RGB", (sheet.width, sheet.height + strip.height), "white")
    whole.paste(sheet, (0, 0))
    whole.paste(strip, (0, sheet.height))
    whole.save(out)


if __name__ == "__main__":
    typer.run(main)
