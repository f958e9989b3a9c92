"""Pairs of pipelines, ours and the reference's, on the same weights; shared by the tests of the family."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import torch

import langevin
from tests.helpers import reference_parts

ATOL = 1e-4
SCHEDULERS = {
    "ddim": ("DDIMScheduler", dict(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False)),
    "ddim v trailing": (
        "DDIMScheduler",
        dict(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, steps_offset=1),
    ),
    "ddim old config": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", dict(skip_prk_steps=True, steps_offset=1)),
    "pndm prk": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", dict(beta_schedule="scaled_linear")),
    "euler karras v": ("EulerDiscreteScheduler", dict(use_karras_sigmas=True, prediction_type="v_prediction")),
    "ddpm": ("DDPMScheduler", {}),
    "euler a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm++ 2m karras": ("DPMSolverMultistepScheduler", dict(use_karras_sigmas=True)),
    "unipc": ("UniPCMultistepScheduler", {}),
}
SAMPLE = {
    f"{name} sample": (cls, {**config, "prediction_type": "sample"})
    for name, (cls, config) in {**SCHEDULERS, "dpm++": ("DPMSolverMultistepScheduler", {})}.items()
}
"""The same for networks that predict the clean x."""
UNETS = {
    "sd1": {},
    "sd2": dict(use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True),
    "distilled": dict(time_cond_proj_dim=16),
    "inpaint": dict(in_channels=9),
    "pix2pix": dict(in_channels=8),
    "latent upscale": dict(in_channels=8, out_channels=5, time_cond_proj_dim=128 + 24),
    "latent upscale k": dict(
        in_channels=8,
        out_channels=5,
        time_cond_proj_dim=128 + 24,
        block_out_channels=(32, 64, 64),
        attention_head_dim=8,
        norm_num_groups=None,
        down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        act_fn="gelu",
        conv_in_kernel=1,
        conv_out_kernel=1,
        resnet_time_scale_shift="scale_shift",
        cross_attention_norm="layer_norm",
    ),
    "upscale": dict(in_channels=7, num_class_embeds=1000),
    "upscale sd2": dict(in_channels=7, num_class_embeds=1000, use_linear_projection=True, attention_head_dim=(2, 4)),
    "depth": dict(in_channels=5),
    "depth sd2": dict(in_channels=5, use_linear_projection=True, attention_head_dim=(2, 4)),
    "unclip": dict(class_embed_type="projection", projection_class_embeddings_input_dim=48),
    "unclip sd2": dict(
        class_embed_type="projection",
        projection_class_embeddings_input_dim=48,
        use_linear_projection=True,
        attention_head_dim=(2, 4),
    ),
}


UNCONDITIONAL = dict(
    sample_size=16,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=4,
    attention_head_dim=4,
)
"""A UNet2DModel's config."""


class Twins:
    """``twins("StableDiffusionPipeline", unet="sd1", scheduler="euler")`` -> our pipeline and the reference's."""

    def __init__(self, folder):
        self.folder = folder
        self.made = {}

    def __call__(self, name="StableDiffusionPipeline", *, unet="sd1", scheduler="ddim", safety=False, **parts):
        """``parts`` are (ours, the reference's) of further components, by name; ``name`` may be such a pair too."""
        import diffusers

        if (unet, safety) not in self.made:
            folder = self.folder / f"{unet}-{safety}"
            theirs = reference_parts(folder, unet=UNETS[unet], safety=safety)
            theirs["text_encoder"].__dict__.setdefault("text_model", theirs["text_encoder"])
            pipe = diffusers.StableDiffusionPipeline(
                **theirs, scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False
            )
            pipe.save_pretrained(folder / "checkpoint")
            ours = langevin.StableDiffusionPipeline.from_pretrained(folder / "checkpoint")
            self.made[unet, safety] = ours.components, pipe.components
        names = (name, name) if isinstance(name, str) else name
        chosen, config = {**SCHEDULERS, **SAMPLE}[scheduler] if isinstance(scheduler, str) else scheduler
        pipes = []
        for k, library in enumerate((langevin, diffusers)):
            cls = getattr(library, names[k]) if isinstance(names[k], str) else names[k]
            # built anew, so that both apply what they do to old scheduler configs
            components = {**self.made[unet, safety][k], "scheduler": getattr(library, chosen)(**config)}
            components |= {part: pair[k] for part, pair in parts.items()}
            components["requires_safety_checker"] = False
            takes = inspect.signature(cls.__init__).parameters
            pipe = cls(**{part: value for part, value in components.items() if part in takes})
            pipe.set_progress_bar_config(disable=True)
            pipes.append(pipe)
        return tuple(pipes)


