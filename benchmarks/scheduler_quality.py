"""Quality against steps for every scheduler that paints with the usual models, on the model in the box.

    python benchmarks/scheduler_quality.py [--prompts 48] [--json benchmarks/results/scheduler-quality.json]

Two figures for each scheduler and number of steps. *As asked*: the share of pictures that show exactly what the prompt
says, judged by ``langevin.zoo.reader``, over prompts kept out of training (half with one thing, half with two), one
seed each. *Off*: how far a picture is from the one that the exact solution makes of the same noise (DPM-Solver++ in
100 steps), as root mean square over pixels in [0, 1], the median over the prompts; small means that more steps would
change nothing. Schedulers that add noise have no such limit. Prints a Markdown table, the one in docs/schedulers.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import langevin
from langevin.schedulers.catalogue import interchangeable
from langevin.zoo.evaluate import prompts
from langevin.zoo.reader import matches, read
from langevin.zoo.world import parse

STEPS = (3, 5, 8, 12, 20, 50)
LIMIT = 100


def paint(pipe: Any, texts: list[str], steps: int) -> np.ndarray:
    """(n, 64, 64, 3) in [0, 1]; picture k is made from seed k."""
    parts = [range(k, min(k + 24, len(texts))) for k in range(0, len(texts), 24)]
    made = [
        pipe([texts[k] for k in part], num_inference_steps=steps, seed=list(part), output_type="np").images
        for part in parts
    ]
    return np.concatenate(made)


def as_asked(pictures: np.ndarray, texts: list[str]) -> float:
    bytes_ = (pictures * 255).round().astype(np.uint8)
    return float(np.mean([matches(read(p), parse(t)) for p, t in zip(bytes_, texts, strict=True)]))


def stochastic(scheduler: Any) -> bool:
    """Whether a run with the scheduler's own settings draws noise."""
    drawn = []
    run = scheduler.plan(6)
    x = torch.ones(1, 4, 2, 2)
    for i in range(len(run)):
        x = run.step(x, i, x, lambda like: drawn.append(1) or torch.zeros_like(like)).prev_sample
    return bool(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--schedulers", nargs="*", help="class names [default: all]")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    pipe = langevin.DiffusionPipeline.from_pretrained("langevin/shapes")
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    half = arguments.prompts // 2
    texts = prompts(1, False, half) + prompts(2, False, half)
    pipe.scheduler = langevin.DPMSolverMultistepScheduler.from_config(config)
    limit = paint(pipe, texts, LIMIT)
    rows: dict[str, Any] = {}
    for name in tqdm(arguments.schedulers or interchangeable(), unit="scheduler"):
        pipe.scheduler = getattr(langevin, name).from_config(config)
        row: dict[str, Any] = {"stochastic": stochastic(pipe.scheduler), "calls": len(pipe.scheduler.plan(20)) / 20}
        for steps in STEPS:
            try:
                pictures = paint(pipe, texts, steps)
            except ValueError as error:  # fewer steps than it can do
                row[str(steps)] = {"refused": str(error)}
                continue
            row[str(steps)] = {"right": as_asked(pictures, texts)}
            if not row["stochastic"]:
                row[str(steps)]["off"] = float(np.median(np.sqrt(np.mean((pictures - limit) ** 2, axis=(1, 2, 3)))))
        rows[name] = row

    print("| scheduler | calls a step | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |")
    print("|---|---|" + "---|" * len(STEPS))
    for name, row in rows.items():
        cells = []
        for steps in STEPS:
            cell = row[str(steps)]
            off = f" ({cell['off']:.3f})" if "off" in cell else ""
            cells.append("–" if "refused" in cell else f"{100 * cell['right']:.0f} %{off}")
        calls = f"{row['calls']:.3g}" if row["calls"] >= 1 else "as needed"  # it lays its own steps on the way
        print(f"| {name.removesuffix('Scheduler')} | {calls} | " + " | ".join(cells) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"prompts": len(texts), "schedulers": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
