"""Pictures from a text and a picture with Versatile Diffusion: Xu, Wang, Zhang, Wang & Shi 2022 (2211.08332)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langevin.checks import Share
from langevin.guiders.base import Guider, Setup
from langevin.models.versatile import DualFlow, dual_flow
from langevin.pipelines.call import Call
from langevin.pipelines.given import takes
from langevin.pipelines.stable_diffusion.given import FamilyGiven, Side, TextGiven
from langevin.pipelines.versatile.base import AFTER, AllParts
from langevin.prompts.readers.base import Reading

NAME = "image_states"


@dataclass(frozen=True, kw_only=True)
class VersatileDualGiven(TextGiven):
    """Arguments of :class:`VersatileDiffusionDualGuidedPipeline`.

    Args:
        image: what the pictures shall be like, one for each prompt or one for all: PIL, an array ``(height, width, 3)``
            or a tensor ``(3, height, width)`` in [0, 1] or to 255, or several of them.
        text_to_image_strength: how much the text counts, 0 to 1; the picture counts for the rest.
        prepared: True takes a tensor to be in the form that the feature extractor gives.
        grey_negative: True shows the negative branch a grey picture, as is meant; False one all but black, as it is in
            the reference with today's feature extractors.
    """

    image: Any = field(default=None, kw_only=False)
    text_to_image_strength: Share = field(default=0.5, kw_only=False)
    height: Side | None = field(default=None, kw_only=False)
    width: Side | None = field(default=None, kw_only=False)
    prepared: bool = False
    grey_negative: bool = False

    positional = (
        "prompt image text_to_image_strength height width num_inference_steps "
        f"{AFTER.replace('negative_prompt ', '')} callback callback_steps"
    )


class VersatileDiffusionDualGuidedPipeline(AllParts):
    """Pictures from a text and a picture at once with Versatile Diffusion (Xu, Wang, Zhang, Wang & Shi 2022,
    2211.08332, section 3.3): each of the network's attentions is two, whose effects are mixed.

    (The reference's cannot be called: its two transformers do not take an argument that its UNet hands them.)

    Example:
        >>> from langevin import VersatileDiffusionDualGuidedPipeline
        >>> pipe = VersatileDiffusionDualGuidedPipeline.from_pretrained("shi-labs/versatile-diffusion")
        >>> image = pipe("a red car in the sun", picture, text_to_image_strength=0.75, seed=7).images[0]
    """

    _optional_components = ["text_unet"]  # where the image UNet has dual_cross_attention

    @property
    def network(self) -> Any:
        if self.text_unet is None and not self.image_unet.config.get("dual_cross_attention"):
            raise ValueError("without a text_unet, image_unet needs dual_cross_attention; give both networks")
        return dual_flow(self.image_unet, self.text_unet)

    def remove_unused_weights(self) -> None:
        """Keep only what this pipeline needs: the image UNet gets ``dual_cross_attention``. Other pipelines that share
        the two networks keep them as they are.
        """
        self.image_unet = self.network
        self.text_unet = None

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        return {"image": True}

    def stage(
        self, call: Call, given: FamilyGiven, told: Reading, parts: Sequence[Guider], size: Sequence[int], **more: Any
    ) -> Setup:
        network = DualFlow(self.network, call.given.text_to_image_strength)  # type: ignore[attr-defined]
        return super().stage(call, given, told, parts, size, network=network, **more)

    def read(self, given: Any, steps: int) -> Reading:
        text = super().read(given, steps)
        seen = self.read_pictures(given, None, NAME)
        if text.batch % seen.batch or seen.batch not in (text.batch, given.num_images_per_prompt):
            prompts, pictures = (one.batch // given.num_images_per_prompt for one in (text, seen))
            raise ValueError(f"{pictures} pictures for {prompts} prompts; give one, or one each")
        branches: dict[str, Any] = {}
        for branch, told in text.branches.items():
            places = seen.branches[branch][NAME]
            branches[branch] = {**told, NAME: places.repeat(text.batch // seen.batch, 1, 1)}
        return replace(text, branches=branches)

    @takes(VersatileDualGiven)
    def __call__(self, given: VersatileDualGiven) -> Any:
        """Make pictures.

        Raises:
            ValueError: for arguments that do not fit together, in one line that says what is allowed.
        """
        return self.generate(given)