def steps(scheduler, usual):
    """``usual``, but 4 where latents of a random network are clipped: after 7 of the reference's own steps, 1e-7 on the
    first noise is 3e-4."""
    return {"num_inference_steps": 4 if scheduler == "ddim old config" else usual}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(pipe, *args, **kwargs):
    kwargs = {"generator": None if "seed" in kwargs else generator(), "output_type": "np", **kwargs}
    return np.asarray(pipe(*args, **kwargs).images)


def assert_same(both, *args, atol=ATOL, **kwargs):
    """Same weights, same inputs, same seed: same pictures. ``kwargs`` may hold functions that make an argument anew."""
    ours, theirs = (images(pipe, *args, **{k: made(v) for k, v in kwargs.items()}) for pipe in both)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=atol)


def assert_checkpoints_go_both_ways(both, folder, same=assert_same, **call):
    """What each side saves, the other loads, and the pictures stay the same."""
    ours, theirs = both
    theirs.save_pretrained(folder / "theirs")
    ours.save_pretrained(folder / "ours")
    read = langevin.DiffusionPipeline.from_pretrained(folder / "theirs")
    assert type(read) is type(ours)
    back = type(theirs).from_pretrained(folder / "ours")
    for pipe in (read, back):
        pipe.set_progress_bar_config(disable=True)
    same((read, back), "a cat", **call)


def assert_made_again(pipe, folder, *args, **call):
    """``langevin again`` follows the settings of a picture that a saved pipeline made with another scheduler, pixel by
    pixel."""
    from langevin.cli.again import again

    pipe.save_pretrained(folder / "saved")
    read = langevin.DiffusionPipeline.from_pretrained(folder / "saved")
    read.set_progress_bar_config(disable=True)
    read.scheduler = langevin.EulerAncestralDiscreteScheduler(beta_start=0.001)
    read(*args, **call, seed=3).images[0].save(folder / "made.png")
    again(folder / "made.png", out=None, model=None, device="cpu", force=False, yes=True)


def made(value):
    return value() if getattr(value, "__name__", "") == "<lambda>" else value


def picture(height=16, width=16, seed=0, count=None):
    """A random tensor in [0, 1], smooth enough to be told from noise."""
    rough = torch.rand(count or 1, 3, 4, 4, generator=generator(seed))
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bilinear")
    return smooth if count else smooth[0]


def pil(height=16, width=16, seed=0):
    from PIL import Image

    pixels = (picture(height, width, seed).permute(1, 2, 0).numpy() * 255).round().astype("uint8")
    return Image.fromarray(pixels)


def mask(height=16, width=16, box=(4, 2, 12, 9)):
    """White in the box (left, top, right, bottom)."""
    from PIL import Image

    image = Image.new("L", (width, height))
    image.paste(255, box)
    return image


def mask_tensor(*args, **kwargs):
    return torch.from_numpy(np.array(mask(*args, **kwargs)) / 255.0).float()[None, None]


def assert_offloading_changes_nothing(pipe, way, **call):
    """A copy of the pipeline gives its pictures offloaded, and again when that has ended."""
    pipe = type(pipe)(**copy.deepcopy(pipe.components))
    pipe.set_progress_bar_config(disable=True)
    wanted = images(pipe, **call)
    getattr(pipe, way)(device="cpu")
    np.testing.assert_allclose(images(pipe, **call), wanted, atol=1e-5)
    pipe.remove_all_hooks()
    np.testing.assert_allclose(images(pipe, **call), wanted, atol=1e-5)
