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
from typing import Any


def memory() -> int:
    """The most bytes of memory that this process has had so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def content(path: Path) -> dict[str, bytes | None]:
    """The bytes of a file, or of all files in a folder; None for what is neither."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return {"": None}
    if path.is_file():
        return {"": path.read_bytes()}
    return {one.name: content(one).get("") for one in path.iterdir()}


def changed(before: Path, after: Path, name: str) -> bool:
    """Whether a file or folder of a checkpoint is another one than in the checkpoint that it was copied from."""
    return content(before / name) != content(after / name)


def used(pipe: Any) -> str:
    """What comes of a call of a pipeline that was loaded: "loaded" where it works, or tells what is wrong in a line."""
    pipe.set_progress_bar_config(disable=True)
    words = {"prompt": "a", "height": 16, "width": 16} if hasattr(pipe, "tokenizer") else {}
    try:
        pipe(**words, num_inference_steps=4, seed=1)
    except ValueError as error:
        return "loaded" if "\n" not in str(error) else f"a message of several lines: {str(error)[:1200]!r}"
    except BaseException as error:
        return f"a call ends in {type(error).__name__}: {str(error)[:300]}"
    return "loaded"


def main(source: Path, place: Path, first: int, end: int) -> None:
    import torch

    from langevin import DiffusionPipeline
    from langevin.checkpoints.errors import CheckpointError
    from tests.checkpoints.spoiling import spoil

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sources = sorted(source.iterdir())
    sound = [DiffusionPipeline.from_pretrained(whole).components for whole in sources]
    for seed in range(first, end):
        folder = place / str(seed)
        shutil.copytree(sources[seed % len(sources)], folder)
        done = spoil(folder, seed)
        # mostly, parts that nobody touched are not loaded again
        whole = sources[seed % len(sources)]
        spare = {} if seed % 4 == 0 or changed(whole, folder, "model_index.json") else sound[seed % len(sources)]
        parts = {name: part for name, part in spare.items() if not changed(whole, folder, name)}
        print(json.dumps({"seed": seed, "done": done}), flush=True)
        before, start, ended = memory(), time.process_time(), "loaded"
        try:
            pipe = DiffusionPipeline.from_pretrained(folder, **parts)
        except CheckpointError as error:
            ended = "told"
            if "\n" in str(error) or len(str(error)) > 1000:
                ended = f"a message of {len(str(error))} letters: {str(error)[:1200]!r}"
        except BaseException as error:
            ended = f"{type(error).__name__}: {str(error)[:300]}"
        else:
            ended = used(pipe)
        took, more = time.process_time() - start, memory() - before
        print(json.dumps({"seed": seed, "ended": ended, "seconds": took, "bytes": more}), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
