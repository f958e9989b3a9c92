"""Stable Diffusion: Rombach et al. 2022 (2112.10752)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from langevin.codecs import VaeCodec
from langevin.denoiser import NetworkDenoiser
from langevin.guiders.base import Conditions, Guider
from langevin.guiders.prompt_schedule import edited_conditions
from langevin.media.images import VaeImageProcessor
from langevin.models.layers.embeddings import sinusoid
from langevin.outputs import BaseOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call, Callbacks, compose_guiders
from langevin.pipelines.results import call_settings, check_output_type, deliver, per_picture
from langevin.prompts.clip import encode_prompts
from langevin.prompts.textual_inversion import TextualInversionLoaderMixin
from langevin.randomness import noise_for

logger = logging.getLogger(__name__)


@dataclass
class StableDiffusionPipelineOutput(BaseOutput):
    """Pictures, and which of them the safety checker flagged (None without a checker)."""

    images: Any
    nsfw_content_detected: list[bool] | None


class StableDiffusionPipeline(TextualInversionLoaderMixin, DiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x checkpoints.

    Example:
        >>> from langevin import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("langevin/shapes")
        >>> pipe("a red circle", num_inference_steps=20, seed=7).images[0].save("circle.png")
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor", "image_encoder"]
    _exclude_from_cpu_offload = ["safety_checker"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        super().__init__()
        if safety_checker is not None and feature_extractor is None:
            raise ValueError("a safety_checker needs a feature_extractor; give one, or pass safety_checker=None")
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=modernised(scheduler),
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        self.register_to_config(requires_safety_checker=requires_safety_checker)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent in each direction."""
        return VaeCodec(self.vae).scale_factor if self.vae is not None else 8

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        seed: int | Sequence[int] | None = None,
        guiders: Sequence[Guider] = (),
        clip_skip_negative: bool = False,
        prompt_weighting: str = "compel",
        long_prompts: Literal["chunk", "cut"] = "chunk",
        safety_action: Literal["blackout", "flag"] = "blackout",
        callback: Callable | None = None,
        callback_steps: int | None = None,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Make pictures from prompts.

        Args:
            prompt: a text, or one per picture. Or give ``prompt_embeds``, ``(prompts, tokens, dim)``. A text may change
                during the run, as in ``a [red:blue:0.4] cat``; see :mod:`langevin.prompts.editing`.
            height, width: pixels; multiples of ``vae_scale_factor``. The model's own size if None.
            num_inference_steps: more steps, finer pictures. ``timesteps`` or ``sigmas`` may name them instead.
            guidance_scale: how strictly to follow the prompt; 1 is off. None: what the checkpoint names, else 7.5.
            negative_prompt: what to move away from.
            num_images_per_prompt: pictures of each prompt.
            eta: share of fresh noise in each step, for schedulers that know it (DDIM: 0 to 1).
            generator: one for the whole batch, or a list with one per picture.
            latents: start from this instead of noise, ``(pictures, channels, height / factor, width / factor)``.
            output_type: "pil", "np" ``(pictures, height, width, 3)`` in [0, 1], "pt" ``(pictures, 3, height, width)``
                in [0, 1], or "latent".
            guidance_rescale: φ of Lin et al. 2023; 0 is off.
            clip_skip: how many of the text encoder's last layers to leave out.
            callback_on_step_end: ``(call, i, t, tensors) -> tensors`` after every network call; see
                :class:`langevin.pipelines.call.Call`. ``callback(i, t, latents)`` is the older form.
            seed: picture k is made from ``seed + k``, or give a list with one per picture. Made alone with its
                own seed, a picture is the same.
            guiders: see :mod:`langevin.guiders`; they stack on classifier-free guidance.
            clip_skip_negative: apply ``clip_skip`` to the negative prompt too.
            prompt_weighting: how prompts are read. "compel": ``a (red cat)1.3 with a hat--``, see
                :mod:`langevin.prompts.compel`. "a1111", "comfyui": ``a (red cat:1.3) with a [hat]`` and the numbers
                of these web UIs. "none": every character is text.
            long_prompts: "chunk" reads a prompt longer than the text encoder's window (77 tokens) in several windows;
                prompt and negative prompt get the same number. "cut" reads the first one only, as the reference does,
                and names the words lost in a warning.
            safety_action: what to do with pictures that the safety checker flags: black them out, or only say so.

        Raises:
            ValueError: for arguments that do not fit together, in one line that says what is allowed.
            PromptSyntaxError: for a prompt that its grammar does not allow; a ValueError too.
        """
        if guidance_scale is None:
            guidance_scale = self.call_default("guidance_scale", 7.5)
        arguments = {k: v for k, v in locals().items() if k not in ("self", "generator", "output_type", "return_dict")}
        height, width = self._size(height, width)
        self._check_prompt(prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)
        check_output_type(output_type, "latent")
        if not isinstance(num_images_per_prompt, int) or num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {num_images_per_prompt!r}; it must be at least 1")
        if safety_action not in ("blackout", "flag"):
            raise ValueError(f"safety_action is {safety_action!r}; allowed: 'blackout', 'flag'")
        callbacks = Callbacks(
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            self._callback_tensor_inputs,
            callback,
            callback_steps,
        )
        device = self._execution_device
        all_guiders = compose_guiders(guidance_scale, guidance_rescale, guiders)
        distilled = self.unet.config.time_cond_proj_dim  # guidance is an input of such networks, not a second branch
        options = {"eta": eta} if "eta" in self.scheduler.run_options else {}
        run = self.scheduler.plan(
            None if timesteps is not None or sigmas is not None else num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            **options,
        )
        steps = num_inference_steps if timesteps is None and sigmas is None else len(run)

        def encode(prompt: Any, negative_prompt: Any) -> dict[str, Conditions]:
            positive, negative = self.encode_prompt(
                prompt,
                device,
                num_images_per_prompt,
                distilled is None and (guidance_scale > 1 or bool(guiders)),
                negative_prompt,
                prompt_embeds,
                negative_prompt_embeds,
                clip_skip=clip_skip,
                clip_skip_negative=clip_skip_negative,
                prompt_weighting=prompt_weighting,
                long_prompts=long_prompts,
            )
            both = {"positive": positive, "negative": negative}
            return {name: {"encoder_hidden_states": embeds} for name, embeds in both.items() if embeds is not None}

        branches, editing = edited_conditions(
            encode,
            prompt,
            negative_prompt,
            steps,
            prompt_weighting,
            negative_is_given=negative_prompt_embeds is not None,
        )
        positive = branches["positive"]["encoder_hidden_states"]
        batch = positive.shape[0]
        if distilled is not None:
            all_guiders = [g for g in all_guiders if g in guiders]
            # the embedding of w = scale - 1, times 1000: Meng et al. 2023 (2210.03142), section 3.1
            code = sinusoid(torch.tensor([(guidance_scale - 1) * 1000]), distilled, freq_shift=1).to(
                device, positive.dtype
            )
            branches = {k: {**v, "timestep_cond": code.expand(batch, -1)} for k, v in branches.items()}

        if editing is not None:
            all_guiders.insert(0, editing)
        noise, seeds = noise_for(batch, generator, seed)
        factor = self.vae_scale_factor
        shape = (batch, self.unet.config.in_channels, height // factor, width // factor)
        if latents is None:
            latents = noise.draw(shape, positive.dtype, device)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents is {tuple(latents.shape)}; {shape} is needed for this batch and size")
        x = latents.to(device) * run.init_noise_sigma

        call = Call(
            self,
            run,
            branches,
            all_guiders,
            noise,
            callbacks,
            steps,
            cross_attention_kwargs=cross_attention_kwargs,
            clip_skip=clip_skip,
            guidance_rescale=guidance_rescale,
        )
        fixed = {"cross_attention_kwargs": cross_attention_kwargs} if cross_attention_kwargs else {}
        x = call.denoise(x, NetworkDenoiser(self.unet, **fixed))

        flagged = None
        if output_type == "latent":
            images = x
        else:
            pixels = VaeCodec(self.vae).decode(x)
            flagged = self._flag(pixels, positive.dtype)
            if flagged is not None and safety_action == "blackout":
                pixels[torch.tensor(flagged)] = -1
            each = self._settings(arguments, seeds, prompt, negative_prompt, height, width)
            images = deliver(pixels, output_type, each)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, flagged) if return_dict else (images, flagged)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        clip_skip_negative: bool = False,
        prompt_weighting: str = "compel",
        long_prompts: Literal["chunk", "cut"] = "chunk",
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings of prompt and negative prompt, ``(prompts · pictures, tokens, dim)`` each."""
        encoding = encode_prompts(
            self.tokenizer,
            self.text_encoder,
            prompt,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            with_negative=do_classifier_free_guidance,
            pictures=num_images_per_prompt,
            clip_skip=clip_skip,
            clip_skip_negative=clip_skip_negative,
            prompt_weighting=prompt_weighting,
            long_prompts=long_prompts,
            device=device or self._execution_device,
            dtype=self._text_dtype,
        )
        return encoding.positive, encoding.negative

    @property
    def _text_dtype(self) -> torch.dtype:
        return self.text_encoder.dtype if self.text_encoder is not None else self.unet.dtype

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, the model's own where None."""
        factor = self.vae_scale_factor
        own = self.unet.config.sample_size
        own_height, own_width = (own, own) if isinstance(own, int) else own
        height, width = height or own_height * factor, width or own_width * factor
        if height % factor or width % factor or height < 1 or width < 1:
            raise ValueError(f"height and width are {height} and {width}; both must be multiples of {factor}")
        return height, width

    @staticmethod
    def _check_prompt(
        prompt: Any, prompt_embeds: Tensor | None, negative_prompt: Any, negative_prompt_embeds: Tensor | None
    ) -> None:
        if (prompt is None) == (prompt_embeds is None):
            given = "neither" if prompt is None else "both"
            raise ValueError(f"{given} of prompt and prompt_embeds given; give exactly one")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("both negative_prompt and negative_prompt_embeds given; give at most one")
        for name, value in (("prompt", prompt), ("negative_prompt", negative_prompt)):
            texts = [value] if value is None or isinstance(value, str) else value
            if not isinstance(texts, (list, tuple)) or not all(t is None or isinstance(t, str) for t in texts):
                raise ValueError(f"{name} is a {type(value).__name__}; a text or a list of texts is needed")
            if isinstance(value, (list, tuple)) and (not value or None in value):
                raise ValueError(f"{name} is an empty list or has an empty place; give one text per picture")

    def _flag(self, images: Tensor, dtype: torch.dtype) -> list[bool] | None:
        """What the safety checker says of decoded pictures; None without one."""
        if self.safety_checker is None:
            return None
        pixels = self.feature_extractor(
            self.image_processor.postprocess(images, output_type="pil"), return_tensors="pt"
        ).pixel_values
        return self.safety_checker.flag(pixels.to(images.device, dtype))

    def _settings(
        self,
        arguments: dict[str, Any],
        seeds: list[int | None],
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        height: int,
        width: int,
    ) -> list[dict[str, Any]]:
        batch = len(seeds)

        def spread(texts: str | list[str] | None) -> list[str | None]:
            each = list(texts) if isinstance(texts, (list, tuple)) else [texts]
            return [each[k * len(each) // batch] for k in range(batch)]

        settings = call_settings(self, arguments, height=height, width=width, num_images_per_prompt=None)
        return per_picture(settings, seeds, spread(prompt), spread(negative_prompt))


def modernised(scheduler: Any) -> Any:
    """Stable Diffusion's first configs lacked two settings that its pictures need: an offset of 1, and no clipping.

    The scheduler is returned as it is where they are right, else as a copy with them set.
    """
    wrong = {}
    if scheduler is not None and scheduler.config.get("steps_offset", 1) != 1:
        wrong["steps_offset"] = 1
    if scheduler is not None and scheduler.config.get("clip_sample", False):
        wrong["clip_sample"] = False
    if not wrong:
        return scheduler
    settings = ", ".join(f"{k}={v}" for k, v in wrong.items())
    logger.info("%s: Stable Diffusion needs %s; set for this pipeline.", type(scheduler).__name__, settings)
    scheduler = copy.copy(scheduler)
    scheduler.register_to_config(**wrong)
    return scheduler
