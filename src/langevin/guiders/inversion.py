"""On the way from a picture to its noise, and on the way back beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step


@dataclass
class InversionTrace(Guider):
    """Goes back along the way that an inversion came, and leaves it only where a mask is (DiffEdit: Couairon et al.
    2023, 2210.11427, section 3.2).

    Args:
        trace: latents that the inversion passed through, the noisiest first, ``(n, steps, channels, height, width)``;
            n is 1, or divides the batch.
        mask: ``(m, 1, height, width)`` of the latents' size, 1 where they are left.
        strength: the share of the run that the inversion went.

    Raises:
        ValueError: when the call begins: another size, or another number of steps.
    """

    trace: Tensor
    mask: Tensor
    strength: float = 0.8

    def prepare(self, setup: Setup) -> None:
        setup.start_at(self.strength)
        steps, shape = len(setup.run) - setup.start, tuple(setup.shape[1:])
        if tuple(self.trace.shape[2:]) != shape or self.trace.shape[1] != steps:
            given = tuple(self.trace.shape)
            raise ValueError(f"image_latents are {given}; {steps} steps of {shape} are needed: (n, {steps}, …)")
        if tuple(self.mask.shape[-2:]) != shape[1:]:
            raise ValueError(f"mask_image is {tuple(self.mask.shape)}; it must have the latents' size, {shape[1:]}")
        trace, batch = self.trace.to(setup.device, setup.dtype), setup.shape[0]
        if batch % len(trace):
            raise ValueError(
                f"image_latents are of {len(trace)} pictures, for a batch of {batch}; give one, or one each"
            )
        self._trace = trace.repeat_interleave(batch // len(trace), dim=0)
        self._mask = setup.rows(self.mask).to(setup.device, setup.dtype)
        setup.x = self._trace[:, 0].clone()

    def after(self, x: Tensor, step: Step) -> Tensor:
        return self._trace[:, step.index - step.start].lerp(x, self._mask)


@dataclass
class Follow(Guider):
    """Keeps every x that a run passes through, in ``kept``."""

    kept: list[Tensor] = field(default_factory=list)

    def after(self, x: Tensor, step: Step) -> Tensor:
        self.kept.append(x.clone())
        return x
