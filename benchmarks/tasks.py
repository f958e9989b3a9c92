"""Each task of the family against diffusers: time and peak memory of a call, on the same random weights. Prints ratios.

    python benchmarks/tasks.py [--rounds 5] [--json benchmarks/results/NAME.json]

The model is a random Stable Diffusion of middle size. Times are taken in one process, turn by turn; the figure is the
median of the rounds' ratios (langevin / diffusers; below 1, langevin needs less). Peak memory is that of fresh
processes, each of which loads one pipeline and calls it once: the median of as many processes, turn by turn, since the
same process needs up to a tenth more or less from run to run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median
from typing import Any

from compare import HIGH_WATER, fixed_seed, larger_checkpoint, processor, ratio

warnings.filterwarnings("ignore")

LIBRARIES = ("langevin", "diffusers")
STEPS = 4
OLD = "diffusers.pipelines.deprecated"
# row -> (our class, where the reference keeps it, channels of the UNet, has a control network, arguments)
ROWS: dict[str, tuple[str, str, int, bool, dict[str, Any]]] = {
    "text to image": ("StableDiffusionPipeline", "diffusers", 4, False, {}),
    "image to image": ("StableDiffusionImg2ImgPipeline", "diffusers", 4, False, {"image": None, "strength": 1.0}),
    "inpainting": ("StableDiffusionInpaintPipeline", "diffusers", 4, False, {"image": None, "mask_image": None}),
    "inpainting, 9 channels": (
        "StableDiffusionInpaintPipeline",
        "diffusers",
        9,
        False,
        {"image": None, "mask_image": None},
    ),
    "instruction": ("StableDiffusionInstructPix2PixPipeline", "diffusers", 8, False, {"image": None}),
    "ControlNet": ("StableDiffusionControlNetPipeline", "diffusers", 4, True, {"image": None}),
    "panorama": (
        "StableDiffusionPanoramaPipeline",
        f"{OLD}.stable_diffusion_panorama",
        4,
        False,
        {"height": 256, "width": 768, "num_inference_steps": 2},
    ),
    "self-attention guidance": ("StableDiffusionSAGPipeline", f"{OLD}.stable_diffusion_sag", 4, False, {}),
    "attend and excite": (
        "StableDiffusionAttendAndExcitePipeline",
        f"{OLD}.stable_diffusion_attend_and_excite",
        4,
        False,
        {"token_indices": [2, 5], "thresholds": {}, "attn_res": (16, 16)},
    ),
    "safe": (
        "StableDiffusionPipelineSafe",
        f"{OLD}.stable_diffusion_safe",
        4,
        False,
        {"sld_warmup_steps": 1},
    ),
}


def pipeline(library: str, row: str, folder: Path) -> Any:
    """The pipeline of a row with the weights in ``folder``."""
    import importlib

    import torch

    name, home, channels, controlled, _ = ROWS[row]
    module = importlib.import_module("langevin" if library == "langevin" else home)
    parts = importlib.import_module(library)
    more: dict[str, Any] = {}
    if channels != 4:
        more["unet"] = parts.UNet2DConditionModel.from_pretrained(folder / f"unet-{channels}")
    if controlled:
        more["controlnet"] = parts.ControlNetModel.from_pretrained(folder / "controlnet")
    pipe = getattr(module, name).from_pretrained(folder, safety_checker=None, **more)
    pipe.scheduler = parts.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if row == "safe":  # the usual concept is longer than this tokenizer's window, where the reference cuts it
        pipe.safety_concept = "an image showing hate"
    torch.manual_seed(0)
    return pipe


def call(pipe: Any, row: str) -> Any:
    """Call it once."""
    import numpy as np
    from PIL import Image

    arguments = dict(ROWS[row][4])
    random = np.random.default_rng(0)
    if "image" in arguments:
        arguments["image"] = Image.fromarray(random.integers(0, 255, (256, 256, 3), np.uint8))
    if "mask_image" in arguments:
        mask = Image.new("L", (256, 256), 0)
        mask.paste(255, (64, 64, 192, 192))
        arguments["mask_image"] = mask
    steps = arguments.pop("num_inference_steps", STEPS)
    return pipe("a red circle and a blue square", num_inference_steps=steps, **arguments, **fixed_seed()).images


def checkpoints(folder: Path) -> None:
    """Write the model, and the networks that some tasks need, all random."""
    import torch

    from langevin import ControlNetModel, UNet2DConditionModel

    larger_checkpoint(folder)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    torch.manual_seed(1)
    for channels in (8, 9):
        settings = {k: v for k, v in unet.config.items() if not k.startswith("_")}
        UNet2DConditionModel(**{**settings, "in_channels": channels}).save_pretrained(folder / f"unet-{channels}")
    ControlNetModel.from_unet(unet).save_pretrained(folder / "controlnet")


def peak_memory(library: str, row: str, folder: Path) -> float:
    """MiB that a fresh process had resident at most."""
    command = [sys.executable, "-W", "ignore", __file__, "--memory", library, row, str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="only these")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        library, row, folder = arguments.memory
        call(pipeline(library, row, Path(folder)), row)
        exec(HIGH_WATER)
        return

    import diffusers
    import torch
    from rich.console import Console
    from rich.table import Table

    diffusers.utils.logging.set_verbosity_error()
    table = Table(title="langevin / diffusers (below 1: langevin needs less)")
    for column in ("task", "seconds", "diffusers", "ratio", "MiB", "diffusers", "ratio"):
        table.add_column(column, justify="left" if column == "task" else "right")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints(folder)
        for row in arguments.rows:
            Console(stderr=True).print(f"{row} …")
            ours, theirs = (pipeline(library, row, folder) for library in LIBRARIES)
            time = ratio(lambda p=ours, r=row: call(p, r), lambda p=theirs, r=row: call(p, r), arguments.rounds)
            peaks = [[peak_memory(name, row, folder) for name in LIBRARIES] for _ in range(arguments.rounds)]
            memory = {name: median(column) for name, column in zip(LIBRARIES, zip(*peaks, strict=True), strict=True)}
            memory["ratio"] = memory["langevin"] / memory["diffusers"]
            figures[row] = {"time": time, "memory": memory}
            cells = [f"{time[k]:.2f}" for k in ("langevin", "diffusers", "ratio")]
            cells += [f"{memory['langevin']:.0f}", f"{memory['diffusers']:.0f}", f"{memory['ratio']:.2f}"]
            table.add_row(row, *cells)
    figures["machine"] = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    Console(width=110).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
