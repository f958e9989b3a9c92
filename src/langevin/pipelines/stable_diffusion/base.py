"""What the pipelines of Stable Diffusion's family share: their parts, their prompts, and how a call goes."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from langevin.codecs.base import Codec, check_size
from langevin.codecs.pixels import PlainCodec
from langevin.codecs.vae import VaeCodec
from langevin.guiders.base import Guider, Setup
from langevin.guiders.distilled import DistilledGuidance
from langevin.media.images import VaeImageProcessor, pictures
from langevin.outputs import StableDiffusionPipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call, compose_guiders
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.given import FamilyGiven, TextGiven
from langevin.prompts.readers.base import Given as Embeds
from langevin.prompts.readers.base import How, Reading, TextReader
from langevin.prompts.readers.clip import CLIPReader
from langevin.prompts.textual_inversion import TextualInversionLoaderMixin

if TYPE_CHECKING:
    from langevin.schedulers.run import Run

T = TypeVar("T", bound=FamilyGiven)
logger = logging.getLogger(__name__)


class LatentPipeline(DiffusionPipeline):
    """The course of a call of Stable Diffusion's family, whatever the network is told, texts or pictures.

    A pipeline of the family names its call's arguments, turns those that are its own into guiders, and hands both to
    :meth:`generate`. What its network is told, :meth:`read` says.
    """

    _exclude_from_cpu_offload = ["safety_checker"]
    _callback_tensor_inputs = ["latents"]
    _scheduler_needs: Mapping[str, Any] = {"steps_offset": 1, "clip_sample": False}

    _stage_name = ""  # where a call has several
    _resample = "lanczos"  # how given pictures are resized
    _least_side = 64  # of latents, which the first configs say are 32 where 64 is meant
    _usual_side: int | None = None  # of latents, where a config says nothing
    _usual_guidance = 7.5  # where neither the caller nor the checkpoint says

    #: parts that pipelines of the family with other constructors may lack
    safety_checker: Any = None
    feature_extractor: Any = None

    def take_parts(self, arguments: Mapping[str, Any]) -> None:
        """Make a constructor's arguments this pipeline's parts and settings.

        Raises:
            ValueError: a safety checker comes without a feature extractor.
        """
        if arguments.get("safety_checker") is not None and arguments.get("feature_extractor") is None:
            raise ValueError("a safety_checker needs a feature_extractor; give one, or pass safety_checker=None")
        scheduler = modernised(arguments["scheduler"], self._scheduler_needs)
        super().take_parts({**arguments, "scheduler": scheduler})
        channels = 4 if self.vae is None else self.vae.config.latent_channels
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, vae_latent_channels=channels, resample=self._resample
        )

    @property
    def codec(self) -> Codec:
        """From pictures to what the network denoises, and back."""
        if self.vae is None:  # latents are all that such a pipeline gives
            return PlainCodec(2, self.unet.config.in_channels, self.vae_scale_factor)
        return VaeCodec(self.vae)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent in each direction."""
        return VaeCodec(self.vae).scale_factor if self.vae is not None else 8

    def generate(self, given: FamilyGiven, parts: Sequence[Guider] = (), size: Sequence[int] | None = None) -> Any:
        """Make pictures: read what they are made from, denoise, decode.

        Args:
            given: the call's arguments.
            parts: what makes this pipeline the one that it is. They come after classifier-free guidance and before
                the caller's ``control`` and ``guiders``; among them may be another kind of guidance.
            size: height and width in pixels, where they are not what ``given`` says.
        """
        call, setup = self.begin(given, parts, size)
        return self.hand_over(call, setup, call.denoise(setup))

    def begin(
        self,
        given: FamilyGiven,
        parts: Sequence[Guider] = (),
        size: Sequence[int] | None = None,
        call: Call | None = None,
        told: Reading | None = None,
        **more: Any,
    ) -> tuple[Call, Setup]:
        """A call before it denoises, and its stage; or the next stage of a ``call`` that is under way.

        Arguments are those of :meth:`generate`. What the network is ``told`` is read, unless it is given; ``more`` goes
        to :meth:`stage`.
        """
        given = self.scaled(given)
        size = size or self.size(given.height, given.width)
        run = self.plan(given)
        told = told or self.read(given, steps=len(run) if given.own_schedule else given.num_inference_steps)
        call = call or Call(self, given, told.batch)
        parts = [*parts, *self.earlier(call, given)]
        return call, self.stage(call, given, told, parts, size, run=run, **more)

    def make(self, given: Any) -> Any:
        """Make pictures as :meth:`prepared` says."""
        return self.generate(given, *self.prepared(given))

    def prepared(self, given: Any) -> tuple[list[Guider], Sequence[int] | None]:
        """What a call with such arguments hands to :meth:`generate` and :meth:`begin`: the pipeline's own guiders, and
        the size.
        """
        return [], None

    def scaled(self, given: T) -> T:
        """The call's arguments with the checkpoint's own scale of guidance, where none is given."""
        if given.guidance_scale is None:
            return given.changed(guidance_scale=self.call_default("guidance_scale", self._usual_guidance))
        return given

    def stage(
        self,
        call: Call,
        given: FamilyGiven,
        told: Reading,
        parts: Sequence[Guider],
        size: Sequence[int],
        **more: Any,
    ) -> Setup:
        """A stage of the call with the family's network; ``more``, its ``run`` among them, takes the place of what it
        usually has.
        """
        usual: dict[str, Any] = {
            "network": more.get("network") or self.network,
            "scheduler": self.scheduler,
            "branches": told.branches,
            "latents": given.latents,
            "steps": None if given.own_schedule else given.num_inference_steps,
            "name": self._stage_name,
        }
        usual |= more
        return call.stage(
            shape=self.codec.shape(told.batch, size),
            guiders=[*([] if told.guider is None else [told.guider]), *self.guidance(given, parts)],
            codec=self.codec,
            fixed={"cross_attention_kwargs": given.cross_attention_kwargs} if given.cross_attention_kwargs else {},
            encode_text=told.again,
            pair_images=given.pair_images,
            pictures=given.num_images_per_prompt,
            **usual,
        )

    def hand_over(self, call: Call, setup: Setup, x: Tensor) -> Any:
        """What a call gives for x at its end."""
        given: Any = call.given
        if given.output_type == "latent":
            return self.output(call.deliver(x))
        return self.hand_out(call, call.decode(setup, x))

    @property
    def network(self) -> Any:
        """What denoises: the UNet, or a callable around it."""
        return self.unet

    def read(self, given: Any, steps: int) -> Reading:
        """What the network is told in a call of so many steps, as branches of conditions."""
        raise NotImplementedError(f"{type(self).__name__} has no read(), which says what its network is told")

    def earlier(self, call: Call, given: Any) -> list[Guider]:
        """Go through the stages before this one, and return guiders that tell it what came of them."""
        return []

    def plan(self, given: FamilyGiven) -> Run:
        """The scheduler's run: so many steps, or those that the caller names."""
        return self.scheduler.plan(
            None if given.own_schedule else given.num_inference_steps,
            timesteps=given.timesteps,
            sigmas=given.sigmas,
            **({"eta": given.eta} if "eta" in self.scheduler.run_options else {}),
        )

    def guidance(self, given: FamilyGiven, parts: Sequence[Guider]) -> list[Guider]:
        """The call's guiders in order."""
        scale = given.guidance_scale or 0.0
        added = [*parts, *given.control, *given.guiders]
        if self.guides_itself:
            return [DistilledGuidance(scale), *added]
        return compose_guiders(scale, given.guidance_rescale, added)

    def has_negative(self, given: FamilyGiven) -> bool:
        """Whether a call has a negative branch: where guidance, or any guider, may want it."""
        wanted = (given.guidance_scale or 0) > 1 or given.control or given.guiders
        return bool(wanted) and not self.guides_itself

    @property
    def guides_itself(self) -> bool:
        """Whether the network has learned guidance, and is told its scale; see :mod:`langevin.guiders.distilled`."""
        return bool(self.unet.config.get("time_cond_proj_dim"))

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {name: given.pair_images for name in ("image", "mask_image") if hasattr(given, name)}

    def hand_out(self, call: Call, pixels: Tensor) -> Any:
        """Decoded pictures as the call gives them, after the safety checker has seen them."""
        given: Any = call.given
        flagged = self.flagged(pixels)
        if flagged is not None and given.safety_action == "blackout":
            pixels = blacked_out(pixels, flagged)
        return self.output(call.deliver(pixels, num_images_per_prompt=None), flagged)

    def output(self, images: Any, flagged: list[bool] | None = None) -> Any:
        """What the call returns, given its pictures and what the safety checker said of them."""
        return StableDiffusionPipelineOutput(images, flagged)

    def size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, the model's own where None."""
        factor = self.vae_scale_factor
        config = self.unet.config
        own = config.sample_size or self._usual_side
        if isinstance(own, int) and _before_0_9(config.get("_diffusers_version")):
            own = max(own, self._least_side)
        if own is None and not (height and width):
            raise ValueError("the UNet's config does not say its sample_size; give height and width")
        own_height, own_width = own if isinstance(own, (list, tuple)) else (own or 0, own or 0)
        size = height or own_height * factor, width or own_width * factor
        check_size(size, factor)
        return size

    def pixels(self, image: Any, height: int | None = None, width: int | None = None, **how: Any) -> Tensor:
        """Pictures that a caller gave, ``(n, 3, height, width)`` in [-1, 1]; latents pass as they are.

        ``how`` is for :meth:`~langevin.VaeImageProcessor.preprocess`.
        """
        if image is None:
            raise ValueError("image is missing; give a PIL image, an array or a tensor in [0, 1], or a list of them")
        images = pictures(image, latent_channels=self.image_processor.config.vae_latent_channels)
        return self.image_processor.preprocess(images, height=height, width=width, **how)

    def size_of(self, pixels: Tensor) -> tuple[int, int]:
        """The height and width of pictures made from these pixels or latents."""
        latents = self.vae is not None and pixels.shape[1] == self.vae.config.latent_channels
        factor = self.vae_scale_factor if latents else 1
        height, width = pixels.shape[-2:]
        return height * factor, width * factor

    def flagged(self, images: Tensor) -> list[bool] | None:
        """What the safety checker says of decoded pictures; None without one."""
        if self.safety_checker is None:
            return None
        pixels = self.feature_extractor(
            self.image_processor.postprocess(images, output_type="pil"), return_tensors="pt"
        ).pixel_values
        return self.safety_checker.flag(pixels.to(images.device, self.safety_checker.dtype))


