"""Pairs of video pipelines, ours and the reference's, on the same weights."""

from __future__ import annotations

import numpy as np
import torch

import langevin
from tests.helpers import reference_parts
from tests.pipelines.family_checks import SCHEDULERS, generator

UNET = dict(
    sample_size=8,
    block_out_channels=(16, 32),
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=24,
    attention_head_dim=8,
)
UNETS = {"plain": {}, "wide": {"attention_head_dim": 16, "layers_per_block": 2}}


class VideoTwins:
    """``twins("TextToVideoSDPipeline", "euler")`` -> our pipeline and the reference's."""

    def __init__(self, folder):
        self.folder = folder
        self.made = {}

    def parts(self, unet="plain"):
        import diffusers

        if unet not in self.made:
            folder = self.folder / unet
            theirs = reference_parts(folder)
            theirs = {name: part for name, part in theirs.items() if part is not None}
            theirs["text_encoder"].__dict__.setdefault("text_model", theirs["text_encoder"])
            theirs["unet"] = diffusers.UNet3DConditionModel(**{**UNET, **UNETS[unet]}).eval()
            for name, parameter in theirs["unet"].named_parameters():
                if ".conv4." in name:  # which begin at zero
                    torch.nn.init.normal_(parameter, std=0.05)
            pipe = diffusers.TextToVideoSDPipeline(**theirs, scheduler=diffusers.DDIMScheduler())
            pipe.save_pretrained(folder / "checkpoint")
            ours = langevin.DiffusionPipeline.from_pretrained(folder / "checkpoint")
            self.made[unet] = ours.components, pipe.components
        return self.made[unet]

    def __call__(self, name="TextToVideoSDPipeline", scheduler="ddim", unet="plain"):
        import diffusers

        cls, config = SCHEDULERS[scheduler]
        pipes = []
        for library, parts in zip((langevin, diffusers), self.parts(unet), strict=True):
            pipe = getattr(library, name)(**{**parts, "scheduler": getattr(library, cls)(**config)})
            pipe.set_progress_bar_config(disable=True)
            pipes.append(pipe)
        return tuple(pipes)


def frames(pipe, *args, **kwargs):
    kwargs = {"generator": None if "seed" in kwargs else generator(), **kwargs}
    return np.asarray(pipe(*args, **kwargs).frames)


def assert_same_frames(both, *args, atol=1e-4, **kwargs):
    ours, theirs = (frames(pipe, *args, **kwargs) for pipe in both)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=atol)


def clip(count=3, height=16, width=16, seed=0):
    """A tensor ``(frames, 3, height, width)`` in [0, 1], smooth enough to be told from noise."""
    rough = torch.rand(count, 3, 4, 4, generator=generator(seed))
    return torch.nn.functional.interpolate(rough, (height, width), mode="bilinear")


def clip_pil(count=3, height=16, width=16, seed=0):
    from PIL import Image

    pixels = (clip(count, height, width, seed).permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")
    return [Image.fromarray(one) for one in pixels]
