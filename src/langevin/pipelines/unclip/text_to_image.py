"""Text to image with unCLIP: Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents"
(2204.06125).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from langevin.pipelines.call import Call
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.given import check_texts
from langevin.pipelines.unclip.base import DecoderGiven, UnCLIPDecoding
from langevin.pipelines.unclip.prior import PriorGiven, clip_reader, picture_vectors
from langevin.prompts.readers.base import Reading


@dataclass(frozen=True, kw_only=True)
class UnCLIPTextGiven(PriorGiven, DecoderGiven):
    """Arguments of :class:`UnCLIPPipeline`.

    Args:
        prompt: a text, or one per picture; or give ``text_model_output``.
        negative_prompt: what prior and decoder move away from; a text, or one per prompt.
        text_model_output: what CLIP's text model gives, in the prompt's place: ``text_embeds`` ``(prompts, dim)`` and
            ``last_hidden_state`` ``(prompts, tokens, dim)``, as its output or as a pair.
        text_attention_mask: which tokens of it are no padding, ``(prompts, tokens)``.
        prompt_weighting: how prompts are read, such as "compel"; see :class:`langevin.StableDiffusionPipeline`.
    """

    prompt: str | Sequence[str] | None = field(default=None, kw_only=False)
    negative_prompt: str | Sequence[str] | None = None
    text_model_output: Any = None
    text_attention_mask: Tensor | None = None
    prompt_weighting: str = "compel"

    positional = (
        "prompt num_images_per_prompt prior_num_inference_steps decoder_num_inference_steps "
        "super_res_num_inference_steps generator prior_latents decoder_latents super_res_latents text_model_output "
        "text_attention_mask prior_guidance_scale decoder_guidance_scale output_type return_dict"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt", "negative_prompt"):
            check_texts(name, getattr(self, name))
        if (self.prompt is None) == (self.text_model_output is None):
            given = "neither" if self.prompt is None else "both"
            raise ValueError(f"{given} of prompt and text_model_output given; give exactly one")
        if (self.text_model_output is None) != (self.text_attention_mask is None):
            raise ValueError("text_model_output and text_attention_mask go together; one of them is missing")

    @property
    def text_embeds(self) -> dict[str, Tensor] | None:
        """``text_model_output`` as a reader takes it."""
        if self.text_model_output is None:
            return None
        vectors, tokens = self.text_model_output[0], self.text_model_output[1]
        assert self.text_attention_mask is not None
        return {
            "encoder_hidden_states": tokens,
            "proj_embedding": vectors,
            "attention_mask": self.text_attention_mask.bool(),
        }


class UnCLIPPipeline(UnCLIPDecoding):
    """A prior makes the CLIP vector of a picture from a prompt, a decoder a small picture from both, and two networks
    enlarge it, one of them in the last step alone (unCLIP: Ramesh et al. 2022, 2204.06125; the public Karlo models).

    The prior reads one window of CLIP's text model, 77 tokens; longer prompts lose their end, and a warning names it.

    Example:
        >>> from langevin import UnCLIPPipeline
        >>> pipe = UnCLIPPipeline.from_pretrained("kakaobrain/karlo-v1-alpha")
        >>> image = pipe("a high-resolution photograph of a big red frog on a green leaf", seed=7).images[0]
    """

    model_cpu_offload_seq = "text_encoder->text_proj->decoder->super_res_first->super_res_last"
    _exclude_from_cpu_offload = ["prior", "text_proj"]

    @takes_parts
    def __init__(
        self,
        prior: Any,
        decoder: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_proj: Any,
        super_res_first: Any,
        super_res_last: Any,
        prior_scheduler: Any,
        decoder_scheduler: Any,
        super_res_scheduler: Any,
    ) -> None:
        """``prior``: a :class:`~langevin.PriorTransformer`; ``text_encoder``: a ``CLIPTextModelWithProjection`` of
        transformers; ``text_proj``: a :class:`~langevin.UnCLIPTextProjModel`.
        """

    @takes(UnCLIPTextGiven)
    def __call__(self, given: UnCLIPTextGiven) -> Any:
        """Make pictures."""
        text = self.read(given)
        call = Call(self, given, text.batch)
        return self.generate(call, given, text, picture_vectors(call, self.prior, self.prior_scheduler, text))

    def read(self, given: UnCLIPTextGiven) -> Reading:
        """The texts of a call, as the prior and the decoder's projection are told them."""
        reader = clip_reader(self.tokenizer, self.text_encoder, self._execution_device, self.prior.dtype)
        guided = max(given.prior_guidance_scale, given.decoder_guidance_scale) > 1 or given.guiders
        return reader.read(
            given.prompt,
            given.negative_prompt,
            pictures=given.num_images_per_prompt,
            steps=given.decoder_num_inference_steps,
            with_negative=bool(guided),
            prompt_embeds=given.text_embeds,
            prompt_weighting=given.prompt_weighting,
            long_prompts="cut",
        )
