"""Text to image by discrete diffusion over codes: VQ-Diffusion, Gu et al. 2022 (2111.14822)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from langevin.checks import Count, Share
from langevin.codecs.codes import CodeCodec
from langevin.guiders.base import Guider
from langevin.guiders.truncation import Truncation
from langevin.models.transformer_2d import TimeByName
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call, compose_guiders
from langevin.pipelines.given import Given, takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.given import check_texts
from langevin.prompts.readers.base import Reading
from langevin.prompts.readers.clip import UnitReader
from langevin.prompts.textual_inversion import TextualInversionLoaderMixin


@dataclass(frozen=True, kw_only=True)
class VQDiffusionGiven(Given):
    """Arguments of :class:`VQDiffusionPipeline`.

    Args:
        prompt: a text, or one per picture.
        num_inference_steps: at most as many as the scheduler has timesteps.
        guidance_scale: how strictly to follow the prompt; 1 is off.
        truncation_rate: of each place's codes the most likely are kept, as many as it takes to reach this probability:
            1 keeps all. See :class:`langevin.Truncation`.
        num_images_per_prompt: pictures of each prompt.
        latents: codes to begin with instead of the mask everywhere, ``(pictures, places)``, whole numbers.
        negative_prompt: what to move away from; a text, or one per prompt. None is what the checkpoint has learned to
            stand for no text, else the empty text.
        prompt_weighting: how prompts are read, such as "compel"; see :class:`langevin.StableDiffusionPipeline`.
        long_prompts: "chunk" reads a prompt longer than the text encoder's window in several, "cut" only its beginning,
            with the mark of its end, which the reference loses there.
        as_published: spread fewer steps than there are timesteps over all of them, as the paper does; False takes the
            last ones, one by one, as the reference does.
    """

    prompt: str | Sequence[str] | None = field(default=None, kw_only=False)
    num_inference_steps: Count = field(default=100, kw_only=False)
    guidance_scale: float = field(default=5.0, kw_only=False)
    truncation_rate: Share = field(default=1.0, kw_only=False)
    num_images_per_prompt: Count = field(default=1, kw_only=False)
    latents: Tensor | None = None
    negative_prompt: str | Sequence[str] | None = None
    prompt_weighting: str = "compel"
    long_prompts: Literal["chunk", "cut"] = "chunk"
    as_published: bool = False

    positional = (
        "prompt num_inference_steps guidance_scale truncation_rate num_images_per_prompt generator latents "
        "output_type return_dict callback callback_steps"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt", "negative_prompt"):
            check_texts(name, getattr(self, name))
        if self.prompt is None:
            raise ValueError("prompt is missing; give a text, or a list of texts")
        if self.latents is not None and self.latents.is_floating_point():
            raise ValueError(f"latents are {self.latents.dtype}; they are codes, whole numbers")


class VQDiffusionPipeline(TextualInversionLoaderMixin, DiffusionPipeline):
    """Text to image by discrete diffusion over the codes of a vector-quantised autoencoder (VQ-Diffusion: Gu, Chen,
    Bao, Wen, Zhang, Chen, Yuan & Guo 2022, 2111.14822), with what was learned to stand for no text at all (Tang et al.
    2022, 2205.16007).

    Guiders see log p of the codes, ``(batch, codes, places)``; those that work on pictures' places or begin from a
    picture say that there are none.

    Example:
        >>> from langevin import VQDiffusionPipeline
        >>> pipe = VQDiffusionPipeline.from_pretrained("microsoft/vq-diffusion-ithq")
        >>> image = pipe("teddy bear playing in the pool", truncation_rate=0.86, seed=7).images[0]
    """

    model_cpu_offload_seq = "text_encoder->transformer->vqvae"
    _exclude_from_cpu_offload = ["learned_classifier_free_sampling_embeddings"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    @takes_parts
    def __init__(
        self,
        vqvae: Any,
        text_encoder: Any,
        tokenizer: Any,
        transformer: Any,
        scheduler: Any,
        learned_classifier_free_sampling_embeddings: Any,
    ) -> None:
        """``vqvae``: a :class:`~langevin.VQModel`; ``text_encoder``: a ``CLIPTextModel`` of transformers;
        ``transformer``: a :class:`~langevin.Transformer2DModel`; ``scheduler``: a
        :class:`~langevin.VQDiffusionScheduler`.
        """

    @takes(VQDiffusionGiven)
    def __call__(self, given: VQDiffusionGiven) -> Any:
        """Make pictures from prompts.

        Raises:
            ValueError: for arguments that do not fit together, in one line that says what is allowed.
        """
        text = self.read(given)
        side, codes = self.transformer.config.sample_size, self.transformer.config.num_vector_embeds
        if given.latents is not None and not ((given.latents >= 0) & (given.latents < codes)).all():
            low, high = int(given.latents.min()), int(given.latents.max())
            raise ValueError(f"latents go from {low} to {high}; codes go from 0 to {codes - 1}, the mask")
        call = Call(self, given, text.batch, law=torch.rand)
        edits: list[Guider] = [] if text.guider is None else [text.guider]
        stage = call.stage(
            TimeByName(self.transformer),
            self.scheduler,
            (text.batch, side * side),
            text.branches,
            [*edits, *compose_guiders(given.guidance_scale, 0.0, given.guiders), Truncation(given.truncation_rate)],
            steps=given.num_inference_steps,
            codec=CodeCodec(self.vqvae, side, side),
            options={"as_published": given.as_published},
            latents=given.latents,
            encode_text=text.again,
            pictures=given.num_images_per_prompt,
        )
        stage.x = stage.latents  # where they were given, the run does not begin by itself
        pixels = call.decode(stage, call.denoise(stage))
        return ImagePipelineOutput(call.deliver(pixels, num_images_per_prompt=None))

    def read(self, given: VQDiffusionGiven) -> Reading:
        """The texts of a call, as branches of conditions."""
        learned = self.learned_classifier_free_sampling_embeddings
        guided = given.guidance_scale > 1 or bool(given.guiders)
        own = guided and given.negative_prompt is None and learned.config.learnable
        dtype, device = self.transformer.dtype, self._execution_device
        reading = UnitReader(self.tokenizer, self.text_encoder, device=device, dtype=dtype).read(
            given.prompt,
            given.negative_prompt,
            pictures=given.num_images_per_prompt,
            steps=given.num_inference_steps,
            with_negative=guided and not own,
            prompt_weighting=given.prompt_weighting,
            long_prompts=given.long_prompts,
        )
        if own:
            told = learned.embeddings.to(device, dtype).expand(reading.batch, -1, -1)
            reading.branches["negative"] = {reading.embeds_key: told}
        return reading
