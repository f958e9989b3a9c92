"""Pairs of DeepFloyd IF's pipelines, ours and the reference's, on the same weights; shared by their tests."""

from __future__ import annotations

import inspect

import torch

import langevin
from tests.prompts import readers_parts as tiny

DDPM = dict(
    beta_schedule="squaredcos_cap_v2",
    variance_type="learned_range",
    thresholding=True,
    dynamic_thresholding_ratio=0.95,
    sample_max_value=1.5,
)
SCHEDULERS = {
    "ddpm": ("DDPMScheduler", DDPM),
    "ddpm fixed": ("DDPMScheduler", {**DDPM, "variance_type": "fixed_small", "thresholding": False}),
    "ddim": ("DDIMScheduler", dict(beta_schedule="squaredcos_cap_v2", thresholding=True)),
    "dpm++": ("DPMSolverMultistepScheduler", dict(beta_schedule="squaredcos_cap_v2", thresholding=True)),
    "dpm++ learned": (
        "DPMSolverMultistepScheduler",
        dict(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True),
    ),
    "unipc": ("UniPCMultistepScheduler", dict(thresholding=True)),
    "euler": ("EulerDiscreteScheduler", dict(beta_schedule="scaled_linear")),
}
_UNET = dict(
    sample_size=16,
    in_channels=3,
    out_channels=6,
    layers_per_block=1,
    block_out_channels=(32, 64),
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    cross_attention_dim=32,
    cross_attention_norm="group_norm",
    encoder_hid_dim=16,
    attention_head_dim=8,
    addition_embed_type="text",
    addition_embed_type_num_heads=2,
    resnet_time_scale_shift="scale_shift",
    act_fn="gelu",
    time_embedding_act_fn="gelu",
    norm_num_groups=8,
)
UNETS = {
    "plain": _UNET,
    # as those that were published
    "scaled": {
        **_UNET,
        "encoder_hid_dim_type": "text_proj",
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 2**0.5,
        "mid_block_scale_factor": 2**0.5,
        "only_cross_attention": (False, True),
        "mid_block_only_cross_attention": True,
        "layers_per_block": (1, 2),
    },
    "deep": {
        **_UNET,
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2),
        "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"),
        "only_cross_attention": True,
        "attention_head_dim": 16,
        "act_fn": "silu",
    },
    "transformer": {
        **_UNET,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_norm": None,
        "attention_head_dim": (4, 8),
    },
}
TEXT = {"t5": {}, "t5 1.1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)}


def large(config):
    """The second stage's network."""
    return {**config, "sample_size": 32, "in_channels": 6, "class_embed_type": "timestep"}


class Stages:
    """``stages("IFPipeline", unet="plain", scheduler="ddpm")`` -> our pipeline and the reference's."""

    def __init__(self):
        self.made = {}

    def unets(self, unet, big):
        import diffusers

        if (unet, big) not in self.made:
            config = large(UNETS[unet]) if big else UNETS[unet]
            torch.manual_seed(0)
            theirs = diffusers.UNet2DConditionModel(**config).eval()
            ours = langevin.UNet2DConditionModel(**config).eval()
            ours.load_state_dict(theirs.state_dict())
            self.made[unet, big] = ours, theirs
        return self.made[unet, big]

    def text(self, kind="t5"):
        if kind not in self.made:
            self.made[kind] = tiny.t5_tokenizer(), tiny.t5_encoder(**TEXT[kind])
        return self.made[kind]

    def __call__(self, name="IFPipeline", *, unet="plain", scheduler="ddpm", text="t5", noising=None, **parts):
        """``parts`` are (ours, the reference's) of further components, by name."""
        import diffusers

        big = "SuperResolution" in name
        tokenizer, encoder = self.text(text)
        pipes = []
        for k, library in enumerate((langevin, diffusers)):
            cls = getattr(library, name)
            kind, config = SCHEDULERS[scheduler] if isinstance(scheduler, str) else scheduler
            components = dict(
                tokenizer=tokenizer,
                text_encoder=encoder,
                unet=self.unets(unet, big)[k],
                scheduler=getattr(library, kind)(**config),
                image_noising_scheduler=library.DDPMScheduler(**(noising or DDPM)),
                safety_checker=None,
                feature_extractor=None,
                watermarker=None,
                requires_safety_checker=False,
            )
            components |= {part: pair[k] for part, pair in parts.items()}
            takes = inspect.signature(cls.__init__).parameters
            pipe = cls(**{part: value for part, value in components.items() if part in takes})
            pipe.set_progress_bar_config(disable=True)
            pipes.append(pipe)
        return tuple(pipes)


def judges(unsafe=0.0, marked=0.0):
    """Safety checkers with the same weights, whose judgements lean so far to one side, and what prepares pictures."""
    import diffusers
    import transformers
    from diffusers.pipelines.deepfloyd_if import IFSafetyChecker

    torch.manual_seed(0)
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=24)
    config = transformers.CLIPConfig(vision_config={**vision, "image_size": 32, "patch_size": 8})
    theirs = IFSafetyChecker(config).eval()
    for head, bias in ((theirs.p_head, unsafe), (theirs.w_head, marked)):
        head.weight.data.normal_(0, 3)
        head.bias.data.fill_(bias)
    ours = langevin.IFSafetyChecker(config).eval()
    ours.load_state_dict(theirs.state_dict())
    size = {"shortest_edge": 32}, {"height": 32, "width": 32}
    extractor = transformers.CLIPImageProcessor(size=size[0], crop_size=size[1])
    assert diffusers
    return dict(safety_checker=(ours, theirs), feature_extractor=(extractor, extractor))


def markers():
    """Watermarkers with the same mark."""
    from diffusers.pipelines.deepfloyd_if import IFWatermarker

    torch.manual_seed(1)
    mark = {"watermark_image": torch.randint(0, 256, (62, 62, 4)).float()}
    pair = langevin.IFWatermarker(), IFWatermarker()
    for one in pair:
        one.load_state_dict(mark)
    return dict(watermarker=pair)
