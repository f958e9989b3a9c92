"""langevin: diffusion pipelines, schedulers and models that combine freely.

Public names are imported when they are first used, so that ``import langevin`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

# module -> the public names that live there
_PUBLIC = {
    "langevin.pipelines.base": ["DiffusionPipeline"],
    "langevin.pipelines.stable_diffusion.text_to_image": ["StableDiffusionPipeline"],
    "langevin.pipelines.stable_diffusion.img2img": ["StableDiffusionImg2ImgPipeline"],
    "langevin.pipelines.stable_diffusion.panorama": ["StableDiffusionPanoramaPipeline"],
    "langevin.pipelines.stable_diffusion.safe": ["SafetyConfig", "StableDiffusionPipelineSafe"],
    "langevin.pipelines.stable_diffusion.semantic": ["SemanticStableDiffusionPipeline"],
    "langevin.pipelines.stable_diffusion.cycle_diffusion": ["CycleDiffusionPipeline"],
    "langevin.pipelines.stable_diffusion.model_editing": ["StableDiffusionModelEditingPipeline"],
    "langevin.pipelines.stable_diffusion.pix2pix_zero": ["StableDiffusionPix2PixZeroPipeline"],
    "langevin.pipelines.stable_diffusion.inpaint": ["StableDiffusionInpaintPipeline"],
    "langevin.pipelines.stable_diffusion.sag": ["StableDiffusionSAGPipeline"],
    "langevin.pipelines.stable_diffusion.attend_and_excite": ["StableDiffusionAttendAndExcitePipeline"],
    "langevin.pipelines.stable_diffusion.controlnet": ["StableDiffusionControlNetPipeline"],
    "langevin.pipelines.stable_diffusion.controlnet_img2img": ["StableDiffusionControlNetImg2ImgPipeline"],
    "langevin.pipelines.stable_diffusion.controlnet_inpaint": ["StableDiffusionControlNetInpaintPipeline"],
    "langevin.pipelines.stable_diffusion.inpaint_legacy": ["StableDiffusionInpaintPipelineLegacy"],
    "langevin.pipelines.stable_diffusion.instruct_pix2pix": ["StableDiffusionInstructPix2PixPipeline"],
    "langevin.pipelines.stable_diffusion.depth2img": ["StableDiffusionDepth2ImgPipeline"],
    "langevin.pipelines.stable_diffusion.upscale": ["StableDiffusionUpscalePipeline"],
    "langevin.pipelines.stable_diffusion.image_variation": ["StableDiffusionImageVariationPipeline"],
    "langevin.pipelines.stable_diffusion.latent_upscale": ["StableDiffusionLatentUpscalePipeline"],
    "langevin.pipelines.unconditional": [
        "DDIMPipeline",
        "DDPMPipeline",
        "KarrasVePipeline",
        "PNDMPipeline",
        "ScoreSdeVePipeline",
    ],
    "langevin.pipelines.stable_diffusion.alt_diffusion": ["AltDiffusionPipeline"],
    "langevin.pipelines.stable_diffusion.alt_diffusion_img2img": ["AltDiffusionImg2ImgPipeline"],
    "langevin.pipelines.stable_diffusion.paint_by_example": ["PaintByExamplePipeline"],
    "langevin.pipelines.stable_diffusion.diffedit": ["StableDiffusionDiffEditPipeline"],
    "langevin.pipelines.stable_diffusion.unclip": ["StableUnCLIPPipeline"],
    "langevin.pipelines.stable_diffusion.unclip_img2img": ["StableUnCLIPImg2ImgPipeline"],
    "langevin.outputs": [
        "AltDiffusionPipelineOutput",
        "DiffEditInversionPipelineOutput",
        "ImagePipelineOutput",
        "StableDiffusionPipelineOutput",
        "StableDiffusionSafePipelineOutput",
        "SemanticStableDiffusionPipelineOutput",
        "Pix2PixInversionPipelineOutput",
    ],
    "langevin.models.encoders.safety_checker": ["SafeStableDiffusionSafetyChecker", "StableDiffusionSafetyChecker"],
    "langevin.models.base": ["ModelMixin"],
    "langevin.models.image_normalizer": ["StableUnCLIPImageNormalizer"],
    "langevin.models.prior_transformer": ["PriorTransformer"],
    "langevin.models.unet_2d": ["UNet2DModel"],
    "langevin.models.unet_2d_condition": ["UNet2DConditionModel"],
    "langevin.models.autoencoder_kl": ["AutoencoderKL"],
    "langevin.models.controlnet": ["ControlNetModel"],
    "langevin.models.multi_controlnet": ["MultiControlNetModel"],
    "langevin.models.encoders.ldm_bert": ["LDMBertConfig", "LDMBertModel"],
    "langevin.models.encoders.paint_by_example": ["PaintByExampleImageEncoder", "PaintByExampleMapper"],
    "langevin.models.encoders.roberta_series": ["RobertaSeriesConfig", "RobertaSeriesModelWithTransformation"],
    "langevin.checkpoints.config": ["ConfigMixin"],
    "langevin.lora.training": [
        "add_lora",
        "load_lora_state_dict",
        "lora_metadata",
        "lora_parameters",
        "lora_state_dict",
        "remove_lora",
    ],
    "langevin.schedulers.scheduler": ["SchedulerMixin"],
    "langevin.schedulers.edm.consistency": ["CMStochasticIterativeScheduler"],
    "langevin.schedulers.edm.cosine_dpm": ["CosineDPMSolverMultistepScheduler"],
    "langevin.schedulers.timesteps.ddim": ["DDIMScheduler"],
    "langevin.schedulers.timesteps.ddpm": ["DDPMScheduler"],
    "langevin.schedulers.logsnr.deis": ["DEISMultistepScheduler"],
    "langevin.schedulers.sigma.dpm_adaptive": ["DPMAdaptiveScheduler"],
    "langevin.schedulers.sigma.dpm_fast": ["DPMFastScheduler"],
    "langevin.schedulers.logsnr.dpm_multistep": ["DPMSolverMultistepScheduler"],
    "langevin.schedulers.sigma.dpm_sde": ["DPMSolverSDEScheduler"],
    "langevin.schedulers.logsnr.dpm_singlestep": ["DPMSolverSinglestepScheduler"],
    "langevin.schedulers.sigma.dpmpp_2s_ancestral": ["DPMSolver2SAncestralScheduler"],
    "langevin.schedulers.sigma.dpmpp_3m_sde": ["DPMSolver3MSDEScheduler"],
    "langevin.schedulers.edm.dpm_multistep": ["EDMDPMSolverMultistepScheduler"],
    "langevin.schedulers.edm.euler": ["EDMEulerScheduler"],
    "langevin.schedulers.sigma.er_sde": ["ERSDEScheduler"],
    "langevin.schedulers.sigma.euler": ["EulerDiscreteScheduler"],
    "langevin.schedulers.sigma.euler_ancestral": ["EulerAncestralDiscreteScheduler"],
    "langevin.schedulers.flow.euler": ["FlowMatchEulerDiscreteScheduler"],
    "langevin.schedulers.flow.heun": ["FlowMatchHeunDiscreteScheduler"],
    "langevin.schedulers.sigma.gradient_estimation": ["GradientEstimationScheduler"],
    "langevin.schedulers.sigma.heun": ["HeunDiscreteScheduler"],
    "langevin.schedulers.sigma.heunpp2": ["HeunPP2Scheduler"],
    "langevin.schedulers.timesteps.ddim_inverse": ["DDIMInverseScheduler"],
    "langevin.schedulers.logsnr.dpm_inverse": ["DPMSolverMultistepInverseScheduler"],
    "langevin.schedulers.continuous.ipndm": ["IPNDMScheduler"],
    "langevin.schedulers.continuous.karras_ve": ["KarrasVeScheduler"],
    "langevin.schedulers.sigma.kdpm2": ["KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"],
    "langevin.schedulers.timesteps.lcm": ["LCMScheduler"],
    "langevin.schedulers.sigma.lms": ["LMSDiscreteScheduler"],
    "langevin.schedulers.timesteps.parallel": ["DDIMParallelScheduler", "DDPMParallelScheduler"],
    "langevin.schedulers.timesteps.pndm": ["PNDMScheduler"],
    "langevin.schedulers.sigma.res_multistep": ["RESMultistepScheduler"],
    "langevin.schedulers.sigma.restart": ["RestartScheduler"],
    "langevin.schedulers.timesteps.repaint": ["RePaintScheduler"],
    "langevin.schedulers.continuous.score_sde_ve": ["ScoreSdeVeScheduler"],
    "langevin.schedulers.continuous.score_sde_vp": ["ScoreSdeVpScheduler"],
    "langevin.schedulers.logsnr.sa_solver": ["SASolverScheduler"],
    "langevin.schedulers.timesteps.tcd": ["TCDScheduler"],
    "langevin.schedulers.timesteps.unclip": ["UnCLIPScheduler"],
    "langevin.schedulers.logsnr.unipc": ["UniPCMultistepScheduler"],
    "langevin.schedulers.discrete.vq_diffusion": ["VQDiffusionScheduler"],
    "langevin.guiders.base": ["Guider", "Setup"],
    "langevin.guiders.step": ["Step", "Told"],
    "langevin.guiders.cycle": ["CycleNoise"],
    "langevin.guiders.cross_attention": ["AttentionMaps", "CrossAttentionGuidance", "KeepAttention"],
    "langevin.guiders.whitening": ["Whitening"],
    "langevin.guiders.distilled": ["DistilledGuidance"],
    "langevin.guiders.cfg_plus_plus": ["CFGPlusPlus"],
    "langevin.guiders.classifier_free": ["ClassifierFreeGuidance"],
    "langevin.guiders.control": ["Control"],
    "langevin.guiders.depth": ["DepthChannel"],
    "langevin.guiders.inversion": ["InversionTrace"],
    "langevin.guiders.image_embedding": ["ImageEmbedding"],
    "langevin.guiders.image_start": ["ImageStart"],
    "langevin.guiders.inpaint": ["Inpaint"],
    "langevin.guiders.instruct": ["ImageChannels", "InstructGuidance"],
    "langevin.guiders.latent_upscale": ["EnlargedLatents"],
    "langevin.guiders.low_resolution": ["LowResolution"],
    "langevin.guiders.prompt_schedule": ["PromptSchedule"],
    "langevin.guiders.self_attention": ["SelfAttentionGuidance"],
    "langevin.guiders.attend_and_excite": ["AttendAndExcite"],
    "langevin.guiders.rescale": ["GuidanceRescale"],
    "langevin.guiders.safe": ["SafeGuidance"],
    "langevin.guiders.semantic": ["SemanticGuidance"],
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
