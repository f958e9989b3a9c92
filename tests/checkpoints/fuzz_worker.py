"""Loads spoiled checkpoints, one after the other, in a process whose memory and time the test watches.

Run with a folder of checkpoints, a place for copies, the first seed and one past the last; prints two lines of JSON for
each case, one before it and one after it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
import warnings
from pathlib import Path


def memory() -> int:
    """The most bytes of memory that this process has had so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(source: Path, place: Path, first: int, end: int) -> None:
    import torch

    from langevin import DiffusionPipeline
    from langevin.checkpoints.errors import CheckpointError
    from tests.checkpoints.spoiling import spoil

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sources = sorted(source.iterdir())
    for whole in sources:
        DiffusionPipeline.from_pretrained(whole)
    for seed in range(first, end):
        folder = place / str(seed)
        shutil.copytree(sources[seed % len(sources)], folder)
        done = spoil(folder, seed)
        print(json.dumps({"seed": seed, "done": done}), flush=True)
        before, start, ended = memory(), time.monotonic(), "loaded"
        try:
            DiffusionPipeline.from_pretrained(folder)
        except CheckpointError as error:
            ended = "told"
            if "\n" in str(error) or len(str(error)) > 1000:
                ended = f"a message of {len(str(error))} letters: {str(error)[:1200]!r}"
        except BaseException as error:
            ended = f"{type(error).__name__}: {str(error)[:300]}"
        took, more = time.monotonic() - start, memory() - before
        print(json.dumps({"seed": seed, "ended": ended, "seconds": took, "bytes": more}), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
