"""For all tests: offline, quiet, one thread a worker; and a tiny Stable Diffusion checkpoint."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.helpers import reference_parts

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory):
    """A Stable Diffusion checkpoint folder written by the reference."""
    import diffusers

    folder = tmp_path_factory.mktemp("tiny-sd")
    parts = reference_parts(folder)
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False)
    pipe = diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler, requires_safety_checker=False)
    pipe.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"
