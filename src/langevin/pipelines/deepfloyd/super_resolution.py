"""DeepFloyd IF's second stage: small pictures made larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from langevin.checks import Count
from langevin.guiders.base import Guider
from langevin.guiders.low_resolution import EnlargedPicture
from langevin.pipelines.deepfloyd.base import IFBase
from langevin.pipelines.deepfloyd.given import LARGE_END, MIDDLE, IFGiven, NoiseLevel
from langevin.pipelines.deepfloyd.pictures import signed
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts


@dataclass(frozen=True, kw_only=True)
class IFLargeGiven(IFGiven):
    """What IF's pipelines take that make pictures larger.

    Args:
        image: the small picture, one or a list: PIL; or arrays and tensors in [-1, 1], as ``output_type="pt"`` of the
            first stage gives them.
        noise_level: how much noise is added to the small picture, a timestep of ``image_noising_scheduler``. More
            leaves more to the network.
    """

    image: Any = field(default=None, kw_only=False)
    num_inference_steps: Count = 50
    noise_level: NoiseLevel = 250


@dataclass(frozen=True, kw_only=True)
class IFSuperResolutionGiven(IFLargeGiven):
    """Arguments of :class:`IFSuperResolutionPipeline`."""

    positional = f"prompt height width image {MIDDLE} {LARGE_END}"


class IFLargeBase(IFBase):
    """A network that is shown a small picture beside x."""

    _usual_guidance = 4.0

    @takes_parts
    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        unet: Any,
        scheduler: Any,
        image_noising_scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        watermarker: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        """``image_noising_scheduler`` noises the small picture; for the others see :class:`IFBase`."""

    @property
    def _channels(self) -> int:
        return self.unet.config.in_channels // 2

    def shown(self, given: IFLargeGiven) -> EnlargedPicture:
        """The small picture as the network is shown it.

        Raises:
            ValueError: the noise level is none of the scheduler's.
        """
        levels = self.image_noising_scheduler.config.num_train_timesteps
        if given.noise_level >= levels:
            raise ValueError(f"noise_level is {given.noise_level}; image_noising_scheduler knows 0 to {levels - 1}")
        return EnlargedPicture(signed(given.image, "image"), given.noise_level, self.image_noising_scheduler)


class IFSuperResolutionPipeline(IFLargeBase):
    """Pictures of 256 x 256 pixels from those of 64 x 64 and their text: the small picture is enlarged, noised, and
    shown to the network, which is told how much noise there is (Ho et al. 2021, "Cascaded Diffusion Models",
    2106.15282; Saharia et al. 2022, 2205.11487).

    Example:
        >>> from langevin import IFSuperResolutionPipeline
        >>> pipe = IFSuperResolutionPipeline.from_pretrained("DeepFloyd/IF-II-L-v1.0", text_encoder=None)
        >>> told, untold = first.encode_prompt("a photo of a corgi")
        >>> small = first(prompt_embeds=told, negative_prompt_embeds=untold, output_type="pt", seed=7).images
        >>> image = pipe(image=small, prompt_embeds=told, negative_prompt_embeds=untold, seed=7).images[0]
    """

    @takes(IFSuperResolutionGiven)
    def __call__(self, given: IFSuperResolutionGiven) -> Any:
        """Make pictures larger."""
        return self.make(given)

    def prepared(self, given: Any) -> tuple[list[Guider], Sequence[int] | None]:
        return [self.shown(given)], None
