"""Text to image with Stable Diffusion, after the network has been taught to take one text for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langevin.media.recording import mark_edited
from langevin.models.editing import edited
from langevin.pipelines.given import takes
from langevin.pipelines.parts import takes_parts
from langevin.pipelines.stable_diffusion.base import StableDiffusionBase
from langevin.pipelines.stable_diffusion.given import middle
from langevin.pipelines.stable_diffusion.text_to_image import TextToImageGiven
from langevin.prompts.readers.base import How

AUGMENTATIONS = ("A photo of ", "An image of ", "A picture of ")


@dataclass(frozen=True, kw_only=True)
class ModelEditingGiven(TextToImageGiven):
    """Arguments of :class:`StableDiffusionModelEditingPipeline`."""

    positional = (
        f"prompt height width num_inference_steps {middle(without='ip_adapter_image ip_adapter_image_embeds')} "
        "callback callback_steps cross_attention_kwargs clip_skip"
    )


class StableDiffusionModelEditingPipeline(StableDiffusionBase):
    """Text to image with a network whose assumptions are edited (TIME: Orgad, Kawar & Belinkov 2023, 2303.08084).

    :meth:`edit_model` puts an edited copy in the place of ``unet``; pipelines that share it keep theirs. (The
    reference's edits its network in its place, and in its last release finds nothing to edit.)

    Args:
        with_to_k: edit the projections to keys too, and not to values alone.
        with_augs: beginnings before which the edit is to hold too; ``[]`` for none.

    Example:
        >>> from langevin import StableDiffusionModelEditingPipeline
        >>> pipe = StableDiffusionModelEditingPipeline.from_pretrained("langevin/shapes")
        >>> pipe.edit_model("a circle", "a blue circle", lamb=10)
        >>> image = pipe("a circle", num_inference_steps=20, seed=7).images[0]
    """

    unet: Any

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
        requires_safety_checker: bool = True,
        with_to_k: bool = True,
        with_augs: Sequence[str] = AUGMENTATIONS,
        image_encoder: Any = None,
    ) -> None:
        self.with_to_k, self.with_augs = with_to_k, list(with_augs)
        self.register_to_config(with_augs=self.with_augs)
        self._before: tuple[Any, Any] = (None, None)  # an edited network, and what it was before all edits

    def edit_model(
        self, source_prompt: str, destination_prompt: str, lamb: float = 0.1, restart_params: bool = True
    ) -> None:
        """Make this pipeline take one text for another.

        Args:
            source_prompt: what is to be taken for something else, ``"a pack of roses"``.
            destination_prompt: what for; it has all words of the other in their order, and more between them: ``"a pack
                of blue roses"``. "a" and "an" are the same word.
            lamb: λ, how strongly what else the network knows is held on to, above 0.
            restart_params: begin with the network as it was before all edits; False adds this edit to them.

        Raises:
            ValueError: the destination lacks a word of the source, a text is longer than the encoder's window, or λ is
                not above 0.
        """
        now, before = self._before
        original = before if now is self.unet else self.unet
        pairs = [(aug + source_prompt, aug + destination_prompt) for aug in ("", *self.with_augs)]
        sides = [self._tokens(source, destination) for source, destination in pairs]
        sources, targets = (torch.cat(side) for side in zip(*sides, strict=True))
        unet = edited(original if restart_params else self.unet, sources, targets, lamb, keys=self.with_to_k)
        mark_edited(unet)
        self.unet = unet
        self._before = unet, original

    @torch.no_grad()
    def _tokens(self, source: str, destination: str) -> tuple[Tensor, Tensor]:
        """A window of the source's embeddings, and what each token is to be taken for, ``(window, dim)`` each."""
        encoder = self.reader.encoder()
        ids, wanted = encoder.tokenise([source, destination])
        if long := [text for text, one in ((source, ids), (destination, wanted)) if len(one) > encoder.room]:
            raise ValueError(f"{long[0][:40]!r} is longer than the text encoder's window of {encoder.room} tokens")
        spelt = [[_article(piece) for piece in encoder.pieces([*encoder.bos, *one])] for one in (ids, wanted)]
        places = matching(*spelt)
        if places is None:
            raise ValueError(
                f"destination_prompt is {destination[:60]!r}; it needs all words of {source[:60]!r} in their order"
            )
        # behind the text: end and padding, of the source for those of the destination
        rest = range(len(wanted) + len(encoder.bos), encoder.window)
        last = encoder.window - 1
        places = [*places, *rest, *[last] * encoder.window][: encoder.window]
        how = How(None, False, "none", "cut")
        c, c_wanted = (self.reader.encode(text, None, how, with_negative=False) for text in (source, destination))
        name = "encoder_hidden_states"
        return c["positive"][name][0], c_wanted["positive"][name][0][places]

    @takes(ModelEditingGiven)
    def __call__(self, given: ModelEditingGiven) -> Any:
        """Make pictures."""
        return self.generate(given)


def matching(source: Sequence[str], destination: Sequence[str]) -> list[int] | None:
    """Where each word of a text stands in another that has them all in their order; None where it lacks one."""
    places: list[int] = []
    for word in source:
        start = places[-1] + 1 if places else 0
        found = next((j for j in range(start, len(destination)) if destination[j] == word), None)
        if found is None:
            return None
        places.append(found)
    return places


def _article(piece: str) -> str:
    return "a</w>" if piece == "an</w>" else piece
