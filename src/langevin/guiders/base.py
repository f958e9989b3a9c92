"""What a guider is: an object that sets up a stage of a call and steers its loop, at any of a few moments."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from langevin.checks import check_fields
from langevin.codecs.base import Codec
from langevin.guiders.step import Conditions, Denoiser, Input, Step, Told
from langevin.randomness import Noise

if TYPE_CHECKING:
    from langevin.schedulers.run import Run


@dataclass
class Setup:
    """One stage of a call: a network denoises an x along a run. A guider may change any of it in
    :meth:`Guider.prepare`.

    Attributes:
        run: the scheduler's run.
        steps: how many steps were asked for; a solver may make several network calls in one (``order``).
        order: network calls in a step.
        branches: conditions by branch name: "positive", "negative" (where there is one), and what guiders add.
            "negative" differs from "positive" in nothing but the text.
        told: conditions of every branch, those that come later among them; see :class:`Told`.
        guiders: this call's own copies, in order.
        network: what is denoised with, for its config and to name its layers; do not call it.
        denoiser: put something around the network by wrapping this.
        inputs: functions ``(x, step, names, told) -> told``, asked at each network call with the scaled x,
            ``(rows, channels, …)``, the names of the branches whose rows they are, one after the other,
            and what the network will be told; they return what it is told instead (control networks).
        codec: from pixels to x and back; see :mod:`langevin.codecs`.
        noise: draws from this call's generators, in a fixed order: who draws first gets the first numbers.
        shape: of x, ``(batch, channels, …)``: pictures, sounds, frames, or a vector ``(batch, dim)``.
        device, dtype: of x.
        scheduler: whose run it is, for the record.
        name: of the stage, where a call has several.
        encode_text: ``encode_text(text) -> conditions`` of a branch with another text (one, or one per prompt).
        pair_images: see :meth:`rows`.
        pictures: how many there are of each prompt.
        start: the network call at which the run begins.
        stop: the network call before which the run ends; None goes to its end.
        x: where it begins, at the level of call ``start``; None is where the run begins by itself, which is noise.
        latents: the noise that the caller gave to begin with, or None.
        tensors: tensors that callbacks may see and replace, by name, beside those in ``told["channels"]``; read them
            here at each step.
    """

    run: Run
    steps: int
    order: int
    branches: dict[str, Conditions]
    guiders: list[Guider]
    network: Any
    denoiser: Denoiser
    inputs: list[Input]
    codec: Codec
    noise: Noise
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    told: Told = field(default_factory=Told)
    scheduler: Any = None
    name: str = ""
    encode_text: Callable[[Any], Conditions] | None = None
    pair_images: bool = False
    pictures: int = 1
    start: int = 0
    stop: int | None = None
    x: Tensor | None = None
    latents: Tensor | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    # -- where x begins

    def first_noise(self) -> Tensor:
        """The noise that this stage begins with: the caller's, else drawn once."""
        if self.latents is None:
            self.latents = self.noise.draw(self.shape, self.dtype, self.device)
        return self.latents

    def begin(self) -> Tensor:
        """x where the whole run begins, from noise alone."""
        return self.run.begin(self.first_noise, self.noise, self.shape, self.device)

    def start_at(self, strength: float) -> None:
        """Leave out the run's first steps: strength 1 keeps all, 0 none.

        Raises:
            ValueError: the strength is not in 0..1, or another guider has chosen the start.
        """
        if self.x is not None:
            raise ValueError("two guiders want to choose where the run begins; give one of them")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is {strength}; it must be in 0..1: 0 keeps the picture, 1 makes it anew")
        kept = min(int(self.steps * strength), self.steps)
        self.start = (self.steps - kept) * self.order if kept else len(self.run)

    # -- places

    @property
    def places(self) -> tuple[int, ...]:
        """The sizes of x's axes that are places: height and width of a picture's latents; none of a vector."""
        return self.shape[len(self.shape) - self.codec.axes :]

    def picture_places(self, who: str) -> tuple[int, int]:
        """Height and width of x.

        Raises:
            ValueError: x is no picture and has no such thing; ``who`` says who wants to know.
        """
        if self.codec.axes < 2:
            raise ValueError(f"{who} works on pictures; what is made here is {tuple(self.shape)}, which has none")
        height, width = self.places[-2:]
        return height, width

    @property
    def size(self) -> tuple[int, ...]:
        """The size of what is decoded: pixels ``(height, width)``, samples, …."""
        return tuple(side * self.codec.scale_factor for side in self.places)

    def is_latents(self, images: Tensor) -> bool:
        """Whether these are latents in pictures' place, told by their number of channels; and where latents have three
        as pictures have, by their size.
        """
        if images.shape[1] != self.codec.channels or self.codec.scale_factor == 1:
            return False
        return images.shape[1] != 3 or tuple(images.shape[2:]) != self.size

    def check_size(self, images: Tensor) -> None:
        """Raises ValueError unless pictures, or latents in their place, have the size of those to be made."""
        if images.ndim != len(self.shape):
            raise ValueError(f"image is {tuple(images.shape)}; {len(self.shape)} axes are needed, as x has them")
        wanted = self.places if self.is_latents(images) else self.size
        if tuple(images.shape[2:]) != wanted:
            sides = " x ".join(map(str, wanted))
            raise ValueError(f"image is {tuple(images.shape)}; the pictures to be made are {sides}")

    # -- pictures that are given

    def encode(self, pixels: Tensor, sample: bool = True) -> Tensor:
        """What the network denoises, for pixels ``(n, 3, height, width)`` in [-1, 1], one row per row of x.

        A tensor with the latents' channels passes for latents, as it does in the reference.

        Args:
            sample: draw from the autoencoder's posterior, else take its mode. Where each picture has a generator of its
                own, each draws for its own.
        """
        pixels = pixels.to(self.device, self.dtype)
        if pixels.shape[1] == self.codec.channels and (self.codec.scale_factor == 1 or self.is_latents(pixels)):
            return self.rows(pixels)
        if sample:
            pixels = self.rows(pixels) if self.noise.per_picture else pixels
        encoded = self.codec.encode(pixels, self.noise if sample else None)
        return self.rows(encoded.to(self.dtype))

    def rows(self, images: Tensor) -> Tensor:
        """Repeat pictures to x's rows. Several, with several pictures of each prompt, are repeated as a whole
        (a, b, a, b), as the reference does, though prompts are repeated one by one (a, a, b, b); ``pair_images`` makes
        them go together.

        Raises:
            ValueError: their number does not divide the batch.
        """
        batch, count = self.shape[0], len(images)
        if not 1 <= count <= batch or batch % count:
            raise ValueError(f"{count} images for a batch of {batch} pictures; give one image, or one per prompt")
        if self.pair_images:
            return images.repeat_interleave(batch // count, dim=0)
        return images.repeat(batch // count, *[1] * (images.ndim - 1))


class Guider:
    """Steers a run. Override what you need; every pipeline takes instances in ``guiders=[…]``.

    A guider keeps its settings. What changes during a call may be kept on ``self`` too: the loop works on the copy
    that :meth:`begin` returns, made for that call alone.
    """

    def __post_init__(self) -> None:
        if dataclasses.is_dataclass(self):
            check_fields(self, of=f" of {type(self).__name__}")

    def within(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> Guider:
        """This guider where only a part of the picture is made, the ``box`` (left, top, right, bottom) of a picture of
        ``size`` (width, height): what it knows of places is cut alike.
        """
        return self

    def begin(self) -> Guider:
        """The guider that serves one call: a copy, so that calls in other threads do not see its scratch."""
        return copy.copy(self)

    def prepare(self, setup: Setup) -> None:
        """Once, before the first step: change what the call starts from, what its branches are told, its denoiser."""

    def needs(self, step: Step) -> Collection[str]:
        """Branches whose predictions :meth:`combine` wants at this step. Others are not computed."""
        return ()

    def attention(self, step: Step) -> Callable[..., Tensor] | None:
        """An attention function for this step's network call, or None for the usual one.

        It is called as ``f(q, k, v, mask, layer, names=(…), views=None)``: ``q`` is ``(rows, heads, tokens, dim)``,
        ``names`` the branches whose rows these are, one after the other; ``views`` is None, or where the network looks
        at parts of x, their boxes, each branch's rows being theirs one after the other. Where prompts differ in length,
        pictures of one length go through together, and ``pictures=(…)`` are their numbers.

        There is one function in the end. Where guiders before this one hand one down, it is ``step.attention``: call it
        for the layers that you leave alone, and both have their effect.
        """
        return None

    def before(self, x: Tensor, step: Step) -> Tensor:
        """Change x, ``(batch, channels, …)`` at this step's noise level, before the network sees it."""
        return x

    def combine(self, prediction: Tensor, predictions: Mapping[str, Tensor], x: Tensor, step: Step) -> Tensor:
        """Turn the branches' predictions into one.

        Args:
            prediction: the result of the guiders before this one; at first the positive branch's prediction.
            predictions: what the network said for each needed branch, in the network's own output space.
            x: what the step started from.
        """
        return prediction

    def after(self, x: Tensor, step: Step) -> Tensor:
        """Change x after the solver moved it to the next noise level (``step.index + 1``)."""
        return x

    def finish(self, pixels: Tensor, setup: Setup) -> Tensor:
        """Change the decoded pictures, ``(batch, channels, height, width)`` in [-1, 1]."""
        return pixels


_MOMENTS = ("begin", "prepare", "needs", "attention", "before", "combine", "after", "finish")


def is_guider(value: Any) -> bool:
    """Whether it is a :class:`Guider`, or has all of a guider's moments, as one that hands them on to another has."""
    return isinstance(value, Guider) or all(callable(getattr(value, moment, None)) for moment in _MOMENTS)
