"""Sound in pictures: begin from one, and keep what it has at its two ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from torch import Generator, Tensor

from langevin.checks import Range
from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step
from langevin.randomness import Noise

if TYPE_CHECKING:
    from langevin.schedulers.run import Run


@dataclass
class KeptSound(Guider):
    """Begin from a sound's picture, noised, and after every step put back what it has at its two ends.

    Args:
        image: ``(n, 1, height, width)`` in [-1, 1]; n is 1, or divides the batch.
        start_step: the network call to begin with; at 0 the run begins with noise alone.
        keep_start, keep_end: how many columns of x are kept on the left and on the right.
        exact_levels: noise both to the level that x is at. False is what the reference does, and people's pictures were
            made with: it noises what is kept one step too far, at the end too, and begins one step too noisy. With a
            ``start_step`` it also takes the noised picture for the noise of what is kept.

    Raises:
        ValueError: when the call begins: numbers, or the picture's size, do not fit what is made.
    """

    image: Tensor
    start_step: Annotated[int, Range(0)] = 0
    keep_start: Annotated[int, Range(0)] = 0
    keep_end: Annotated[int, Range(0)] = 0
    exact_levels: bool = False

    def prepare(self, setup: Setup) -> None:
        if setup.x is not None:
            raise ValueError("two guiders want to choose where the run begins; give one of them")
        height, width = setup.picture_places("KeptSound")
        if self.keep_start + self.keep_end > width:
            raise ValueError(
                f"{self.keep_start} and {self.keep_end} columns are to be kept at the ends, where there are {width}"
            )
        if self.start_step > len(setup.run):
            raise ValueError(f"start_step is {self.start_step}; this run has {len(setup.run)} steps")
        self._noise = setup.first_noise()
        self._clean = self._encoded(setup)
        if self._clean.shape[2:] != (height, width):
            raise ValueError(
                f"the sound's picture becomes {tuple(self._clean.shape[2:])}, where the network makes "
                f"{(height, width)}; set the mel's resolution to fit it"
            )
        if self.start_step:
            setup.start = self.start_step
            setup.x = self._noised(setup.run, self.start_step - (0 if self.exact_levels else 1))
            if not self.exact_levels:
                self._noise = setup.x

    def _encoded(self, setup: Setup) -> Tensor:
        """The picture as x. (Latents may have as many channels as it, so they are not told apart by those.)"""
        pixels = self.image.to(setup.device, setup.dtype)
        pixels = setup.rows(pixels) if setup.noise.per_picture else pixels
        return setup.rows(setup.codec.encode(pixels, setup.noise).to(setup.dtype))

    def _noised(self, run: Run, index: int) -> Tensor:
        """The picture at the level of network call ``index``; clean behind the last."""
        return self._clean if index >= len(run) else run.add_noise(self._clean, self._noise, index)

    def after(self, x: Tensor, step: Step) -> Tensor:
        if not self.keep_start + self.keep_end:
            return x
        kept, x = self._noised(step.run, step.index + self.exact_levels), x.clone()
        right = x.shape[-1] - self.keep_end
        x[..., : self.keep_start] = kept[..., : self.keep_start]
        x[..., right:] = kept[..., right:]
        return x


@dataclass
class StepNoise(Guider):
    """Draw the noise of a run's steps from generators of its own, and only what the run begins with from the call's.

    Args:
        generator: a ``torch.Generator``, or a list with one per picture.
    """

    generator: Generator | Sequence[Generator]

    def prepare(self, setup: Setup) -> None:
        setup.first_noise()
        setup.noise = Noise(self.generator)
