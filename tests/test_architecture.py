"""The code in ARCHITECTURE.md and docs/ does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import langevin

TEXT = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def names():
    """What the page's code defines, run in order."""
    pipe = langevin.DiffusionPipeline.from_pretrained("langevin/shapes")
    pipe.set_progress_bar_config(disable=True)
    names = {"pipe": pipe}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        exec(compile(block, "ARCHITECTURE.md", "exec", dont_inherit=True), names)
    return names


def test_the_new_pipeline_is_brighter(names):
    pipe = names["BrighterPipeline"].from_pipe(names["pipe"])
    pipe.set_progress_bar_config(disable=True)
    plain, brighter = (
        pipe("a red circle", amount, num_inference_steps=4, seed=7, output_type="latent").images for amount in (0, 0.2)
    )
    assert (brighter - plain).mean() > 0.05  # the last step alone adds 0.2 / 4
    assert pipe("a red circle", 0.2, num_inference_steps=1, seed=7).images[0].settings["amount"] == 0.2
    with pytest.raises(ValueError, match="amount is 2; it must be a finite number, 0 to 1"):
        pipe("a red circle", 2)


def test_the_pipeline_of_two_stages_saves_loads_and_runs(names, tmp_path):
    model = langevin.DDIMPipeline.from_pretrained("langevin/shapes-unconditional")
    pipe = names["TwicePipeline"](model.unet, model.scheduler)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(seed=1).images[0]
    assert made.settings["stages"].keys() == {"first", "second"}
    pipe.save_pretrained(tmp_path)
    again = names["TwicePipeline"].from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again(seed=1).images[0].tobytes() == made.tobytes()


def test_the_new_scheduler_is_of_second_order(names):
    """On dx/dσ = x/σ · σ²/(1 + σ²), whose solution is sqrt(1 + σ²), halving the steps' length quarters the error."""

    def error(steps):
        run = names["TwoSlopesScheduler"]().plan(sigmas=[4 - 3 * k / steps for k in range(steps + 1)])
        x = torch.full((1, 1, 1, 1), 17.0, dtype=torch.float64).sqrt()
        for i in range(steps):
            sigma = run.levels[i].sigma
            x = run.step(sigma * x / (1 + sigma**2), i, x).prev_sample  # ε = dx/dσ
        return abs(float(x) - 2**0.5)

    assert 3 < error(40) / error(80) < 5


def test_the_new_codec_knows_sizes(names):
    codec = names["HalfCodec"]()
    pixels = torch.rand(2, 3, 8, 12)
    assert codec.encode(pixels).shape == codec.shape(2, (8, 12))
    assert codec.decode(codec.encode(pixels)).shape == pixels.shape
