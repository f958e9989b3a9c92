"""Checkpoints spoiled at random: nothing but the documented error, soon, and without filling the memory.

``LANGEVIN_FUZZ=20 pytest tests/checkpoints/test_fuzz.py`` tries twenty times as many; ``LANGEVIN_FUZZ_FROM`` is the
first seed.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import diffusers
import pytest

from tests.checkpoints import fuzz_worker
from tests.helpers import reference_parts, tiny_tokenizer

CASES = int(60 * float(os.environ.get("LANGEVIN_FUZZ", "1")))
FIRST = int(os.environ.get("LANGEVIN_FUZZ_FROM", "0"))
LONGEST = 10.0  # seconds of work for one case; a case that waits is seen by the clock
MOST = 2**30  # bytes that one case may add


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder of small checkpoints: all parts of Stable Diffusion; with shards and an old tokenizer; pixels alone."""
    place = tmp_path_factory.mktemp("checkpoints")
    parts = reference_parts(tmp_path_factory.mktemp("parts"), safety=True)
    for name, scheduler, options in [
        ("whole", diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1), {}),
        ("shards", diffusers.DPMSolverMultistepScheduler(), {"max_shard_size": "100KB"}),
        ("pickles", diffusers.EulerDiscreteScheduler(), {"safe_serialization": False}),
    ]:
        pipe = diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler)
        pipe.save_pretrained(place / name, **options)
    shutil.rmtree(place / "shards/tokenizer")
    tiny_tokenizer(place / "shards/tokenizer")
    stages = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    unet = diffusers.UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, **stages)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(place / "pixels")
    return place


def test_checkpoints_spoiled_at_random_end_in_the_documented_error(checkpoints, tmp_path):
    wrong = []
    seed, last = FIRST, FIRST + CASES
    while seed < last:  # a worker that hangs or dies is replaced by another one, which goes on after that case
        command = [sys.executable, fuzz_worker.__file__, checkpoints, tmp_path, seed, last]
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
        worker = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        lines: queue.Queue[str] = queue.Queue()
        assert worker.stdout is not None
        reader = threading.Thread(target=_hand_over, args=(worker.stdout, lines), daemon=True)
        reader.start()
        told: dict = {}
        try:
            # the first line comes after the imports, which may take their time on a busy machine
            while line := lines.get(timeout=120 if not told else 12 * LONGEST):
                if not line.startswith('{"seed"'):  # something that a library prints
                    continue
                told |= json.loads(line)
                if "ended" not in told:
                    continue
                if told["ended"] not in ("loaded", "told") or told["seconds"] > LONGEST or told["bytes"] > MOST:
                    wrong.append(told)
                seed, told = told["seed"] + 1, {"done": ""}
        except queue.Empty:
            wrong.append({**told, "ended": "it hangs"})
        worker.kill()
        worker.wait()
        if "seed" in told:
            if not wrong or wrong[-1].get("seed") != told["seed"]:
                wrong.append({**told, "ended": f"the process died ({worker.returncode})"})
            seed = told["seed"] + 1
        elif seed < last:
            pytest.fail(f"the worker did not start: {worker.returncode}")
    assert not wrong, "\n".join(map(str, wrong))


def _hand_over(lines, to: queue.Queue[str]) -> None:
    for line in lines:
        to.put(line)
    to.put("")