class StableDiffusionBase(TextualInversionLoaderMixin, LatentPipeline):
    """The usual parts and prompts, with the course of a call."""

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor", "image_encoder"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

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
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        pass

    def read(self, given: TextGiven, steps: int) -> Reading:
        """The texts of a call, as branches of conditions."""
        positive, negative = self.given_embeds(given)
        return self.reads(given).read(
            given.prompt,
            given.negative_prompt,
            pictures=given.num_images_per_prompt,
            steps=steps,
            with_negative=self.has_negative(given),
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            clip_skip=given.clip_skip,
            clip_skip_negative=given.clip_skip_negative,
            prompt_weighting=given.prompt_weighting,
            long_prompts=given.long_prompts,
        )

    def given_embeds(self, given: Any) -> tuple[Embeds, Embeds]:
        """What the caller gave in the place of texts, for the positive and the negative branch."""
        return given.prompt_embeds, given.negative_prompt_embeds

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
        reader: TextReader | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings of prompt and negative prompt, ``(prompts · pictures, tokens, dim)`` each."""
        branches = (reader or self.reader).encode(
            prompt,
            negative_prompt,
            How(clip_skip, clip_skip_negative, prompt_weighting, long_prompts),
            prompt_embeds,
            negative_prompt_embeds,
            pictures=num_images_per_prompt,
            with_negative=do_classifier_free_guidance,
        )
        place = device or self._execution_device
        embeds = {name: told["encoder_hidden_states"].to(place) for name, told in branches.items()}
        return embeds["positive"], embeds.get("negative")

    def reads(self, given: Any) -> TextReader:
        """What turns the texts of a call into branches of conditions."""
        return self.reader

    _reader_class: type[TextReader] = CLIPReader

    @property
    def reader(self) -> TextReader:
        """What turns texts into branches of conditions."""
        return self._reader_class(
            self.tokenizer, self.text_encoder, device=self._execution_device, dtype=self.unet.dtype
        )


def blacked_out(pixels: Tensor, which: Sequence[bool]) -> Tensor:
    """Pictures in [-1, 1], with some of them black."""
    pixels = pixels.clone()
    pixels[torch.tensor(which)] = -1
    return pixels


def _before_0_9(version: Any) -> bool:
    """Whether a config was written by a reference older than 0.9."""
    return isinstance(version, str) and tuple(map(int, re.findall(r"\d+", version)[:2])) < (0, 9)


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
