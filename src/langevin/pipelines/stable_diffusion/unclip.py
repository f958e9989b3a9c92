"""Text to image by way of a picture's embedding, with Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor

from langevin.checks import Count, Range
from langevin.guiders.base import Guider
from langevin.guiders.image_embedding import ImageEmbedding
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.call import Call
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import TextGiven, middle
from langevin.pipelines.stable_diffusion.text_to_image import TextToImageGiven
from langevin.pipelines.unclip.prior import PriorGiven, clip_reader, picture_vectors

NO_ADAPTERS = "ip_adapter_image ip_adapter_image_embeds"


@dataclass(frozen=True, kw_only=True)
class UnCLIPGiven(TextGiven):
    """What both pipelines take.

    Args:
        guidance_scale: how strictly to follow the prompt; 1 is off. None: what the checkpoint names, else 10.
        noise_level: how much the picture's embedding is noised, a timestep of the ``image_noising_scheduler``; more
            makes pictures that differ more.
    """

    num_inference_steps: Count = 20
    noise_level: Annotated[int, Range(0)] = 0


@dataclass(frozen=True, kw_only=True)
class StableUnCLIPGiven(UnCLIPGiven, PriorGiven, TextToImageGiven):
    """Arguments of :class:`StableUnCLIPPipeline`.

    Args:
        prompt: a text, or one per picture. The prior reads it too, so embeddings cannot take its place.
        prior_skips: where the prior's scheduler is a :class:`langevin.UnCLIPScheduler`: go from each timestep to the
            next one of the run, as is right. False goes down by a single timestep each time, as the reference does.
    """

    num_inference_steps: Count = field(default=20, kw_only=False)
    prior_skips: bool = False

    positional = (
        f"prompt height width num_inference_steps {middle(without=NO_ADAPTERS)} callback callback_steps "
        "cross_attention_kwargs noise_level prior_num_inference_steps prior_guidance_scale prior_latents clip_skip"
    )

    def _check_told(self) -> None:
        super()._check_told()
        if self.prompt is None:
            raise ValueError("prompt_embeds were given, and the prior reads the prompt itself; give a prompt")


class UnCLIPBase(StableDiffusionBase):
    """Stable Diffusion that is told a picture's embedding beside the text."""

    _optional_components: list[str] = []
    _exclude_from_cpu_offload = ["image_normalizer"]
    _callback_each_call = True
    _scheduler_needs: Mapping[str, Any] = {}  # the reference leaves old schedulers as they are here

    def output(self, images: Any, flagged: list[bool] | None = None) -> Any:
        return ImagePipelineOutput(images)

    def about(self, embeds: Tensor, given: UnCLIPGiven) -> ImageEmbedding:
        """A guider that tells what the pictures are about."""
        return ImageEmbedding(embeds, given.noise_level, self.image_normalizer, self.image_noising_scheduler)


class StableUnCLIPPipeline(UnCLIPBase):
    """A prior makes the embedding of a picture from the prompt, Stable Diffusion the picture (unCLIP: Ramesh et al.
    2022, 2204.06125).

    Example:
        >>> from langevin import StableUnCLIPPipeline
        >>> pipe = StableUnCLIPPipeline.from_pretrained("fusing/stable-unclip-2-1-l")
        >>> image = pipe("a red circle", num_inference_steps=20, seed=7).images[0]
    """

    model_cpu_offload_seq = "text_encoder->prior_text_encoder->unet->vae"
    _exclude_from_cpu_offload = ["prior", "image_normalizer"]
    _stage_name = "picture"

    @takes_parts
    def __init__(
        self,
        prior_tokenizer: Any,
        prior_text_encoder: Any,
        prior: Any,
        prior_scheduler: Any,
        image_normalizer: Any,
        image_noising_scheduler: Any,
        tokenizer: Any,
        text_encoder: Any,
        unet: Any,
        scheduler: Any,
        vae: Any,
    ) -> None:
        """``prior``: a :class:`~langevin.PriorTransformer`."""

    @takes(StableUnCLIPGiven)
    def __call__(self, given: StableUnCLIPGiven) -> Any:
        """Make pictures."""
        if given.guidance_scale is None:
            given = given.changed(guidance_scale=self.call_default("guidance_scale", 10.0))
        return self.generate(given)

    def earlier(self, call: Call, given: StableUnCLIPGiven) -> list[Guider]:
        """The prior's stage."""
        reader = clip_reader(self.prior_tokenizer, self.prior_text_encoder, self._execution_device, self.prior.dtype)
        text = reader.read(
            given.prompt,
            pictures=given.num_images_per_prompt,
            steps=given.prior_num_inference_steps,
            with_negative=given.prior_guidance_scale > 1,
            prompt_weighting=given.prompt_weighting,
            long_prompts="cut",
        )
        options = {"eta": given.eta, "by_one": not given.prior_skips}
        return [self.about(picture_vectors(call, self.prior, self.prior_scheduler, text, options), given)]
