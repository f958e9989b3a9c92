"""What a guider is: an object that sets up a call and steers its loop, at any of a few moments."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from langevin.randomness import Noise

if TYPE_CHECKING:
    from langevin.schedulers.run import Run

Conditions = Mapping[str, Any]
"""What one branch is told: keyword arguments of the network, as ``{"encoder_hidden_states": (batch, tokens, dim)}``.

Two names are not the network's. ``"channels"``, ``(batch, more, height, width)``, is joined to x (inpainting's mask,
the picture to be edited). ``"maps"``, a dict, is for the :attr:`Setup.inputs` that put it there. A tensor with x's
height and width is a map of x's places: wrappers that cut x into windows cut it alike.
"""

Denoiser = Callable[..., "dict[str, Tensor]"]
"""``denoiser(x, step, branches, attention=None) -> {branch: prediction}``: see :mod:`langevin.denoiser`."""

Input = Callable[..., "dict[str, Any]"]
"""``input(x, step, names, told) -> told``: see :attr:`Setup.inputs`."""


@dataclass
class Setup:
    """A call before its first step. A guider may change any of it in :meth:`Guider.prepare`.

    Attributes:
        run: the scheduler's run.
        steps: how many steps were asked for; a solver may make several network calls in one (``order``).
        order: network calls in a step.
        branches: conditions by branch name: "positive", "negative" (where there is one), and what guiders add.
            "negative" differs from "positive" in nothing but the text.
        guiders: this call's own copies, in order.
        network: what is denoised with, for its config and to name its layers; do not call it.
        denoiser: put something around the network by wrapping this.
        inputs: functions ``(x, step, names, told) -> told``, asked at each network call with the scaled x,
            ``(rows, channels, height, width)``, the names of the branches whose rows they are, one after the other,
            and what the network will be told; they return what it is told instead (control networks).
        codec: from pixels to x and back; see :mod:`langevin.codecs`.
        noise: draws from this call's generators, in a fixed order: who draws first gets the first numbers.
        shape: of x, ``(batch, channels, height, width)``.
        device, dtype: of x.
        encode_text: ``encode_text(text) -> conditions`` of a branch with another text (one, or one per prompt).
        pair_images: see :meth:`rows`.
        pictures: how many there are of each prompt.
        start: the network call at which the run begins.
        x: where it begins, at the level of call ``start``; None is noise.
        latents: the noise that the caller gave to begin with, or None.
        tensors: tensors that callbacks may see and replace, by name; read them here at each step.
    """

    run: Run
    steps: int
    order: int
    branches: dict[str, Conditions]
    guiders: list[Guider]
    network: Any
    denoiser: Denoiser
    inputs: list[Input]
    codec: Any
    noise: Noise
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    encode_text: Callable[[Any], Conditions] | None = None
    pair_images: bool = False
    pictures: int = 1
    start: int = 0
    x: Tensor | None = None
    latents: Tensor | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def first_noise(self) -> Tensor:
        """The standard normal noise that this call begins with: the caller's, else drawn once."""
        if self.latents is None:
            self.latents = self.noise.draw(self.shape, self.dtype, self.device)
        return self.latents

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

    def check_size(self, images: Tensor) -> None:
        """Raises ValueError unless pictures, or latents in their place, have the size of those to be made."""
        wanted = self.shape[-2:]
        if images.shape[1] != self.codec.channels:
            wanted = tuple(side * self.codec.scale_factor for side in wanted)
        if tuple(images.shape[-2:]) != tuple(wanted):
            sides = " x ".join(map(str, wanted))
            raise ValueError(f"image is {tuple(images.shape)}; the pictures to be made are {sides}")

    def drawing(self, count: int, shared: bool = False) -> tuple[Noise, int]:
        """Who draws latents for ``count`` given pictures, and for how many rows; see :meth:`encode`."""
        generators = self.noise.generator
        if not isinstance(generators, Sequence):
            return self.noise, count
        return (Noise(generators[:count]), count) if shared else (self.noise, self.shape[0])

    def encode(self, pixels: Tensor, sample: bool = True, shared: bool = False) -> Tensor:
        """What the network denoises, for pixels ``(n, 3, height, width)`` in [-1, 1], one row per row of x.

        A tensor with the latents' channels passes for latents, as it does in the reference.

        Args:
            sample: draw from the autoencoder's posterior, else take its mode.
            shared: where each picture has a generator of its own, let only the first ones draw, one for each picture
                given, and repeat what they drew, as the reference does in places. Otherwise every generator draws.
        """
        pixels = pixels.to(self.device, self.dtype)
        if pixels.shape[1] == self.codec.channels:
            return self.rows(pixels)
        if not sample:
            return self.rows(self.codec.encode(pixels, None))
        noise, count = self.drawing(len(pixels), shared)
        return self.rows(self.codec.encode(pixels if count == len(pixels) else self.rows(pixels), noise))

    def rows(self, images: Tensor) -> Tensor:
        """Repeat pictures to x's rows. Several, with several pictures of each prompt, are repeated as a whole
        (a, b, a, b), as the reference does, though prompts are repeated one by one (a, a, b, b); ``pair_images`` makes
        them go together.

        Raises:
            ValueError: their number does not divide the batch.
        """
        batch, count = self.shape[0], len(images)
        if count > batch or batch % count:
            raise ValueError(f"{count} images for a batch of {batch} pictures; give one image, or one per prompt")
        if self.pair_images:
            return images.repeat_interleave(batch // count, dim=0)
        return images.repeat(batch // count, *[1] * (images.ndim - 1))


def tell(
    branches: MutableMapping[str, Conditions],
    key: str,
    value: Callable[[str, Any], Any],
    inside: str | None = None,
) -> None:
    """See to it that every branch is told something; those that are already keep their entry.

    Args:
        key: under which name; with ``inside="maps"``, in that dict of theirs.
        value: from a branch's name and what it is told now (or None), to what it is to be told.
    """
    for name, told in list(branches.items()):
        holder = told if inside is None else told.get(inside, {})
        wanted = value(name, holder.get(key))
        if wanted is not holder.get(key):
            holder = {**holder, key: wanted}
            branches[name] = holder if inside is None else {**told, inside: holder}


@dataclass(slots=True)
class Step:
    """One network call's place in a run, as guiders see it.

    Attributes:
        index: 0, 1, … up to ``total - 1``.
        total: network calls in the run.
        timestep: what the network is told.
        run: the scheduler's run; ``run.add_noise(x0, noise, index)`` brings a clean x to this step's level.
        branches: all conditions of the call by branch name, "positive" among them. A guider may replace entries.
        denoiser: the network and its wrappers; see :meth:`predict`.
        noise: ``noise(like)`` draws fresh noise from the call's generators.
        start: the network call at which the loop began (image to image begins late).
        attention: what the guiders asked so far want called in this step's attention layers; None: the usual one.
    """

    index: int
    total: int
    timestep: float
    run: Run
    branches: dict[str, Conditions]
    denoiser: Denoiser
    noise: Callable[[Tensor], Tensor]
    start: int = 0
    attention: Callable[..., Tensor] | None = None

    def predict(self, x: Tensor, names: Iterable[str], attention: Callable | None = None) -> dict[str, Tensor]:
        """Ask the network at this step about any x (unscaled), for the named branches."""
        chosen = {name: self.branches[name] for name in names}
        return self.denoiser(self.run.scale_model_input(x, self.index), self, chosen, attention)

    @property
    def progress(self) -> float:
        """Share of the run that lies behind this step, 0 ≤ progress < 1."""
        return self.index / self.total


class Guider:
    """Steers a run. Override what you need; every pipeline takes instances in ``guiders=[…]``.

    A guider keeps its settings. What changes during a call may be kept on ``self`` too: the loop works on the copy
    that :meth:`begin` returns, made for that call alone.
    """

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
        at parts of x, their boxes, each branch's rows being theirs one after the other.

        There is one function in the end. Where guiders before this one hand one down, it is ``step.attention``: call it
        for the layers that you leave alone, and both have their effect.
        """
        return None

    def before(self, x: Tensor, step: Step) -> Tensor:
        """Change x, ``(batch, channels, height, width)`` at this step's noise level, before the network sees it."""
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
