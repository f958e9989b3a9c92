"""Pictures edited along a direction between two lists of sentences, with what is looked at kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from langevin.checks import Count, Range
from langevin.guiders.cross_attention import AttentionMaps, CrossAttentionGuidance, KeepAttention
from langevin.guiders.whitening import Whitening
from langevin.outputs import Pix2PixInversionPipelineOutput
from langevin.pipelines.call import Call
from langevin.pipelines.callbacks import TEXT
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import TextGiven, middle
from langevin.pipelines.stable_diffusion.text_to_image import TextToImageGiven
from langevin.prompts.readers.base import How
from langevin.schedulers.timesteps.ddim_inverse import DDIMInverseScheduler


@dataclass(frozen=True, kw_only=True)
class Pix2PixZeroGiven(TextToImageGiven):
    """Arguments of :class:`StableDiffusionPix2PixZeroPipeline`.

    Args:
        prompt: what the picture shows before the edit.
        source_embeds, target_embeds: of sentences about what is to be changed, and about what it is to become,
            ``(sentences, tokens, dim)`` each; see :meth:`StableDiffusionPix2PixZeroPipeline.get_embeds`.
        source_prompts, target_prompts: those sentences, in the embeddings' place.
        cross_attention_guidance_amount: how strongly the network is held to look where it looked before; 0 is off.
        unscaled: see :class:`langevin.CrossAttentionGuidance`; the reference's False matters to schedulers that count
            in σ.
    """

    source_embeds: Tensor | None = field(default=None, kw_only=False)
    target_embeds: Tensor | None = field(default=None, kw_only=False)
    source_prompts: Sequence[str] | None = None
    target_prompts: Sequence[str] | None = None
    cross_attention_guidance_amount: float = 0.1
    unscaled: bool = False

    positional = (
        "prompt source_embeds target_embeds height width num_inference_steps "
        f"{middle(without='ip_adapter_image ip_adapter_image_embeds output_type return_dict')} "
        "cross_attention_guidance_amount output_type return_dict callback callback_steps cross_attention_kwargs "
        "clip_skip"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for side in ("source", "target"):
            embeds, texts = getattr(self, f"{side}_embeds"), getattr(self, f"{side}_prompts")
            if (embeds is None) == (not texts):
                given = "neither" if embeds is None else "both"
                raise ValueError(f"{given} of {side}_embeds and {side}_prompts given; give exactly one")
            if embeds is not None and embeds.ndim != 3:
                raise ValueError(f"{side}_embeds is {tuple(embeds.shape)}; (sentences, tokens, dim) is needed")


@dataclass(frozen=True, kw_only=True)
class InversionGiven(TextGiven):
    """Arguments of :meth:`StableDiffusionPix2PixZeroPipeline.invert`.

    Args:
        prompt: what the picture shows.
        image: PIL, numpy or tensor in [0, 1], or a list of them, one per prompt; or latents.
        latents: the picture's latents, in the place of ``image``.
        cross_attention_guidance_amount: of no effect here; it stands in the reference's list.
        lambda_auto_corr, lambda_kl, num_reg_steps, num_auto_corr_rolls: see :class:`langevin.Whitening`.
    """

    image: Any = field(default=None, kw_only=False)
    guidance_scale: float | None = 1
    cross_attention_guidance_amount: float = 0.1
    lambda_auto_corr: Annotated[float, Range(0)] = 20.0
    lambda_kl: Annotated[float, Range(0)] = 20.0
    num_reg_steps: Annotated[int, Range(0)] = 5
    num_auto_corr_rolls: Count = 5

    positional = (
        "prompt image num_inference_steps guidance_scale generator latents prompt_embeds "
        "cross_attention_guidance_amount output_type return_dict callback callback_steps cross_attention_kwargs "
        "lambda_auto_corr lambda_kl num_reg_steps num_auto_corr_rolls"
    )


class StableDiffusionPix2PixZeroPipeline(StableDiffusionBase):
    """Zero-shot edits of pictures (pix2pix-zero: Parmar et al. 2023, 2302.03027).

    A picture's noise is found with :meth:`invert`; a call makes it once to see what is looked at, and once more along
    the edit's direction while the same is looked at. Callbacks see both, one after the other; the reference's see the
    first. Each of several pictures is what it is when made alone, and a ``guidance_scale`` of 1 is edited too; the
    reference edits the first picture only, and none without guidance.

    Example:
        >>> from langevin import StableDiffusionPix2PixZeroPipeline
        >>> pipe = StableDiffusionPix2PixZeroPipeline.from_pretrained("langevin/shapes")
        >>> noise = pipe.invert("a red circle", picture, num_inference_steps=20).latents
        >>> ends = dict(source_prompts=["a red circle"], target_prompts=["a blue circle"])
        >>> image = pipe("a red circle", **ends, latents=noise, num_inference_steps=20).images[0]
    """

    _optional_components = [
        *StableDiffusionBase._optional_components, "inverse_scheduler", "caption_generator", "caption_processor",
    ]  # fmt: skip
    _exclude_from_cpu_offload = ["safety_checker", "caption_generator"]
    _scheduler_needs: Mapping[str, Any] = {}

    @takes_parts
    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        feature_extractor: Any = None,
        safety_checker: Any = None,
        inverse_scheduler: Any = None,
        caption_generator: Any = None,
        caption_processor: Any = None,
        requires_safety_checker: bool = True,
        image_encoder: Any = None,
    ) -> None:
        pass

    @takes(Pix2PixZeroGiven)
    def __call__(self, given: Pix2PixZeroGiven) -> Any:
        """Edit pictures."""
        given = self.scaled(given)
        size, run = self.size(given.height, given.width), self.plan(given)
        text = self.read(given, len(run))
        if text.guider is not None:
            raise ValueError("prompts that change on the way have no direction to be edited along; give plain ones")
        call, maps = Call(self, given, text.batch), AttentionMaps()
        before = self.stage(call, given, text, [KeepAttention(maps)], size, run=run, name="before the edit")
        call.denoise(before)
        source = self._end(given.source_embeds, given.source_prompts)
        target = self._end(given.target_embeds, given.target_prompts)
        embeds = text.branches["positive"][TEXT]
        direction = self.construct_direction(source, target).to(embeds)
        if direction.shape[1:] != embeds.shape[1:]:
            raise ValueError(
                f"edits of {tuple(direction.shape[1:])} do not fit a prompt of {tuple(embeds.shape[1:])} tokens and dim"
            )
        branches = {**text.branches, "positive": {**text.branches["positive"], TEXT: embeds + direction}}
        guider = CrossAttentionGuidance(maps, given.cross_attention_guidance_amount, given.unscaled)
        edit = self.stage(
            call, given, text, [guider], size,
            run=self.plan(given), branches=branches, latents=before.latents, name="edit",
        )  # fmt: skip
        return self.hand_over(call, edit, call.denoise(edit))

    @takes(InversionGiven)
    def invert(self, given: InversionGiven) -> Pix2PixInversionPipelineOutput:
        """The noise that pictures would be made of, by DDIM's steps walked back."""
        given = self.scaled(given)
        pixels = self.pixels(given.latents if given.image is None else given.image, given.height, given.width)
        scheduler = self.inverse_scheduler or DDIMInverseScheduler.from_config(self.scheduler.config)
        text = self.read(given, given.num_inference_steps)
        whitening = Whitening(given.lambda_auto_corr, given.lambda_kl, given.num_reg_steps, given.num_auto_corr_rolls)
        call = Call(self, given, text.batch)
        setup = self.stage(
            call, given, text, [whitening], self.size_of(pixels),
            scheduler=scheduler, run=scheduler.plan(given.num_inference_steps), latents=None,
        )  # fmt: skip
        setup.x = setup.encode(pixels)
        latents = call.denoise(setup)
        if given.output_type == "latent":
            return Pix2PixInversionPipelineOutput(latents, call.deliver(latents))
        return Pix2PixInversionPipelineOutput(latents, call.deliver(call.decode(setup, latents)))

    def _end(self, embeds: Tensor | None, prompts: Sequence[str] | None) -> Tensor:
        """One end of the direction."""
        return self.get_embeds(prompts or ()) if embeds is None else embeds

    @torch.no_grad()
    def get_embeds(self, prompt: Sequence[str], batch_size: int = 16) -> Tensor:
        """The mean of the embeddings of sentences, ``(1, tokens, dim)``; they are read ``batch_size`` at a time."""
        how = How(None, False, "none", "cut")
        parts = [list(prompt[k : k + batch_size]) for k in range(0, len(prompt), batch_size)]
        read = [self.reader.encode(part, None, how, with_negative=False)["positive"][TEXT] for part in parts]
        return torch.cat(read).mean(0, keepdim=True)

    def construct_direction(self, embs_source: Tensor, embs_target: Tensor) -> Tensor:
        """From the mean of some sentences to that of others, ``(1, tokens, dim)``.

        Raises:
            ValueError: they are of other shapes.
        """
        if embs_source.shape[1:] != embs_target.shape[1:]:
            raise ValueError(
                f"source_embeds is {tuple(embs_source.shape)} and target_embeds {tuple(embs_target.shape)}; both need "
                "as many tokens, as wide"
            )
        return (embs_target.mean(0) - embs_source.mean(0))[None]

    @torch.no_grad()
    def generate_caption(self, images: Any) -> str:
        """What BLIP sees in a picture.

        Raises:
            ValueError: there is no ``caption_generator`` or no ``caption_processor``.
        """
        if self.caption_generator is None or self.caption_processor is None:
            raise ValueError("there is nothing to describe pictures with; give caption_generator and caption_processor")
        network = self.caption_generator
        seen = self.caption_processor(images, "a photography of", return_tensors="pt")
        said = network.generate(**seen.to(network.device, network.dtype), max_new_tokens=128)
        return self.caption_processor.batch_decode(said, skip_special_tokens=True)[0]
