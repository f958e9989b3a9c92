"""What a run needs of the machine: processes and precision, memory, and signals to stop."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from langevin.training.flags import BadFlags, Flags

logger = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
"""In what the parts that are not trained are kept, by accelerate's names of precisions."""


def has_accelerator() -> bool:
    return torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())


def accelerator_for(flags: Flags, folder: Path, trackers: Sequence[str]) -> Any:
    """The accelerator of a run: processes, devices and precision, as launchers and flags say."""
    try:
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration
    except ImportError:
        raise BadFlags("training needs accelerate: pip install 'langevin[train]'") from None
    precision = flags.mixed_precision
    if flags.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    options = {
        "gradient_accumulation_steps": flags.gradient_accumulation_steps,
        "log_with": None if flags.dry_run else list(trackers) or None,
        "project_config": ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / flags.logging_dir)),
    }
    if precision == "fp16" and not has_accelerator():
        logger.warning("--mixed_precision=fp16 needs a GPU; on this CPU bf16 is used instead")
        precision = "bf16"
    return Accelerator(mixed_precision=precision, **options)


def checkpoint_activations(network: nn.Module) -> None:
    """Have a network compute its activations again in the backward pass."""
    method: Any = getattr(network, "enable_gradient_checkpointing", None) or getattr(
        network, "gradient_checkpointing_enable", None
    )
    if method is None:
        raise BadFlags(f"--gradient_checkpointing: {type(network).__name__} cannot do it")
    method()


def memory_used() -> int:
    """The most bytes that this process has used: of the GPU, or where there is none, of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Signals:
    """While it lasts, SIGTERM and Ctrl-C are written down, so that a run can save before it ends. The second one ends
    it at once.
    """

    def __init__(self) -> None:
        self.told: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        def heed(number: int, frame: Any) -> None:
            if self.told is not None:
                raise KeyboardInterrupt
            self.told = number
            print("\nstopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr)

        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self.before[number] = signal.signal(number, heed)
            except ValueError:  # not in the main thread
                break
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
