"""langevin: diffusion pipelines, schedulers and models that combine freely.

Public names are imported when they are first used, so that ``import langevin`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

# module -> the public names that live there
_PUBLIC = {
    "langevin.pipelines.base": ["DiffusionPipeline"],
    "langevin.pipelines.stable_diffusion": ["StableDiffusionPipeline"],
    "langevin.pipelines.stable_diffusion_base": ["StableDiffusionPipelineOutput"],
    "langevin.pipelines.img2img": ["StableDiffusionImg2ImgPipeline"],
    "langevin.pipelines.panorama": ["StableDiffusionPanoramaPipeline"],
    "langevin.pipelines.safe": ["SafetyConfig", "StableDiffusionPipelineSafe", "StableDiffusionSafePipelineOutput"],
    "langevin.pipelines.inpaint": ["StableDiffusionInpaintPipeline"],
    "langevin.pipelines.sag": ["StableDiffusionSAGPipeline"],
    "langevin.pipelines.attend_and_excite": ["StableDiffusionAttendAndExcitePipeline"],
    "langevin.pipelines.controlnet": ["StableDiffusionControlNetPipeline"],
    "langevin.pipelines.instruct_pix2pix": ["StableDiffusionInstructPix2PixPipeline"],
    "langevin.pipelines.unconditional": ["DDIMPipeline", "DDPMPipeline"],
    "langevin.pipelines.output": ["ImagePipelineOutput"],
    "langevin.pipelines.safety": ["SafeStableDiffusionSafetyChecker", "StableDiffusionSafetyChecker"],
    "langevin.models.base": ["ModelMixin"],
    "langevin.models.unet_2d": ["UNet2DModel"],
    "langevin.models.unet_2d_condition": ["UNet2DConditionModel"],
    "langevin.models.autoencoder_kl": ["AutoencoderKL"],
    "langevin.models.controlnet": ["ControlNetModel"],
    "langevin.models.multi_controlnet": ["MultiControlNetModel"],
    "langevin.models.encoders.ldm_bert": ["LDMBertConfig", "LDMBertModel"],
    "langevin.models.encoders.roberta_series": ["RobertaSeriesConfig", "RobertaSeriesModelWithTransformation"],
    "langevin.checkpoints.config": ["ConfigMixin"],
    "langevin.schedulers.base": ["SchedulerMixin"],
    "langevin.schedulers.consistency": ["CMStochasticIterativeScheduler"],
    "langevin.schedulers.cosine_dpm": ["CosineDPMSolverMultistepScheduler"],
    "langevin.schedulers.ddim": ["DDIMScheduler"],
    "langevin.schedulers.ddpm": ["DDPMScheduler"],
    "langevin.schedulers.deis": ["DEISMultistepScheduler"],
    "langevin.schedulers.dpm_adaptive": ["DPMAdaptiveScheduler"],
    "langevin.schedulers.dpm_fast": ["DPMFastScheduler"],
    "langevin.schedulers.dpm_multistep": ["DPMSolverMultistepScheduler"],
    "langevin.schedulers.dpm_sde": ["DPMSolverSDEScheduler"],
    "langevin.schedulers.dpm_singlestep": ["DPMSolverSinglestepScheduler"],
    "langevin.schedulers.dpmpp_2s_ancestral": ["DPMSolver2SAncestralScheduler"],
    "langevin.schedulers.dpmpp_3m_sde": ["DPMSolver3MSDEScheduler"],
    "langevin.schedulers.edm_dpm_multistep": ["EDMDPMSolverMultistepScheduler"],
    "langevin.schedulers.edm_euler": ["EDMEulerScheduler"],
    "langevin.schedulers.er_sde": ["ERSDEScheduler"],
    "langevin.schedulers.euler": ["EulerDiscreteScheduler"],
    "langevin.schedulers.euler_ancestral": ["EulerAncestralDiscreteScheduler"],
    "langevin.schedulers.flow_match_euler": ["FlowMatchEulerDiscreteScheduler"],
    "langevin.schedulers.flow_match_heun": ["FlowMatchHeunDiscreteScheduler"],
    "langevin.schedulers.gradient_estimation": ["GradientEstimationScheduler"],
    "langevin.schedulers.heun": ["HeunDiscreteScheduler"],
    "langevin.schedulers.heunpp2": ["HeunPP2Scheduler"],
    "langevin.schedulers.inverse": ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"],
    "langevin.schedulers.ipndm": ["IPNDMScheduler"],
    "langevin.schedulers.karras_ve": ["KarrasVeScheduler"],
    "langevin.schedulers.kdpm2": ["KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"],
    "langevin.schedulers.lcm": ["LCMScheduler"],
    "langevin.schedulers.lms": ["LMSDiscreteScheduler"],
    "langevin.schedulers.parallel": ["DDIMParallelScheduler", "DDPMParallelScheduler"],
    "langevin.schedulers.pndm": ["PNDMScheduler"],
    "langevin.schedulers.res_multistep": ["RESMultistepScheduler"],
    "langevin.schedulers.restart": ["RestartScheduler"],
    "langevin.schedulers.repaint": ["RePaintScheduler"],
    "langevin.schedulers.score_sde_ve": ["ScoreSdeVeScheduler"],
    "langevin.schedulers.score_sde_vp": ["ScoreSdeVpScheduler"],
    "langevin.schedulers.sa_solver": ["SASolverScheduler"],
    "langevin.schedulers.tcd": ["TCDScheduler"],
    "langevin.schedulers.unclip": ["UnCLIPScheduler"],
    "langevin.schedulers.unipc": ["UniPCMultistepScheduler"],
    "langevin.schedulers.vq_diffusion": ["VQDiffusionScheduler"],
    "langevin.guiders.base": ["Guider", "Setup", "Step"],
    "langevin.guiders.cfg_plus_plus": ["CFGPlusPlus"],
    "langevin.guiders.classifier_free": ["ClassifierFreeGuidance"],
    "langevin.guiders.control": ["Control"],
    "langevin.guiders.image_start": ["ImageStart"],
    "langevin.guiders.inpaint": ["Inpaint"],
    "langevin.guiders.instruct": ["ImageChannels", "InstructGuidance"],
    "langevin.guiders.prompt_schedule": ["PromptSchedule"],
    "langevin.guiders.self_attention": ["SelfAttentionGuidance"],
    "langevin.guiders.attend_and_excite": ["AttendAndExcite"],
    "langevin.guiders.rescale": ["GuidanceRescale"],
    "langevin.guiders.safe": ["SafeGuidance"],
    "langevin.guiders.windows": ["Windows"],
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
