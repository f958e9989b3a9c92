"""Changing what differs between two texts, and nothing else, with Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from langevin.checks import Count, Range, Share
from langevin.denoiser import NetworkDenoiser
from langevin.guiders.inversion import Follow, InversionTrace
from langevin.guiders.step import Step
from langevin.guiders.whitening import Whitening
from langevin.outputs import DiffEditInversionPipelineOutput
from langevin.pipelines.call import Call
from langevin.pipelines.given import Given, takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import TextGiven, middle
from langevin.randomness import noise_for

NO_ADAPTERS = "ip_adapter_image ip_adapter_image_embeds"
Texts = Any


@dataclass(frozen=True, kw_only=True)
class DiffEditGiven(TextGiven):
    """Arguments of :class:`StableDiffusionDiffEditPipeline`.

    Args:
        mask_image: where to follow the prompt, 1 from 0.5 up, of the latents' size: from ``generate_mask``, PIL, array
            or tensor ``([n, ][1, ]height, width)`` in [0, 1].
        image_latents: what ``invert`` gave, ``(n, steps, channels, height, width)``, at the same number of steps and
            strength.
        inpaint_strength: the share of the run that is done.
        num_inference_steps: of a whole run.
    """

    mask_image: Any = field(default=None, kw_only=False)
    image_latents: Any = field(default=None, kw_only=False)
    inpaint_strength: Share = 0.8

    positional = (
        f"prompt mask_image image_latents inpaint_strength num_inference_steps {middle(without=NO_ADAPTERS)} "
        "callback callback_steps cross_attention_kwargs clip_skip"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, maker in (("mask_image", "generate_mask()"), ("image_latents", "invert()")):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing; {maker} makes it")


@dataclass(frozen=True, kw_only=True)
class MaskGiven(Given):
    """Arguments of :meth:`StableDiffusionDiffEditPipeline.generate_mask`.

    Args:
        image: PIL, numpy or tensor in [0, 1], or a list of them; or latents.
        target_prompt, target_negative_prompt: what the picture is to show; a text, or one per picture.
        target_prompt_embeds, target_negative_prompt_embeds: embeddings in their place.
        source_prompt, source_negative_prompt, source_prompt_embeds, source_negative_prompt_embeds: what it shows.
        num_maps_per_mask: how many noises are tried.
        mask_encode_strength: how far the picture is noised, 0 to 1.
        mask_thresholding_ratio: how many times the mean difference counts as all.
        num_inference_steps: of a whole run.
        guidance_scale: how strictly to follow the texts; 1 is off.
        output_type: "np", whole numbers 0 and 1 ``(pictures, height, width)`` of the latents' size, or "pil".
        cross_attention_kwargs: handed to the network.
        swapped_guidance: take the prompts for the negative prompts and the reverse, as the reference does. The mask is
            the same where source and target have the same negative prompt; False is right where they have not.
    """

    image: Any = None
    target_prompt: Texts = None
    target_negative_prompt: Texts = None
    target_prompt_embeds: Tensor | None = None
    target_negative_prompt_embeds: Tensor | None = None
    source_prompt: Texts = None
    source_negative_prompt: Texts = None
    source_prompt_embeds: Tensor | None = None
    source_negative_prompt_embeds: Tensor | None = None
    num_maps_per_mask: Count = 10
    mask_encode_strength: Share = 0.5
    mask_thresholding_ratio: Annotated[float, Range(1e-6)] = 3.0
    num_inference_steps: Count = 50
    guidance_scale: float = 7.5
    output_type: Literal["np", "pil"] = "np"  # type: ignore[assignment]
    cross_attention_kwargs: dict[str, Any] | None = None
    swapped_guidance: bool = True

    positional = (
        "image target_prompt target_negative_prompt target_prompt_embeds target_negative_prompt_embeds source_prompt "
        "source_negative_prompt source_prompt_embeds source_negative_prompt_embeds num_maps_per_mask "
        "mask_encode_strength mask_thresholding_ratio num_inference_steps guidance_scale generator output_type "
        "cross_attention_kwargs"
    )


@dataclass(frozen=True, kw_only=True)
class InvertGiven(TextGiven):
    """Arguments of :meth:`StableDiffusionDiffEditPipeline.invert`.

    Args:
        image: PIL, numpy or tensor in [0, 1], or a list of them; or latents.
        inpaint_strength: how far to go towards noise, the share of the run.
        num_inference_steps: of a whole run.
        decode_latents: decode what was passed through, too.
        lambda_auto_corr, lambda_kl, num_reg_steps, num_auto_corr_rolls: see :class:`langevin.Whitening`.
    """

    image: Any = field(default=None, kw_only=False)
    inpaint_strength: Share = 0.8
    decode_latents: bool = False
    lambda_auto_corr: Annotated[float, Range(0)] = 20.0
    lambda_kl: Annotated[float, Range(0)] = 20.0
    num_reg_steps: Annotated[int, Range(0)] = 0
    num_auto_corr_rolls: Count = 5

    positional = (
        "prompt image num_inference_steps inpaint_strength guidance_scale negative_prompt generator prompt_embeds "
        "negative_prompt_embeds decode_latents output_type return_dict callback callback_steps cross_attention_kwargs "
        "lambda_auto_corr lambda_kl num_reg_steps num_auto_corr_rolls"
    )


class StableDiffusionDiffEditPipeline(StableDiffusionBase):
    """Changes only what two texts see differently (DiffEdit: Couairon et al. 2023, 2210.11427): ``generate_mask`` finds
    it, ``invert`` goes from the picture towards noise, a call comes back along the same way outside of the mask.

    Example:
        >>> from langevin import StableDiffusionDiffEditPipeline
        >>> pipe = StableDiffusionDiffEditPipeline.from_pretrained("langevin/shapes")
        >>> mask = pipe.generate_mask(picture, "a blue circle", source_prompt="a red circle")
        >>> latents = pipe.invert("a red circle", picture).latents
        >>> image = pipe("a blue circle", mask_image=mask, image_latents=latents).images[0]
    """

    _optional_components = ["safety_checker", "feature_extractor", "inverse_scheduler"]
    _scheduler_needs: Mapping[str, Any] = {"steps_offset": 1, "skip_prk_steps": True}

    @takes_parts
    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        inverse_scheduler: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        """``inverse_scheduler``: goes the other way; a :class:`langevin.DDIMInverseScheduler` with the scheduler's
        settings if None.
        """

    @takes(DiffEditGiven)
    def __call__(self, given: DiffEditGiven) -> Any:
        """Make pictures."""
        trace = given.image_latents
        trace = torch.cat(list(trace)) if isinstance(trace, (list, tuple)) else trace
        mask = _mask(given.mask_image)
        if trace.ndim == 4:
            trace = trace[None] if len(mask) == 1 else trace.unflatten(0, (len(mask), -1))
        size = [side * self.vae_scale_factor for side in trace.shape[-2:]]
        return self.generate(given, [InversionTrace(trace, mask, given.inpaint_strength)], size)

    @takes(InvertGiven)
    def invert(self, given: InvertGiven) -> Any:
        """Go from pictures towards noise, told what they show."""
        if given.guidance_scale is None:
            given = given.changed(guidance_scale=self.call_default("guidance_scale", 7.5))
        pixels = self.pixels(given.image)
        text = self.read(given, steps=given.num_inference_steps)
        call = Call(self, given, text.batch)
        scheduler: Any = self.inverse_scheduler
        if scheduler is None:
            from langevin.schedulers.timesteps.ddim_inverse import DDIMInverseScheduler

            scheduler = DDIMInverseScheduler.from_config(self.scheduler.config)
        regularisation = Whitening(
            given.lambda_auto_corr, given.lambda_kl, given.num_reg_steps, given.num_auto_corr_rolls
        )
        setup = call.stage(
            self.unet,
            scheduler,
            self.codec.shape(text.batch, self.size_of(pixels)),
            text.branches,
            [*self.guidance(given, [regularisation]), Follow([])],
            steps=given.num_inference_steps,
            codec=self.codec,
            dtype=text.dtype,
            fixed={"cross_attention_kwargs": given.cross_attention_kwargs} if given.cross_attention_kwargs else {},
            encode_text=text.again,
            pair_images=given.pair_images,
            name="inversion",
        )
        setup.x = setup.encode(pixels)
        setup.stop = min(int(given.num_inference_steps * given.inpaint_strength), given.num_inference_steps)
        call.denoise(setup)
        follow: Any = setup.guiders[-1]
        latents = torch.stack(follow.kept[::-1], dim=1)
        images = None
        if given.decode_latents:
            images = self.image_processor.postprocess(self.codec.decode(latents.flatten(0, 1)), given.output_type)
        self.maybe_free_model_hooks()
        return DiffEditInversionPipelineOutput(latents, images)

    @takes(MaskGiven)
    def generate_mask(self, given: MaskGiven) -> Any:
        """Where the network sees a difference between two texts."""
        maps, guided = given.num_maps_per_mask, given.guidance_scale > 1
        branches: dict[str, Any] = {}
        for name in ("source", "target"):
            about = {what: getattr(given, f"{name}_{what}") for what in ("prompt", "negative_prompt")}
            about |= {f"{what}_embeds": getattr(given, f"{name}_{what}_embeds") for what in about}
            read = self.reader.read(**about, pictures=maps, with_negative=guided)
            branches |= {f"{name} {branch}": told for branch, told in read.branches.items()}
        batch = len(next(iter(branches["target positive"].values())))
        noise, _ = noise_for(batch, given.generator, given.seed)
        pixels = self.pixels(given.image).repeat_interleave(maps, dim=0).to(self._execution_device, self.vae.dtype)
        latents = pixels if self.size_of(pixels) != tuple(pixels.shape[-2:]) else self.codec.encode(pixels, noise)
        if batch % len(latents):
            raise ValueError(f"{len(latents) // maps} images for {batch // maps} prompts; give one image, or one each")
        latents = latents.repeat(batch // len(latents), 1, 1, 1)
        run = self.scheduler.plan(given.num_inference_steps)
        kept = int(given.num_inference_steps * given.mask_encode_strength)
        start = min((given.num_inference_steps - kept) * self.scheduler.order, len(run) - 1)
        x = run.add_noise(latents, noise(latents), start)
        told = given.cross_attention_kwargs
        denoiser = NetworkDenoiser(self.unet, (), **({"cross_attention_kwargs": told} if told else {}))
        step = Step(start, len(run), run.timesteps[start], run, branches, denoiser, noise)
        said = denoiser(run.scale_model_input(x, start), step, branches)
        source, target = (_guided(said, name, given) for name in ("source", "target"))
        apart = (target - source).abs().unflatten(0, (-1, maps)).mean(dim=(1, 2))
        most = apart.mean(dim=(1, 2), keepdim=True) * given.mask_thresholding_ratio
        mask = (apart.clamp(max=most) / most > 0.5).long().cpu().numpy()
        self.maybe_free_model_hooks()
        return [Image.fromarray((one * 255).astype(np.uint8)) for one in mask] if given.output_type == "pil" else mask


def _guided(said: Mapping[str, Tensor], name: str, given: MaskGiven) -> Tensor:
    """What the network says of the source or the target, guided."""
    positive = said[f"{name} positive"]
    if given.guidance_scale <= 1:
        return positive
    negative = said[f"{name} negative"]
    return (positive.lerp if given.swapped_guidance else negative.lerp)(
        negative if given.swapped_guidance else positive, given.guidance_scale
    )


def _mask(mask: Any) -> Tensor:
    """Masks, ``(n, 1, height, width)``, of 0 and 1.

    Raises:
        ValueError: another shape or range.
    """
    if isinstance(mask, (list, tuple)):
        return torch.cat([_mask(one) for one in mask])
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L")) / 255
    tensor = torch.as_tensor(mask).float()
    shape = tuple(tensor.shape)
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    if tensor.ndim != 4 or tensor.shape[1] != 1 or tensor.min() < 0 or tensor.max() > 1:
        raise ValueError(f"mask_image is {shape}; ([n, ][1, ]height, width) in [0, 1] is needed")
    return (tensor >= 0.5).float()
