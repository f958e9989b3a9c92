"""langevin: diffusion pipelines, schedulers and models that combine freely.

Public names are imported when they are first used, so that ``import langevin`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

# module -> the public names that live there
_PUBLIC = {
    "langevin.pipelines.base": ["DiffusionPipeline"],
    "langevin.pipelines.stable_diffusion": ["StableDiffusionPipeline", "StableDiffusionPipelineOutput"],
    "langevin.pipelines.unconditional": ["DDIMPipeline", "DDPMPipeline"],
    "langevin.pipelines.output": ["ImagePipelineOutput"],
    "langevin.pipelines.safety": ["StableDiffusionSafetyChecker"],
    "langevin.models.base": ["ModelMixin"],
    "langevin.models.unet_2d": ["UNet2DModel"],
    "langevin.models.unet_2d_condition": ["UNet2DConditionModel"],
    "langevin.models.autoencoder_kl": ["AutoencoderKL"],
    "langevin.checkpoints.config": ["ConfigMixin"],
    "langevin.schedulers.base": ["SchedulerMixin"],
    "langevin.schedulers.ddim": ["DDIMScheduler"],
    "langevin.schedulers.ddpm": ["DDPMScheduler"],
    "langevin.schedulers.dpm_multistep": ["DPMSolverMultistepScheduler"],
    "langevin.schedulers.euler": ["EulerDiscreteScheduler"],
    "langevin.schedulers.euler_ancestral": ["EulerAncestralDiscreteScheduler"],
    "langevin.schedulers.heun": ["HeunDiscreteScheduler"],
    "langevin.schedulers.lms": ["LMSDiscreteScheduler"],
    "langevin.schedulers.pndm": ["PNDMScheduler"],
    "langevin.schedulers.unipc": ["UniPCMultistepScheduler"],
    "langevin.guiders.base": ["Guider"],
    "langevin.guiders.classifier_free": ["ClassifierFreeGuidance"],
    "langevin.guiders.rescale": ["GuidanceRescale"],
    "langevin.media.images": ["Picture", "VaeImageProcessor", "make_image_grid"],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'langevin' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
