"""What the pipelines of Stable Diffusion's family share: their parts, their prompts, and how a call goes."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from langevin.codecs import PixelCodec, VaeCodec
from langevin.denoiser import NetworkDenoiser
from langevin.guiders.base import Conditions, Guider, Input, Setup
from langevin.media.images import VaeImageProcessor
from langevin.models.layers.embeddings import sinusoid
from langevin.outputs import StableDiffusionPipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call, Callbacks, compose_guiders
from langevin.pipelines.prompting import edited_conditions
from langevin.pipelines.results import call_settings, check_output_type, deliver, per_picture
from langevin.prompts.clip import encode_prompts
from langevin.prompts.textual_inversion import TextualInversionLoaderMixin
from langevin.randomness import noise_for

logger = logging.getLogger(__name__)


class StableDiffusionBase(TextualInversionLoaderMixin, DiffusionPipeline):
    """Parts, prompts and the course of a call. A pipeline of the family names its call's arguments, turns those that
    are its own into guiders, and hands both to :meth:`_generate`.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor", "image_encoder"]
    _exclude_from_cpu_offload = ["safety_checker"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    _scheduler_needs: Mapping[str, Any] = {"steps_offset": 1, "clip_sample": False}

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
            scheduler=modernised(scheduler, self._scheduler_needs),
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

    def _generate(self, arguments: Mapping[str, Any], parts: Sequence[Guider] = ()) -> Any:
        """Make pictures.

        Args:
            arguments: those of the pipeline's call: all that :class:`~langevin.StableDiffusionPipeline`'s has. Others
                are recorded, no more.
            parts: what makes this pipeline the one that it is. They come after classifier-free guidance and before
                the caller's ``control`` and ``guiders``; among them may be another kind of guidance.
        """
        arguments = dict(arguments)
        if arguments["guidance_scale"] is None:
            arguments["guidance_scale"] = self.call_default("guidance_scale", 7.5)
        a = SimpleNamespace(**arguments)
        height, width = self._size(a.height, a.width)
        self._check_prompt(a.prompt, a.prompt_embeds, a.negative_prompt, a.negative_prompt_embeds)
        check_output_type(a.output_type, "latent")
        if not isinstance(a.num_images_per_prompt, int) or a.num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {a.num_images_per_prompt!r}; it must be at least 1")
        if a.safety_action not in ("blackout", "flag"):
            raise ValueError(f"safety_action is {a.safety_action!r}; allowed: 'blackout', 'flag'")
        callbacks = Callbacks(
            a.callback_on_step_end,
            a.callback_on_step_end_tensor_inputs,
            self._callback_tensor_inputs,
            a.callback,
            a.callback_steps,
        )
        own_schedule = a.timesteps is not None or a.sigmas is not None
        run = self.scheduler.plan(
            None if own_schedule else a.num_inference_steps,
            timesteps=a.timesteps,
            sigmas=a.sigmas,
            **({"eta": a.eta} if "eta" in self.scheduler.run_options else {}),
        )
        steps = len(run) if own_schedule else a.num_inference_steps
        added = [*parts, *a.control, *a.guiders]
        distilled = self.unet.config.time_cond_proj_dim  # guidance is an input of such networks, not a second branch
        guided = distilled is None and (a.guidance_scale > 1 or bool(a.control or a.guiders))
        guiders = added if distilled else compose_guiders(a.guidance_scale, a.guidance_rescale, added)

        def encode(prompt: Any, negative_prompt: Any, given: bool = True) -> dict[str, Conditions]:
            positive, negative = self.encode_prompt(
                prompt,
                self._execution_device,
                a.num_images_per_prompt,
                guided and given,
                negative_prompt,
                a.prompt_embeds if given else None,
                a.negative_prompt_embeds if given else None,
                clip_skip=a.clip_skip,
                clip_skip_negative=a.clip_skip_negative,
                prompt_weighting=a.prompt_weighting,
                long_prompts=a.long_prompts,
            )
            both = {"positive": positive, "negative": negative}
            return {name: {"encoder_hidden_states": embeds} for name, embeds in both.items() if embeds is not None}

        branches, editing = edited_conditions(
            encode,
            a.prompt,
            a.negative_prompt,
            steps,
            a.prompt_weighting,
            negative_is_given=a.negative_prompt_embeds is not None,
        )
        if editing is not None:
            guiders = [editing, *guiders]
        positive = branches["positive"]["encoder_hidden_states"]
        batch, device, dtype = positive.shape[0], self._execution_device, positive.dtype
        more: dict[str, Tensor] = {}
        if distilled:
            # the embedding of w = scale - 1, times 1000: Meng et al. 2023 (2210.03142), section 3.1
            code = sinusoid(torch.tensor([(a.guidance_scale - 1) * 1000]), distilled, freq_shift=1)
            more["timestep_cond"] = code.to(device, dtype).expand(batch, -1)
            branches = {name: {**told, **more} for name, told in branches.items()}

        def encode_text(text: Any) -> Conditions:
            texts = [text] * (batch // a.num_images_per_prompt) if isinstance(text, str) else text
            return {**encode(texts, None, given=False)["positive"], **more}

        noise, seeds = noise_for(batch, a.generator, a.seed)
        codec = VaeCodec(self.vae) if self.vae is not None else PixelCodec(self.unet.config.in_channels)
        factor = self.vae_scale_factor
        shape = (batch, codec.channels, height // factor, width // factor)
        if a.latents is not None and tuple(a.latents.shape) != shape:
            raise ValueError(f"latents is {tuple(a.latents.shape)}; {shape} is needed for this batch and size")
        fixed = {"cross_attention_kwargs": a.cross_attention_kwargs} if a.cross_attention_kwargs else {}
        inputs: list[Input] = []
        setup = Setup(
            run=run,
            steps=steps,
            order=self.scheduler.order,
            branches=branches,
            guiders=[guider.begin() for guider in guiders],
            network=self.unet,
            denoiser=NetworkDenoiser(self.unet, inputs, **fixed),
            inputs=inputs,
            codec=codec,
            noise=noise,
            shape=shape,
            device=device,
            dtype=dtype,
            encode_text=encode_text,
            pair_images=a.pair_images,
            pictures=a.num_images_per_prompt,
            latents=None if a.latents is None else a.latents.to(device),
        )
        call = Call(
            self,
            setup,
            callbacks,
            cross_attention_kwargs=a.cross_attention_kwargs,
            clip_skip=a.clip_skip,
            guidance_rescale=a.guidance_rescale,
        )
        x = call.denoise()

        flagged = None
        if a.output_type == "latent":
            images = x
        else:
            pixels = call.decode(x)
            flagged = self._flag(pixels, dtype)
            if flagged is not None and a.safety_action == "blackout":
                pixels[torch.tensor(flagged)] = -1
            height, width = pixels.shape[-2:]
            images = deliver(pixels, a.output_type, self._settings(arguments, seeds, height, width))
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, flagged) if a.return_dict else (images, flagged)

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
        config = self.unet.config
        own = config.sample_size
        if isinstance(own, int) and _before_0_9(config.get("_diffusers_version")):
            own = max(own, 64)  # the first configs say 32 where 64 is meant
        own_height, own_width = (own, own) if isinstance(own, int) else own
        height, width = height or own_height * factor, width or own_width * factor
        if height % factor or width % factor or height < 1 or width < 1:
            raise ValueError(f"height and width are {height} and {width}; both must be multiples of {factor}")
        return height, width

    def _pixels(self, image: Any, height: int | None = None, width: int | None = None, **how: Any) -> Tensor:
        """Pictures that a caller gave, ``(n, 3, height, width)`` in [-1, 1]; latents pass as they are.

        ``how`` is for :meth:`~langevin.VaeImageProcessor.preprocess`.
        """
        if image is None:
            raise ValueError("image is missing; give a PIL image, an array or a tensor in [0, 1], or a list of them")
        listed = image if isinstance(image, (list, tuple)) else [image]
        listed = [one.convert("RGB") if isinstance(one, Image.Image) else one for one in listed]  # "L", "RGBA", …
        whole = listed if isinstance(image, (list, tuple)) else listed[0]
        return self.image_processor.preprocess(whole, height=height, width=width, **how)

    def _size_of(self, pixels: Tensor) -> dict[str, int]:
        """The height and width of pictures made from these pixels or latents."""
        latents = self.vae is not None and pixels.shape[1] == self.vae.config.latent_channels
        factor = self.vae_scale_factor if latents else 1
        height, width = pixels.shape[-2:]
        return {"height": height * factor, "width": width * factor}

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
        self, arguments: dict[str, Any], seeds: list[int | None], height: int, width: int
    ) -> list[dict[str, Any]]:
        arguments = {k: v for k, v in arguments.items() if k not in ("generator", "output_type", "return_dict")}
        batch = len(seeds)

        def spread(texts: str | list[str] | None) -> list[str | None]:
            each = list(texts) if isinstance(texts, (list, tuple)) else [texts]
            return [each[k * len(each) // batch] for k in range(batch)]

        settings = call_settings(self, arguments, height=height, width=width, num_images_per_prompt=None)
        return per_picture(settings, seeds, spread(arguments["prompt"]), spread(arguments["negative_prompt"]))


def _before_0_9(version: str | None) -> bool:
    """Whether a config was written by a reference older than 0.9."""
    return version is not None and tuple(map(int, re.findall(r"\d+", version)[:2])) < (0, 9)


def modernised(scheduler: Any, needs: Mapping[str, Any]) -> Any:
    """Stable Diffusion's first configs lacked settings that its pictures need: an offset of 1, no clipping.

    The scheduler is returned as it is where those that it knows are right, else as a copy with them set.
    """
    wrong = {k: v for k, v in needs.items() if scheduler is not None and scheduler.config.get(k, v) != v}
    if not wrong:
        return scheduler
    settings = ", ".join(f"{k}={v}" for k, v in wrong.items())
    logger.info("%s: Stable Diffusion needs %s; set for this pipeline.", type(scheduler).__name__, settings)
    scheduler = copy.copy(scheduler)
    scheduler.register_to_config(**wrong)
    return scheduler
