"""langevin and diffusers side by side: the same weights, one process, turn by turn. Prints ratios.

    python benchmarks/compare.py [--rounds 7] [--json benchmarks/results/NAME.json]

Machines are noisy, so each round times both, and the figure to read is the median of the rounds' ratios
(langevin / diffusers; below 1, langevin needs less). Import time and peak memory are taken in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

IMPORTS = {
    "bare Python": "pass",
    "import langevin": "import langevin",
    "import torch": "import torch",
    "from langevin import StableDiffusionPipeline": "from langevin import StableDiffusionPipeline",
    "from diffusers import StableDiffusionPipeline": "from diffusers import StableDiffusionPipeline",
}
MEMORY = """
import torch
from {library} import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({folder!r}, safety_checker=None)
pipe.set_progress_bar_config(disable=True)
pipe(["a red circle"] * {batch}, num_inference_steps=5, generator=torch.Generator().manual_seed(0))
"""
HIGH_WATER = """
import sys
# a process begins with its parent's ru_maxrss, so ask for this one's own where that can be asked for
try:
    print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
except (OSError, StopIteration):
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""
"""Prints the most KiB that this process had resident."""


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)


def imports(rounds: int) -> dict[str, float]:
    """Median seconds of each import in a fresh process."""
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for code in IMPORTS.values():
        fresh(code)  # warm the disk cache
    for _ in range(rounds):
        for name, code in IMPORTS.items():
            taken[name].append(seconds(lambda code=code: fresh(code)))
    return {name: statistics.median(values) for name, values in taken.items()}


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Both in turn after a warm-up each; medians, and the median of the ratios."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return {
        "langevin": statistics.median(a for a, _ in pairs),
        "diffusers": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def outside_network(pipe: Any, prompt: str, steps: tuple[int, int] = (10, 410)) -> float:
    """Processor seconds per step that are not spent in the network, on one thread.

    The network's forward is replaced by a fixed answer, and two run lengths are compared, each at its best of three.
    """
    import torch

    answers: dict[Any, Any] = {}

    def forward(x: Any, *args: Any, **kwargs: Any) -> tuple[Any]:
        if x.shape not in answers:
            answers[x.shape] = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return (answers[x.shape],)

    def run(count: int) -> float:
        start = time.process_time()
        pipe(prompt, num_inference_steps=count, output_type="latent", **fixed_seed())
        return time.process_time() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipe.unet.forward = forward
    try:
        short, long = (min(run(count) for _ in range(3)) for count in steps)
    finally:
        del pipe.unet.forward
        torch.set_num_threads(threads)
    return (long - short) / (steps[1] - steps[0])


def fixed_seed() -> dict[str, Any]:
    import torch

    return {"generator": torch.Generator().manual_seed(0)}


def larger_checkpoint(folder: Path) -> Path:
    """A random Stable Diffusion checkpoint of middle size, for times that the network rules."""
    import torch

    from langevin import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    small = DiffusionPipeline.from_pretrained("langevin/shapes")
    dim = small.text_encoder.config.hidden_size
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(96, 192, 384),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=dim,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    parts = {k: v for k, v in small.components.items() if k not in ("unet", "vae")}
    StableDiffusionPipeline(unet=unet, vae=vae, **parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def peak_memory(folder: Path, library: str, batch: int) -> float:
    """MiB that a fresh process had resident at most."""
    return int(fresh(MEMORY.format(library=library, folder=str(folder), batch=batch) + HIGH_WATER).stdout) / 1024


def measure(rounds: int) -> dict[str, Any]:
    import tempfile

    import torch
    from rich.console import Console

    console = Console(stderr=True)
    console.print("import time, in fresh processes …")
    figures: dict[str, Any] = {"imports": imports(rounds)}

    import diffusers

    import langevin
    from langevin.zoo import path

    diffusers.utils.logging.set_verbosity_error()
    shapes = path("langevin/shapes")
    prompt = "a red circle left of a blue square"

    def load(library: Any, folder: Path) -> Any:
        pipe = library.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    console.print("load time …")
    figures["load"] = ratio(lambda: load(langevin, shapes), lambda: load(diffusers, shapes), rounds)

    ours, theirs = load(langevin, shapes), load(diffusers, shapes)
    console.print("time per step outside the network …")
    names = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler")
    figures["outside_network"] = {}
    for name in names:
        for pipe, library in ((ours, langevin), (theirs, diffusers)):
            pipe.scheduler = getattr(library, name).from_config(pipe.scheduler.config)
        pairs = [(outside_network(ours, prompt), outside_network(theirs, prompt)) for _ in range(rounds + 1)][1:]
        figures["outside_network"][name] = {
            "langevin": statistics.median(a for a, _ in pairs),
            "diffusers": statistics.median(b for _, b in pairs),
            "ratio": statistics.median(a / b for a, b in pairs),
        }

    console.print("whole generation …")
    ours, theirs = load(langevin, shapes), load(diffusers, shapes)

    def generate(pipe: Any, steps: int) -> Callable[[], Any]:
        return lambda: pipe(prompt, num_inference_steps=steps, **fixed_seed())

    figures["generation"] = {"langevin/shapes, 20 steps": ratio(generate(ours, 20), generate(theirs, 20), rounds)}
    with tempfile.TemporaryDirectory() as folder:
        middle = larger_checkpoint(Path(folder) / "middle")
        ours, theirs = load(langevin, middle), load(diffusers, middle)
        figures["generation"]["random model of middle size, 5 steps"] = ratio(
            generate(ours, 5), generate(theirs, 5), rounds
        )
        console.print("peak memory, in fresh processes …")
        figures["memory"] = {
            library: statistics.median(peak_memory(middle, library, 2) for _ in range(3))
            for library in ("langevin", "diffusers")
        }
    figures["memory"]["ratio"] = figures["memory"]["langevin"] / figures["memory"]["diffusers"]
    figures["machine"] = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    return figures


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="langevin / diffusers (below 1: langevin needs less)")
    for column in ("what", "langevin", "diffusers", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    taken = figures["imports"]
    bare, torch_alone = taken["bare Python"], taken["import torch"]
    ours, theirs = (taken[f"from {name} import StableDiffusionPipeline"] for name in ("langevin", "diffusers"))
    table.add_row("from … import StableDiffusionPipeline", f"{ours:.2f} s", f"{theirs:.2f} s", f"{ours / theirs:.2f}")
    table.add_row(
        "  the same, in units of import torch", f"{ours / torch_alone:.2f}", f"{theirs / torch_alone:.2f}", ""
    )
    table.add_row("  import langevin, above bare Python", f"{taken['import langevin'] - bare:.3f} s", "", "")

    def row(what: str, pair: dict[str, float], unit: str = "s", scale: float = 1) -> None:
        a, b = (f"{pair[k] * scale:.3g} {unit}" for k in ("langevin", "diffusers"))
        table.add_row(what, a, b, f"{pair['ratio']:.2f}")

    row("load langevin/shapes", figures["load"])
    for name, pair in figures["outside_network"].items():
        row(f"per step outside the network, {name}", pair, "µs", 1e6)
    for name, pair in figures["generation"].items():
        row(f"generation, {name}", pair)
    row("peak memory, model of middle size", figures["memory"], "MiB")
    Console(width=110).print(table)
    print(json.dumps(figures["machine"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    report(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
